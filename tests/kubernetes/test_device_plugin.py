# SPDX-License-Identifier: Apache-2.0
"""The extended resource, for clusters without DRA; quotas and limits work on it as on any other."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from cluster import pod
from conftest import wait_until
from control_plane import WITHIN, ControlPlane
from worker import Worker

pytest_plugins = ["cluster"]

RESOURCE = "rdma.sluice.dev/bandwidth"


@pytest.fixture(scope="module")
def with_device_plugin(plane: ControlPlane, worker: Worker) -> Iterator[Worker]:
    """The node, with a device plugin in place of the DRA driver."""
    worker.stop_router()
    worker.start_router(dra=False, device_plugin=True)
    wait_until(lambda: allocatable(plane) == "25", "the kubelet to offer one NIC's units")
    yield worker
    worker.stop_router()
    worker.start_router(dra=True, device_plugin=False)


@pytest.fixture
def extended(with_device_plugin: Worker) -> Worker:
    """That node, with nothing in use: a pod is gone before the router hears of it, and returns what it had."""
    wait_until(lambda: not with_device_plugin.tenants(), "what the last test's pods had to be returned")
    return with_device_plugin


def allocatable(plane: ControlPlane) -> str:
    found: str = plane.get("node", "worker-1")["status"]["allocatable"].get(RESOURCE, "0")
    return found


def asking(name: str, units: int, **changed: Any) -> dict[str, Any]:
    made = pod(name, **changed)
    made["spec"]["containers"][0]["resources"] = {"limits": {RESOURCE: str(units)}}
    return made


def test_a_pod_gets_what_it_asks_for(plane: ControlPlane, extended: Worker) -> None:
    plane.apply(asking("one", 10, annotations={"rdma.sluice.dev/max": "20G"}))
    plane.wait_for("pod/one", "condition=Ready")
    address = plane.pod("one")["status"]["podIP"]
    assert f"::ffff:{address}" in extended.output("one", "ibv_devinfo", "-v")
    (tenant,) = extended.tenants().values()
    assert (tenant["address"], tenant["max_bps"]) == (address, 20 * 10**9)
    used = sorted(nic["used_bps"] for nic in extended.nic_states().values())
    assert used == [0, 10 * 10**9], "all of it on one NIC"
    plane.kubectl("annotate", "--overwrite", "pod", "one", "rdma.sluice.dev/max=15G")
    wait_until(lambda: next(iter(extended.tenants().values()))["max_bps"] == 15 * 10**9, "the new ceiling")


def test_a_pod_waits_for_a_nic_that_has_room(plane: ControlPlane, extended: Worker) -> None:
    """Free bandwidth that is scattered over the NICs is none: the scheduler knows, and no pod fails on the node."""

    def used() -> list[int]:
        return sorted(nic["used_bps"] // 10**9 for nic in extended.nic_states().values())

    for name, units in (("one", 10), ("two", 20)):
        plane.apply(asking(name, units))
        plane.wait_for(f"pod/{name}", "condition=Ready")
    assert used() == [10, 20]
    wait_until(lambda: allocatable(plane) == "45", "what is in use, and the 15 that one NIC has left")
    node = plane.get("node", "worker-1")["status"]
    assert node["capacity"][RESOURCE] == "50"
    plane.apply(asking("late", 18))
    plane.wait_for("pod/late", "condition=PodScheduled=False")
    wait_until(lambda: f"Insufficient {RESOURCE}" in plane.kubectl("describe", "pod", "late"), "the scheduler's event")
    plane.kubectl("delete", "pod", "one", WITHIN)
    plane.wait_for("pod/late", "condition=Ready")
    wait_until(lambda: used() == [18, 20], "the first pod's to be returned")
    plane.apply(asking("small", 5))
    plane.wait_for("pod/small", "condition=Ready")
    assert used() == [18, 25], "packed onto the fullest NIC that has room"


def test_containers_of_a_pod_are_one_tenant(plane: ControlPlane, extended: Worker) -> None:
    """Each asks for its own, and all of it is of one NIC, also where the first alone would fit beside others; an init
    container's part goes to the others, as the kubelet counts."""
    plane.apply(asking("other", 20))
    plane.wait_for("pod/other", "condition=Ready")
    wait_until(lambda: allocatable(plane) == "45", "one whole NIC to be offered")
    made = asking("several", 10)
    (main,) = made["spec"]["containers"]
    side = main | {"name": "side", "resources": {"limits": {RESOURCE: "5"}}}
    seen = "ibv_devinfo -v | grep ::ffff:"
    first = main | {"name": "first", "resources": {"limits": {RESOURCE: "3"}}, "command": ["/bin/sh", "-c", seen]}
    made["spec"] |= {"containers": [main, side], "initContainers": [first]}
    plane.apply(made)
    plane.wait_for("pod/several", "condition=Ready")
    address = plane.pod("several")["status"]["podIP"]
    wait_until(lambda: extended.tenant_of("several")["address"] == address, "its address")
    assert extended.tenant_of("several")["min_bps"] == 15 * 10**9
    assert sorted(nic["used_bps"] for nic in extended.nic_states().values()) == [15 * 10**9, 20 * 10**9]

    def both_see_it() -> None:
        for container in ("main", "side"):
            text = extended.execute("several", "ibv_devinfo", "-v", container=container).stdout
            assert f"::ffff:{address}" in text, container

    both_see_it()
    extended.stop_router()
    extended.start_router()
    wait_until(lambda: extended.tenant_of("several")["address"] == address, "the tenant again")
    both_see_it()
    plane.kubectl("delete", "pods", "several", "other", WITHIN)
    wait_until(lambda: not extended.tenants(), "everything to be returned")
    assert list((extended.state_dir / "tenants").iterdir()) == []


