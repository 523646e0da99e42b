# SPDX-License-Identifier: Apache-2.0
"""The stock scheduler places pods by bandwidth; a real kubelet has their claims prepared; the rates hold."""

import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from cluster import claim, pod, template, write_bandwidth
from conftest import REPORTS, endless, wait_until
from control_plane import WITHIN, ControlPlane
from worker import Worker

pytest_plugins = ["cluster"]


def devices_of_claim(plane: ControlPlane) -> list[dict[str, Any]]:
    """What the driver says of the only claim."""
    (found,) = plane.get("resourceclaims")["items"]
    devices: list[dict[str, Any]] = found.get("status", {}).get("devices") or []
    return devices


def test_a_pod_gets_what_it_asks_for(plane: ControlPlane, worker: Worker) -> None:
    plane.apply(template("ten", "10G", max="20G", weight=3), pod("one", "ten"))
    plane.wait_for("pod/one", "condition=Ready")
    device = worker.output("one", "ibv_devinfo", "-v")
    address = plane.pod("one")["status"]["podIP"]
    assert "hca_id:\tsluice0" in device
    assert f"::ffff:{address}" in device
    tenant = worker.tenant_of("one")
    assert tenant["address"] == address
    assert (tenant["min_bps"], tenant["max_bps"], tenant["weight"]) == (10**10, 20 * 10**9, 3)
    state = worker.nic_states()["mlx5-0"]
    assert (state["capacity_bps"], state["used_bps"]) == (25 * 10**9, 10 * 10**9)
    assert [row["min_bps"] for row in state["tenants"].values()] == [10 * 10**9]
    assert worker.metric("sluice_nic_used_bits_per_second", nic="mlx5-0") == 10e9
    granted = wait_until(
        lambda: [each["message"] for each in plane.events("one") if each["reason"] == "BandwidthGranted"], "the event"
    )
    assert len(granted) == 1
    assert "10G of mlx5-0" in granted[0]
    offered = "pods may have 25G of mlx5-0, 25G of mlx5-1"
    wait_until(lambda: offered in plane.kubectl("describe", "node", "worker-1"), "the node's event")

    (device,) = wait_until(lambda: devices_of_claim(plane), "the claim's status")
    assert device["networkData"] == {"interfaceName": "sluice0", "ips": [f"{address}/32"]}
    assert [(each["type"], each["status"]) for each in device["conditions"]] == [("Ready", "True")]

    plane.kubectl("delete", "pod", "one", WITHIN)
    wait_until(lambda: not worker.tenants(), "everything to be returned")
    assert worker.nic_states()["mlx5-0"]["used_bps"] == 0
    assert list(worker.cdi_dir.glob("*.json")) == []
    assert list((worker.state_dir / "grants").iterdir()) == []


def test_no_room_and_room_again(plane: ControlPlane, worker: Worker) -> None:
    plane.apply(template("twenty", "20G"), *(pod(f"p{index}", "twenty") for index in range(2)))
    for index in range(2):
        plane.wait_for(f"pod/p{index}", "condition=Ready")
    # Two NICs, two pods: one on each.
    assert [nic["used_bps"] for nic in worker.nic_states().values()] == [20 * 10**9] * 2
    plane.apply(pod("late", "twenty"))
    plane.wait_for("pod/late", "condition=PodScheduled=False")
    said = "cannot allocate all claims"
    wait_until(lambda: said in plane.kubectl("describe", "pod", "late"), "the scheduler's event")
    plane.kubectl("delete", "pod", "p0", WITHIN)
    plane.wait_for("pod/late", "condition=Ready")


def test_several_nics_and_bin_packing(plane: ControlPlane, worker: Worker) -> None:
    plane.apply(template("both", "10G", requests=2), template("small", "5G"), pod("wide", "both"))
    plane.wait_for("pod/wide", "condition=Ready")
    assert [nic["used_bps"] for nic in worker.nic_states().values()] == [10 * 10**9] * 2
    (tenant,) = worker.tenants().values()
    devices = {name: (each["device"], each["min_bps"]) for name, each in tenant["devices"].items()}
    assert devices == {"sluice0": ("mlx5-0", 10 * 10**9), "sluice1": ("mlx5-1", 10 * 10**9)}
    seen = worker.output("wide", "ibv_devinfo", "-l").split()
    assert {"sluice0", "sluice1"} <= set(seen)
    plane.apply(pod("more", "both", "small"))
    plane.wait_for("pod/more", "condition=Ready")
    assert sum(nic["used_bps"] for nic in worker.nic_states().values()) == 45 * 10**9
    assert len(worker.tenants()) == 2


def test_pods_that_share_a_claim_are_one_tenant(plane: ControlPlane, worker: Worker) -> None:
    plane.apply(claim("shared", "10G", max="10G"), pod("first", claims=("shared",)))
    plane.wait_for("pod/first", "condition=Ready")
    plane.apply(pod("second", claims=("shared",)))
    plane.wait_for("pod/second", "condition=Ready")
    assert len(worker.tenants()) == 1
    assert worker.nic_states()["mlx5-0"]["used_bps"] == 10 * 10**9
    for name in ("first", "second"):
        assert "sluice0" in worker.output(name, "ibv_devinfo")


def test_pods_with_the_nodes_own_network(plane: ControlPlane, worker: Worker) -> None:
    """They have the node's address, which one tenant can have: the second is told, and has it after the first."""
    plane.apply(template("any", "1G"), pod("first", "any", hostNetwork=True))
    plane.wait_for("pod/first", "condition=Ready")
    assert f"::ffff:{worker.address}" in worker.output("first", "ibv_devinfo", "-v")
    plane.apply(pod("second", "any", hostNetwork=True))
    said = "of a node's pods with hostNetwork, one at a time has a device"
    wait_until(lambda: said in plane.kubectl("describe", "pod", "second"), "the event")
    plane.kubectl("delete", "pod", "first", WITHIN)
    # The event may be older than its container.
    plane.wait_for("pod/second", "condition=Ready")
    assert f"::ffff:{worker.address}" in worker.output("second", "ibv_devinfo", "-v")


def test_bad_parameters_are_named(plane: ControlPlane, worker: Worker) -> None:
    plane.apply(template("bad", "1G", max="20X"), pod("wrong", "bad"))
    said = "spec.devices.config[0].opaque.parameters.max: '20X' is not a bandwidth"

    def told() -> list[str]:
        return [each["message"] for each in plane.events("wrong") if each["reason"] == "BandwidthNotPrepared"]

    # The kubelet's own event repeats the words.
    wait_until(lambda: any(said in text for text in told()), "the event")
    assert worker.tenants() == {}
    (device,) = wait_until(lambda: devices_of_claim(plane), "the claim's status")
    assert [(each["type"], each["status"]) for each in device["conditions"]] == [("Ready", "False")]
    plane.apply(template("low", "10G", max="5G"), pod("low", "low"))
    wait_until(lambda: "a ceiling can't be below the guarantee" in plane.kubectl("describe", "pod", "low"), "the event")


def refusal(plane: ControlPlane, made: dict[str, Any]) -> str:
    """Why the API server takes no such object."""
    return plane.try_kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(made)).stderr


OPAQUE = {"apiVersion": "rdma.sluice.dev/v1", "kind": "Bandwidth", "max": "5G"}


@pytest.mark.parametrize("make", [template, claim])
def test_what_is_misspelt_is_refused_where_it_is_written(
    plane: ControlPlane, make: Callable[..., dict[str, Any]]
) -> None:
    """By the API server: the scheduler finds no node for a capacity that no device has, and doesn't say why; and nobody
    reads what is for a driver that isn't there."""
    wrong = make("wrong", "1G")
    devices = wrong["spec"].get("spec", wrong["spec"])["devices"]
    devices["requests"][0]["exactly"]["capacity"] = {"requests": {"bandwith": "1G"}}
    said = "a device of class rdma.sluice.dev has one capacity, bandwidth"
    wait_until(lambda: said in refusal(plane, wrong), "the policy to hold")
    said = "parameters.maxx for rdma.sluice.dev: no such field; there are apiVersion, kind, max, burst"
    assert said in refusal(plane, make("wrong", "1G", maxx="2G"))
    assert refusal(plane, make("right", "1G", max="2G", preload="file")) == ""
    assert refusal(plane, make("any", None)) == ""

    def configured(driver: str, parameters: dict[str, Any], *other_requests: dict[str, Any], **more: Any) -> str:
        made = make("configured", "1G")
        devices = made["spec"].get("spec", made["spec"])["devices"]
        devices["requests"] += other_requests
        devices["config"] = [{"opaque": {"driver": driver, "parameters": parameters}, **more}]
        return refusal(plane, made)

    said = "config.opaque.driver: rdma.sluice.de: parameters of apiVersion rdma.sluice.dev are read by"
    other = {"name": "other", "exactly": {"deviceClassName": "other.example"}}
    assert said in configured("rdma.sluice.de", OPAQUE, other)
    said = "config.opaque.driver: rdma.sluice.de: requests of class rdma.sluice.dev are served by"
    assert said in configured("rdma.sluice.de", {"max": "2G"})
    assert said in configured("rdma.sluice.de", {"max": "2G"}, other, requests=["rdma0"])
    # What is another driver's, or may be.
    assert configured("other.example", {"some": 1}, other) == ""
    assert configured("other.example", {"apiVersion": "v1"}, other, requests=["other"]) == ""
    devices["requests"][0]["exactly"]["deviceClassName"] = "other.example"
    devices["config"] = [{"opaque": {"driver": "other.example", "parameters": {"some": 1}}}]
    assert refusal(plane, wrong) == ""