def test_a_pod_that_comes_too_early_waits(plane: ControlPlane, extended: Worker) -> None:
    """The scheduler counts what a pod that has ended leaves, before the node has told that it is scattered."""
    for name, units in (("one", 15), ("two", 20), ("three", 5)):
        plane.apply(asking(name, units))
        plane.wait_for(f"pod/{name}", "condition=Ready")
    wait_until(lambda: allocatable(plane) == "50", "40 in use, and 10 that one NIC has left")
    plane.apply(asking("early", 24))
    plane.wait_for("pod/early", "condition=PodScheduled=False")
    # 20 units more are free in a moment, 30 as the scheduler sees it; the router is too slow to say so.
    with extended.router_asleep():
        plane.kubectl("delete", "pod", "two", WITHIN)
        plane.wait_for("pod/early", "condition=PodScheduled")
    said = "no NIC of this node has the 24G free that pod default/early asks for"
    wait_until(lambda: said in plane.kubectl("describe", "pod", "early"), "the event")
    assert plane.pod("early")["status"]["phase"] == "Pending"
    plane.kubectl("delete", "pod", "three", WITHIN)
    plane.wait_for("pod/early", "condition=Ready")
    assert extended.tenant_of("early")["min_bps"] == 24 * 10**9


def test_containers_start_again_when_the_node_has_forgotten(plane: ControlPlane, extended: Worker) -> None:
    """/run is empty after a reboot; the kubelet creates containers anew, and allocates nothing."""
    made = asking("one", 10)
    made["spec"]["containers"][0]["command"] = ["/bin/sh", "-c", "until [ -e /tmp/end ]; do sleep 0.2; done"]
    plane.apply(made)
    plane.wait_for("pod/one", "condition=Ready")
    extended.stop_router()
    shutil.rmtree(extended.state_dir)
    extended.start_router()
    assert extended.tenants() == {}
    extended.output("one", "touch", "/tmp/end")
    wait_until(lambda: plane.pod("one")["status"]["containerStatuses"][0]["restartCount"] == 1, "it to end")
    plane.wait_for("pod/one", "condition=Ready")
    assert "sluice0" in extended.output("one", "ibv_devinfo")
    assert extended.tenant_of("one")["min_bps"] == 10**10


def test_the_kubelet_and_the_router_come_back(plane: ControlPlane, extended: Worker) -> None:
    plane.apply(asking("one", 10))
    plane.wait_for("pod/one", "condition=Ready")
    extended.stop_router()
    extended.start_router()
    wait_until(lambda: allocatable(plane) == "35", "the units again")
    wait_until(lambda: len(extended.tenants()) == 1, "the tenant")
    assert "sluice0" in extended.output("one", "ibv_devinfo")
    extended.stop_router()
    plane.kubectl("delete", "pod", "one", WITHIN)
    extended.start_router()
    wait_until(lambda: not extended.tenants(), "what the pod had to be returned")


def test_more_is_offered_than_there_is(plane: ControlPlane, extended: Worker) -> None:
    with extended.changed(nics={"mlx5_0": "25G"}, over_commit=2):
        wait_until(lambda: allocatable(plane) == "50", "twice the NIC to be offered")
        for name, units in (("one", 30), ("two", 20)):
            plane.apply(asking(name, units))
            plane.wait_for(f"pod/{name}", "condition=Ready")
            assert extended.tenant_of(name)["min_bps"] == units * 10**9 // 2
        plane.apply(asking("late", 1))
        said = f"Insufficient {RESOURCE}"
        wait_until(lambda: said in plane.kubectl("describe", "pod", "late"), "the scheduler's event")
    wait_until(lambda: allocatable(plane) == "25", "one of two NICs to be offered again")


def test_quota_and_limits(plane: ControlPlane, extended: Worker) -> None:
    plane.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "bandwidth"},
            "spec": {"hard": {f"requests.{RESOURCE}": "15"}},
        },
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "bandwidth"},
            "spec": {"limits": [{"type": "Container", "max": {RESOURCE: "12"}}]},
        },
    )
    wait_until(lambda: plane.get("resourcequota", "bandwidth").get("status", {}).get("used"), "the quota to be counted")
    # The API server has both from a watch, as everybody.
    above = ("create", "--dry-run=server", "-f", "-")
    said = "maximum rdma.sluice.dev/bandwidth usage per Container is 12"
    wait_until(lambda: said in plane.try_kubectl(*above, stdin=yaml.safe_dump(asking("above", 13))).stderr, "the limit")
    plane.apply(asking("first", 10))

    def used() -> str:
        counted: str = plane.get("resourcequota", "bandwidth")["status"]["used"][f"requests.{RESOURCE}"]
        return counted

    wait_until(lambda: used() == "10", "the quota to be used")
    second = plane.try_kubectl("apply", "-f", "-", stdin=yaml.safe_dump(asking("second", 10)))
    assert "exceeded quota: bandwidth" in second.stderr