def test_a_quota_of_devices(plane: ControlPlane, worker: Worker) -> None:
    plane.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "devices"},
            "spec": {"hard": {"rdma.sluice.dev.deviceclass.resource.k8s.io/devices": "1"}},
        },
        template("one", "1G"),
    )
    wait_until(lambda: plane.get("resourcequota", "devices").get("status", {}).get("used"), "the quota to be counted")
    plane.apply(pod("within", "one"))
    plane.wait_for("pod/within", "condition=Ready")
    plane.apply(pod("beyond", "one"))
    wait_until(lambda: "exceeded quota: devices" in plane.kubectl("describe", "pod", "beyond"), "the event")
    assert "rdma.sluice.dev.deviceclass.resource.k8s.io/devices  1     1" in plane.kubectl("describe", "quota")


def test_rates_of_a_running_pod_change(plane: ControlPlane, worker: Worker) -> None:
    plane.apply(template("ten", "10G", max="20G"), pod("live", "ten"))
    plane.wait_for("pod/live", "condition=Ready")
    plane.kubectl("annotate", "pod", "live", "rdma.sluice.dev/max=12G", "rdma.sluice.dev/burst=2Mi")
    wait_until(lambda: worker.tenant_of("live")["max_bps"] == 12 * 10**9, "the new ceiling")
    plane.kubectl("annotate", "--overwrite", "pod", "live", "rdma.sluice.dev/max=fast")
    wait_until(
        lambda: "metadata.annotations[rdma.sluice.dev/max]: 'fast'" in plane.kubectl("describe", "pod", "live"), ""
    )
    assert worker.tenant_of("live")["max_bps"] == 12 * 10**9
    plane.kubectl("annotate", "--overwrite", "pod", "live", "rdma.sluice.dev/max=12G", "rdma.sluice.dev/min=15G")
    wait_until(lambda: "is more than the 10G that are granted" in plane.kubectl("describe", "pod", "live"), "the event")
    plane.kubectl("annotate", "pod", "live", "rdma.sluice.dev/max-", "rdma.sluice.dev/min-", "rdma.sluice.dev/burst-")
    wait_until(lambda: worker.tenant_of("live")["max_bps"] == 20 * 10**9, "the claim's ceiling again")


def test_the_ceiling_holds(plane: ControlPlane, worker: Worker) -> None:
    """perftest between two pods as it comes, with a ceiling of 1 Gbit/s, measured by the client."""
    plane.apply(
        template("open", "1G"), template("tight", "1G", max="1G"), pod("server", "open"), pod("client", "tight")
    )
    for name in ("server", "client"):
        plane.wait_for(f"pod/{name}", "condition=Ready")
    address = plane.pod("server")["status"]["podIP"]
    assert 0 < write_bandwidth(worker, "server", "client", address) < 1.1


def test_the_guarantee_holds(plane: ControlPlane, worker: Worker) -> None:
    """Of a NIC that is full, and of which another pod wants all that it can get. Each writes to itself."""
    write = f"ib_write_bw {REPORTS} -s 65536 --report_gbits -D 2"
    rounds = f"while true; do {write} >/dev/null & sleep 1; {write} localhost; done"
    without_end = " ".join(endless("ib_write_bw", 18600, "-s", "65536"))
    always = f"{without_end} >/dev/null & until {without_end} localhost; do sleep 1; done"
    with worker.changed(nics={"mlx5_0": "2G"}):
        plane.apply(template("most", "1500M"), template("rest", "100M", weight=10000))
        for name, of, command in (("steady", "most", rounds), ("greedy", "rest", always)):
            made = pod(name, of)
            made["spec"]["containers"][0]["command"] = ["sh", "-c", command]
            plane.apply(made)

        def rates() -> list[float]:
            rows = [line.split() for line in plane.kubectl("logs", "steady").splitlines() if line.startswith(" 65536")]
            return [float(row[3]) for row in rows]

        for name in ("steady", "greedy"):
            plane.wait_for(f"pod/{name}", "condition=Ready")
        wait_until(lambda: worker.tenant_of("greedy")["counters"]["tx_bytes"] > 10**8, "the other to want it")
        before = len(rates())
        # The next one may have begun before. By weight alone each would get a hundredth; a busy machine needs several.
        wait_until(lambda: any(rate > 1 for rate in rates()[before + 1 :]), "a round with its guarantee")
        assert max(rates()[before + 1 :]) < 2.1


def test_more_is_offered_than_there_is(plane: ControlPlane, worker: Worker) -> None:
    """Of what was asked for each pod is guaranteed the part that there is; claims fill what is offered, and no more."""
    with worker.changed(nics={"mlx5_0": "25G"}, over_commit=2):
        plane.apply(template("thirty", "30G"), template("twenty", "20G"), pod("one", "thirty"), pod("two", "twenty"))
        for name, guarantee in (("one", 15 * 10**9), ("two", 10 * 10**9)):
            plane.wait_for(f"pod/{name}", "condition=Ready")
            assert worker.tenant_of(name)["min_bps"] == guarantee
        state = worker.nic_states()["mlx5-0"]
        assert (state["capacity_bps"], state["used_bps"]) == (50 * 10**9, 50 * 10**9)
        assert sum(row["min_bps"] for row in state["tenants"].values()) == 25 * 10**9
        plane.apply(template("least", "100M"), pod("late", "least"))
        said = "cannot allocate all claims"
        wait_until(lambda: said in plane.kubectl("describe", "pod", "late"), "the scheduler's event")
        plane.kubectl("delete", "pod", "two", WITHIN)
        plane.wait_for("pod/late", "condition=Ready")
        assert worker.tenant_of("late")["min_bps"] == 50 * 10**6


def test_nobody_is_placed_on_a_nic_without_a_link(plane: ControlPlane, worker: Worker) -> None:
    """A link that goes down, is up again, and is taken out; on a node whose other NIC is fine."""

    def described(*what: str) -> str:
        return plane.kubectl("describe", *what)

    def link(*command: str) -> None:
        subprocess.run(["ip", "link", *command], check=True)

    name, other = (f"sluice{end}{os.getpid() % 10**6}" for end in "no")
    link("add", name, "type", "veth", "peer", "name", other)
    for end in (name, other):
        link("set", end, "up")
    try:
        with worker.changed(nics={name: "30G", "mlx5_1": "25G"}):
            link("set", name, "down")
            said = f"{name} is down: pods are placed elsewhere"
            wait_until(lambda: said in described("node", "worker-1"), "the event")
            plane.apply(template("thirty", "30G"), template("ten", "10G"), pod("large", "thirty"), pod("small", "ten"))
            plane.wait_for("pod/small", "condition=Ready")
            plane.wait_for("pod/large", "condition=PodScheduled=False")
            used = {nic: state["used_bps"] for nic, state in worker.nic_states().items()}
            assert used == {name: 0, "mlx5-1": 10**10}
            assert worker.nic_states()[name]["unusable"] == f"{name} is down"
            assert worker.metric("sluice_nic_usable", nic=name) == 0
            assert worker.metric("sluice_nic_usable", nic="mlx5-1") == 1
            assert worker.wrong() == [f"{name} is down"]
            link("set", name, "up")
            plane.wait_for("pod/large", "condition=Ready")
            link("del", name)
            wait_until(lambda: f"{name} is gone" in described("node", "worker-1"), "the event")
    finally:
        subprocess.run(["ip", "link", "del", name], check=False, stderr=subprocess.DEVNULL)


def test_a_device_class_bounds_its_users(plane: ControlPlane, worker: Worker) -> None:
    """The ceiling that the operator gave a class is nobody's to lift, in claims or by annotation."""

    def class_of(driver: str, **more: str) -> dict[str, Any]:
        return {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "DeviceClass",
            "metadata": {"name": "modest"},
            "spec": {
                "selectors": [{"cel": {"expression": 'device.driver == "rdma.sluice.dev"'}}],
                "config": [{"opaque": {"driver": driver, "parameters": OPAQUE | more}}],
            },
        }

    # A ceiling isn't lost to a typo.
    said = "config.opaque.driver: rdma.sluice.de: parameters of apiVersion rdma.sluice.dev are read by"
    wait_until(lambda: said in refusal(plane, class_of("rdma.sluice.de")), "the policy to hold")
    assert "parameters.mx for rdma.sluice.dev: no such field" in refusal(plane, class_of("rdma.sluice.dev", mx="1G"))
    modest = class_of("rdma.sluice.dev")
    made, greedy = template("one", "1G"), template("greedy", "1G", max="8G")
    for each in (made, greedy):
        each["spec"]["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"] = "modest"
    plane.apply(modest, made, greedy, pod("tame", "one"), pod("wild", "greedy"))
    try:
        plane.wait_for("pod/tame", "condition=Ready")
        assert worker.tenant_of("tame")["max_bps"] == 5 * 10**9
        said = "max: 8G is more than the DeviceClass lets anybody have, 5G"
        wait_until(lambda: f"parameters.{said}" in plane.kubectl("describe", "pod", "wild"), "the event")
        plane.kubectl("annotate", "pod", "tame", "rdma.sluice.dev/max=8G")
        wait_until(lambda: f"metadata.annotations: {said}" in plane.kubectl("describe", "pod", "tame"), "the event")
        assert worker.tenant_of("tame")["max_bps"] == 5 * 10**9
    finally:
        plane.kubectl("delete", "deviceclass", "modest")
