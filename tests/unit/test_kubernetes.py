# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes part without a cluster: quantities, parameters, claims, settings, NetworkPolicies, what is on disk,
and what a node's router makes of grants."""

import asyncio
import copy
import dataclasses
import json
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("kubernetes.aio", reason="the kubernetes extra is not installed")

from sluice.control.router import Router
from sluice.device.node import DeviceSpec
from sluice.kubernetes import protocol
from sluice.kubernetes.api import OPEN, TRIES, Api, ApiError
from sluice.kubernetes.attachments import Attachments, tenant_name
from sluice.kubernetes.cdi import Injection, Specifications, userfaultfd
from sluice.kubernetes.claim import ClaimError, Share, shares
from sluice.kubernetes.claim_status import ClaimStatus
from sluice.kubernetes.device_plugin import Plugin
from sluice.kubernetes.devices import devices_of
from sluice.kubernetes.directory import PodDirectory
from sluice.kubernetes.events import BURST, REPEAT_SECONDS, Events, Subject
from sluice.kubernetes.gate import PolicyGate
from sluice.kubernetes.inventory import Nic, configured, discover, trouble
from sluice.kubernetes.network_policy import End, Evaluation, NetworkPolicy
from sluice.kubernetes.parameters import FieldError, Parameters, live_of, parse_annotations, parse_parameters
from sluice.kubernetes.pod import Pod, read_pod, selects
from sluice.kubernetes.policy import policy_of
from sluice.kubernetes.quantity import format_quantity, parse_quantity
from sluice.kubernetes.settings import Settings, SettingsError, load_settings
from sluice.kubernetes.slices import Publisher
from sluice.kubernetes.state import Grant, State
from sluice.kubernetes.twin import renew
from sluice.kubernetes.watch import Watch

KIND = {"apiVersion": "rdma.sluice.dev/v1", "kind": "Bandwidth"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10G", 10**10),
        ("10e9", 10**10),
        ("1500M", 15 * 10**8),
        ("1Gi", 2**30),
        ("0.5", 1),
        ("100m", 1),
        ("25000000000", 25 * 10**9),
    ],
)
def test_quantities(text: str, value: int) -> None:
    assert parse_quantity(text) == value
    assert parse_quantity(format_quantity(value)) == value


@pytest.mark.parametrize("text", ["", "ten", "10X", "10 G", "--1", "1e999"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|suffix"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"max": "20X"}, r"p\.max: '20X' is not a bandwidth"),
        ({"max": 20}, r"p\.max: '20' is out of range"),
        ({"burst": "much"}, r"p\.burst: 'much' is not a size"),
        ({"weight": 0}, r"p\.weight: '0' is not a weight"),
        ({"libc": "dietlibc"}, r"p\.libc: 'dietlibc' is not known: write glibc or musl"),
        ({"maximum": "1G"}, r"p\.maximum: no such field; there are max"),
        ({"kind": "Bandwith"}, r"p\.kind: 'Bandwith' is not known: write Bandwidth"),
    ],
)
def test_bad_parameters_are_named(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(FieldError, match=error):
        parse_parameters(KIND | fields, "p")


def test_annotations() -> None:
    assert parse_annotations({"rdma.sluice.dev/max": "2Gbps", "other": "x"}) == {"max": 2 * 10**9}
    both = parse_annotations({"rdma.sluice.dev/max": "2G", "rdma.sluice.dev/sluice1.max": "1G", "sluice1.min": "1G"})
    assert both == {"max": 2 * 10**9, "sluice1.max": 10**9}
    assert [live_of(both, device) for device in ("sluice0", "sluice1")] == [{"max": 2 * 10**9}, {"max": 10**9}]
    with pytest.raises(FieldError, match=r"metadata\.annotations\[rdma\.sluice\.dev/weight\]: 'x' is not a weight"):
        parse_annotations({"rdma.sluice.dev/weight": "x"})


def claim(config: list[dict[str, Any]], amount: str = "10G") -> dict[str, Any]:
    result = {"request": "rdma", "driver": "rdma.sluice.dev", "pool": "here", "device": "eth0", "shareID": "s"}
    results = [
        result | {"consumedCapacity": {"bandwidth": amount}},
        result | {"driver": "other"},
        result | {"pool": "there"},
    ]
    spec = [{"opaque": entry["opaque"]} for entry in config if entry.get("source") == "FromClaim"]
    return {
        "spec": {"devices": {"config": spec}},
        "status": {"allocation": {"devices": {"results": results, "config": config}}},
    }


def opaque(source: str, **fields: Any) -> dict[str, Any]:
    return {"source": source, "opaque": {"driver": "rdma.sluice.dev", "parameters": KIND | fields}}


def test_what_a_claim_got() -> None:
    found = shares(claim([opaque("FromClass", max="30G", weight=2), opaque("FromClaim", max="20G")]), "here")
    of_class = Parameters(max=3 * 10**10, weight=2)
    assert found == [Share("rdma", "eth0", 10**10, "s", Parameters(max=2 * 10**10, weight=2), of_class)]
    with pytest.raises(FieldError, match=r"parameters\.max: 40G is more than the DeviceClass lets anybody have, 30G"):
        shares(claim([opaque("FromClass", max="30G"), opaque("FromClaim", max="40G")]), "here")
    with pytest.raises(FieldError, match=r"parameters\.weight: 9 is more than the DeviceClass lets anybody have, 2"):
        shares(claim([opaque("FromClass", weight=2), opaque("FromClaim", weight=9)]), "here")
    with pytest.raises(FieldError, match=r"spec\.devices\.config\[0\]\.opaque\.parameters\.max"):
        shares(claim([opaque("FromClass", max="30G"), opaque("FromClaim", max="-1")]), "here")
    with pytest.raises(FieldError, match="a ceiling can't be below the guarantee"):
        shares(claim([opaque("FromClaim", max="5G")]), "here")
    with pytest.raises(ClaimError, match="not allocated"):
        shares({"spec": {}, "status": {}}, "here")
    with pytest.raises(ClaimError, match="nothing of node elsewhere"):
        shares(claim([]), "elsewhere")


def test_shares_add_up_to_one_policy() -> None:
    both = [
        Share("a", "eth0", 4 * 10**9, "", Parameters(max=6 * 10**9)),
        Share("b", "eth1", 10**9, "", Parameters(max=10**9)),
    ]
    assert policy_of(both, 1.0, {}).max_bps == 7 * 10**9
    assert policy_of([*both, Share("c", "eth1", 10**9)], 1.0, {}).max_bps == 0
    assert policy_of(both, 1.0, {"max": 10**9}).max_bps == 10**9
    assert policy_of(both, 2.0, {}).min_bps == 25 * 10**8
    assert policy_of(both, 1.0, {"min": 10**9}).min_bps == 10**9
    assert policy_of(both, 1.0, {"min": 10**11}).min_bps == 5 * 10**9


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nics: {eth0: fast}", ":1: nics: eth0: 'fast' is not a bandwidth"),
        ("port: 7471\nnics:\n  eth0: 1G\n  eth1: fast", ":4: nics: eth1: 'fast' is not a bandwidth"),
        ("nics:\n  a_b: 1G\n  a-b: 1G", ":3: nics: a-b: a_b and this would both be device 'a-b' of the node"),
        ("nics: {'-': 1G}", ":1: nics: -: '-' is not a NIC's name"),
        ("nics:\n  eth0: 1G\n  eth0: 2G", ":3: nics.eth0: stands here twice, in line 2 too"),
        ("over-commit: 0.5", ":1: over-commit: 0.5 is not a ratio"),
        ("request: {min: 1G, default: 500M}", ":1: request: default: must be min"),
        ("request:\n  default: 1G\n  max: 1G", ":3: request: max: no such field"),
        ("device-plugin: true", ":1: device-plugin: only with dra: false"),
        ("dra: maybe", ":1: dra: 'maybe' is neither true nor false"),
        ("dra: true\ndra: false", ":2: dra: stands here twice, in line 1 too"),
        ("cdi-dir: cdi", ":1: cdi-dir: 'cdi' is not an absolute path"),
        ("\nnic: {eth0: 1G}", ":2: nic: no such field; there are node"),
        ("nics: {eth0: 50M}", ": request: min: 100M is more than NIC eth0 has, 50M"),
        (
            "nics: {eth0: 1G, eth1: 2G}\ndra: false\ndevice-plugin: true\nunit: 10G",
            ":4: unit: 10G is more than any NIC has: the most is 2G, of eth1",
        ),
        ("- a", ":1: a mapping belongs here"),
        ("a: [", ":1: not YAML: expected the node content"),
    ],
)
def test_settings_name_file_and_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: str) -> None:
    monkeypatch.setenv("NODE_NAME", "here")
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(file)
    assert str(raised.value).startswith(f"{file}{error}")


def test_the_kernel_tells_the_nics(tmp_path: Path) -> None:
    route = tmp_path / "proc/net/route"
    route.parent.mkdir(parents=True)
    route.write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU\neth0 00000000 01 3 0 0 0 00000000 0\n"
    )
    speed = tmp_path / "sys/class/net/eth0/speed"
    speed.parent.mkdir(parents=True)
    speed.write_text("25000\n")
    assert [(nic.name, nic.bandwidth_bps) for nic in discover(tmp_path / "sys", tmp_path / "proc")] == [
        ("eth0", 25 * 10**9)
    ]
    for mtu, carried in (("1500\n", 235), ("9000\n", 247)):
        (speed.parent / "mtu").write_text(mtu)
        assert [nic.bandwidth_bps for nic in discover(tmp_path / "sys", tmp_path / "proc")] == [carried * 10**8]
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "rate").write_text("100 Gb/sec (4X EDR)\n")
    (port / "state").write_text("4: ACTIVE\n")
    (nic,) = discover(tmp_path / "sys", tmp_path / "proc")
    assert (nic.name, nic.interface, nic.bandwidth_bps, nic.rdma) == ("mlx5-0", "mlx5_0", 10**11, True)
    # Each port is one.
    second = tmp_path / "sys/class/infiniband/mlx5_0/ports/2"
    second.mkdir()
    for file in port.iterdir():
        (second / file.name).write_text(file.read_text())
    found = discover(tmp_path / "sys", tmp_path / "proc")
    assert [(nic.name, nic.interface) for nic in found] == [("mlx5-0", "mlx5_0"), ("mlx5-0-2", "mlx5_0:2")]
    (second / "state").write_text("1: DOWN\n")
    assert trouble(found[1], tmp_path / "sys") == "port 2 of mlx5_0 is DOWN" and not trouble(found[0], tmp_path / "sys")


def test_the_kernel_tells_what_is_wrong_with_a_nic(tmp_path: Path) -> None:
    state = tmp_path / "class/infiniband/mlx5_0/ports/1/state"
    state.parent.mkdir(parents=True)
    operstate = tmp_path / "class/net/eth0/operstate"
    operstate.parent.mkdir(parents=True)
    rdma, ethernet, unknown = (Nic(name, 10**9, name) for name in ("mlx5_0", "eth0", "other"))
    state.write_text("4: ACTIVE\n")
    operstate.write_text("up\n")
    assert [trouble(each, tmp_path) for each in (rdma, ethernet, unknown)] == ["", "", ""]
    state.write_text("1: DOWN\n")
    operstate.write_text("lowerlayerdown\n")
    assert trouble(rdma, tmp_path) == "port 1 of mlx5_0 is DOWN"
    assert trouble(ethernet, tmp_path) == "eth0 is lowerlayerdown"
    rdma, ethernet, unknown = (configured(name, 10**9, tmp_path) for name in ("mlx5_0", "eth0", "other"))
    assert [(each.name, each.rdma) for each in (rdma, ethernet, unknown)] == [
        ("mlx5-0", True),
        ("eth0", False),
        ("other", False),
    ]
    shutil.rmtree(tmp_path / "class")
    assert [trouble(each, tmp_path) for each in (rdma, ethernet, unknown)] == ["mlx5_0 is gone", "eth0 is gone", ""]


class ApiServer:
    """Keeps one node and one slice. taints: whether it knows them."""

    def __init__(self, taints: bool) -> None:
        self.taints = taints
        self.slice: dict[str, Any] | None = None
        self.writes = 0

    async def get(self, path: str) -> dict[str, Any]:
        if path.startswith("/api/v1/nodes/"):
            return {"metadata": {"uid": "node-uid"}}
        if self.slice is None:
            raise ApiError(404, "not found")
        return self.slice

    async def create(self, _path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.writes += 1
        self.slice = copy.deepcopy(body)
        self.slice["metadata"]["resourceVersion"] = str(self.writes)
        if not self.taints:
            for each in self.slice["spec"]["devices"]:
                each.pop("taints", None)
        return self.slice

    replace = create


@pytest.mark.parametrize("knows_taints", [True, False])
def test_nobody_is_placed_on_a_nic_without_a_link(monkeypatch: pytest.MonkeyPatch, knows_taints: bool) -> None:
    wrong = {"right": ""}
    monkeypatch.setattr("sluice.kubernetes.slices.trouble", lambda nic: wrong.get(nic.name, ""))
    server, said = ApiServer(knows_taints), []

    class Said:
        def inform(self, _subject: Any, reason: str, _action: str, note: str) -> None:
            said.append((reason, note))

        warn = inform

    async def body() -> None:
        api: Any = server
        events: Any = Said()
        publisher = Publisher(api, Settings("here", nics=NICS), {}, events)
        following = asyncio.create_task(publisher.follow())

        async def published(count: int) -> list[Any]:
            """The taints after so many writes, of which each is the last: nothing is asked for again."""
            await asyncio.wait_for(publisher.disturbed(), 30)
            await publisher.publish()
            await publisher.publish()
            assert server.writes == count
            assert server.slice is not None
            return [each.get("taints") for each in server.slice["spec"]["devices"]]

        assert await published(1) == [None, None]
        assert said == [("BandwidthPublished", "pods may have 10G of left, 10G of right")]
        wrong["right"] = "right0 is gone"
        tainted = [{"key": "rdma.sluice.dev/unusable", "effect": "NoSchedule"}]
        assert await published(2) == [None, tainted if knows_taints else None]
        assert said[-2:] == [
            ("BandwidthPublished", "pods may have 10G of left"),
            ("NICUnusable", "right0 is gone: pods are placed elsewhere until it is up"),
        ]
        wrong["right"] = ""
        if knows_taints:
            assert await published(3) == [None, None]
        following.cancel()

    asyncio.run(body())


def test_a_kubeconfig_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="kubeconfig"):
        asyncio.run(Api.connect(tmp_path / "kubeconfig"))


def test_grants_survive(tmp_path: Path) -> None:
    state = State(tmp_path)
    grant = Grant(
        "u",
        "ns",
        "c",
        "p",
        "pu",
        "t",
        (Share("r", "eth0", 5, "s", Parameters(max=7), Parameters(weight=9)),),
        ("eth0-1",),
    )
    state.save(grant)
    (tmp_path / "broken.json").write_text('{"uid": "x"')
    assert list(state.load()) == [grant]
    state.remove("u")
    assert list(state.load()) == []


def test_events_of_one_object_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a pod does, and to how many others."""
    now = [1000.0]
    monkeypatch.setattr("sluice.kubernetes.events.time.monotonic", lambda: now[0])
    api: Any = None
    events = Events(api, "here")
    pod, other = (Subject("v1", "Pod", "ns", name, name) for name in ("pod", "other"))

    def said(subject: Subject, count: int) -> int:
        return sum(events.warn(subject, "R", "A", f"{now[0]}: {number}") for number in range(count))

    assert said(pod, 1000) == BURST
    assert said(other, 1) == 1, "the others' are not fewer for it"
    now[0] += REPEAT_SECONDS / 2
    assert said(pod, 10) == 0
    now[0] += REPEAT_SECONDS
    assert said(pod, 10) == 1
    assert not events.warn(pod, "R", "A", f"{now[0]}: 0"), "said before"
    now[0] += 1000 * REPEAT_SECONDS
    assert said(pod, 1000) == BURST


class Moody(Api):
    """An API server that answers as it is told, and then well. asked: each request's method, path and body."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.asked: list[tuple[str, str, Any]] = []

    async def request(self, method: str, path: str, body: Any = None, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked.append((method, path, copy.deepcopy(body)))
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            raise ApiError(status, f"not now ({status})")
        return {"metadata": {"uid": "uid"}}

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"type": OPEN}
        await asyncio.Event().wait()


def until_idle(monkeypatch: pytest.MonkeyPatch, api: Moody, work: Any, requests: int) -> None:
    """work.run() until so many requests have been made, and one turn of the loop more; without waiting."""
    monkeypatch.setattr("sluice.kubernetes.api.pause", lambda _failures: 0)

    async def run() -> None:
        running = asyncio.create_task(work.run())
        while len(api.asked) < requests:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()

    asyncio.run(run())
    assert len(api.asked) == requests


def test_events_wait_for_the_api_server(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """However long it is away; not for what it refuses, or can't do in several tries."""
    pod = Subject("v1", "Pod", "ns", "pod", "uid")

    def sent(*statuses: int) -> list[str]:
        caplog.clear()
        api = Moody(*statuses)
        events = Events(api, "here")
        for note in ("first", "second"):
            events.warn(pod, "R", "A", note)
        until_idle(monkeypatch, api, events, len(statuses) + 1)
        assert len({body["metadata"]["name"] for _, _, body in api.asked}) == 2, "none twice"
        return [body["note"] for _, _, body in api.asked]

    assert sent(*[0] * 20, 500, 429, 200) == ["first"] * 23 + ["second"]
    assert sent(0, 409) == ["first", "first", "second"], "the first answer got lost"
    assert "not sent" not in caplog.text
    assert sent(403) == ["first", "second"]
    assert "event not sent: Pod ns/pod: first: not now" in caplog.text
    assert sent(*[503] * TRIES) == ["first"] * TRIES + ["second"]


def test_a_watch_tells_each_trouble_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """And its end: who mends one sees the next."""
    monkeypatch.setattr("sluice.kubernetes.watch.pause", lambda _failures: 0)
    api = Moody(0, 0, 403, 403, 0)
    watch: Watch[Pod] = Watch(api, "/api/v1/pods", read_pod, lambda _old, _new: None)
    until_idle(monkeypatch, api, watch, 6)
    told = ("not now (0)", "not now (403)", "not now (0)", "the API server answers again")
    assert caplog.messages == [f"watching /api/v1/pods: {text}" for text in told]
    assert watch.reachable and not watch.error


def test_a_claims_status_is_written_again_after_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Moody(200, 409, 0, 200, 200)
    status = ClaimStatus(api, "here")
    grant = Grant("uid", "ns", "claim", "pod", "pod-uid", "tenant", (Share("r", "left", GBPS),))
    status.attached(grant, IPv4Address("10.0.0.1"), {"left": "sluice0"})
    until_idle(monkeypatch, api, status, 5)
    assert [method for method, _, _ in api.asked] == ["GET", "PATCH", "GET", "GET", "PATCH"]


# ---- NetworkPolicy -----------------------------------------------------------


def end(name: str, address: str, namespace: str = "a", **labels: str) -> End:
    at = IPv4Address(address)
    return End(at, Pod(namespace, name, name, "n", at, False, False, labels, {}, {"rdma": (4791, "UDP")}))


SERVER, CLIENT = end("server", "10.0.0.1", app="server"), end("client", "10.0.0.2", app="client")
FOREIGN = end("foreign", "10.0.0.3", "b", app="client")
OUTSIDE = End(IPv4Address("192.0.2.1"), None)


def rules(*specs: dict[str, Any]) -> Evaluation:
    made = [NetworkPolicy("a", f"p{index}", spec) for index, spec in enumerate(specs)]
    return Evaluation(made, lambda name: {"name": name})


TO_SERVER: dict[str, Any] = {"podSelector": {"matchLabels": {"app": "server"}}}


def ingress(*peers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return TO_SERVER | {"policyTypes": ["Ingress"], "ingress": [{"from": list(peers), **more}]}


def test_without_policies_all_is_open() -> None:
    assert rules().refusal(CLIENT, SERVER) == ""


@pytest.mark.parametrize(
    ("spec", "admitted"),
    [
        (TO_SERVER | {"policyTypes": ["Ingress"]}, []),
        (TO_SERVER | {"policyTypes": ["Egress"]}, [CLIENT, FOREIGN, OUTSIDE]),
        (TO_SERVER | {"ingress": [{}]}, [CLIENT, FOREIGN, OUTSIDE]),
        (ingress({"podSelector": {}}), [CLIENT]),
        (ingress({"podSelector": {"matchLabels": {"app": "other"}}}), []),
        (ingress({"namespaceSelector": {}}), [CLIENT, FOREIGN]),
        (ingress({"namespaceSelector": {"matchLabels": {"name": "b"}}}), [FOREIGN]),
        (ingress({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "x"}}}), []),
        (ingress({"ipBlock": {"cidr": "192.0.2.0/24"}}), [OUTSIDE]),
        (ingress({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.3/32"]}}), [CLIENT]),
        (ingress(ports=[{"protocol": "UDP", "port": 4791}]), [CLIENT, FOREIGN, OUTSIDE]),
        (ingress(ports=[{"protocol": "UDP", "port": 4000, "endPort": 5000}]), [CLIENT, FOREIGN, OUTSIDE]),
        (ingress(ports=[{"protocol": "UDP", "port": "rdma"}]), [CLIENT, FOREIGN, OUTSIDE]),
        (ingress(ports=[{"protocol": "UDP"}]), [CLIENT, FOREIGN, OUTSIDE]),
        (ingress(ports=[{"port": 4791}]), []),
    ],
)
def test_ingress(spec: dict[str, Any], admitted: list[End]) -> None:
    for source in (CLIENT, FOREIGN, OUTSIDE):
        assert (rules(spec).refusal(source, SERVER) == "") == (source in admitted), source


def test_egress_and_the_words() -> None:
    closed = {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]}
    text = rules(closed).refusal(CLIENT, SERVER)
    assert text == "no egress rule of NetworkPolicy p0 lets it through at pod a/client"
    to_server = closed | {"egress": [{"to": [{"podSelector": {"matchLabels": {"app": "server"}}}]}]}
    assert rules(closed, to_server).refusal(CLIENT, SERVER) == ""
    assert rules(closed, to_server).refusal(CLIENT, FOREIGN) != ""


def test_a_pod_reaches_itself() -> None:
    closed = TO_SERVER | {"policyTypes": ["Ingress", "Egress"]}
    assert rules(closed).refusal(SERVER, SERVER) == ""
    assert rules(closed).refusal(SERVER, CLIENT) != ""


def test_the_port_of_the_connection_manager() -> None:
    spec = ingress(ports=[{"protocol": "TCP", "port": 7000}])
    assert rules(spec).refusal(CLIENT, SERVER) != ""
    assert rules(spec).refusal(CLIENT, SERVER, port=7000) == ""
    assert rules(spec).refusal(CLIENT, SERVER, port=7001) != ""


class Forgetful:
    """Stands for a router without tenants. forgotten: the senders, None for all."""

    def __init__(self) -> None:
        self.tenants: dict[str, Any] = {}
        self.forgotten: list[IPv4Address | None] = []

    def forget_members(self, sender: IPv4Address | None = None) -> None:
        self.forgotten.append(sender)


def gated(*specs: dict[str, Any]) -> tuple[PolicyGate, PodDirectory, Forgetful]:
    """A gate that knows the pods SERVER, CLIENT and FOREIGN, and policies of their namespace a."""
    router: Any = Forgetful()
    api: Any = None
    directory = PodDirectory(api, lambda pod: pod.name, lambda old, new: gate.moved(old, new), lambda: gate.enforce())
    gate = PolicyGate(router, directory, Events(api, "here"))
    for index, spec in enumerate(specs):
        directory.policies.objects[f"p{index}"] = NetworkPolicy("a", f"p{index}", spec)
    for each in (SERVER, CLIENT, FOREIGN):
        directory._on_pod(None, each.pod)
    return gate, directory, router


def test_who_hears_whom_in_a_group() -> None:
    """A member that lets nobody in hears nobody, though it may be connected to the sender."""
    to_server = {"to": [{"podSelector": {"matchLabels": {"app": "server"}}}]}
    to_group = {"to": [{"ipBlock": {"cidr": "224.0.0.0/4"}}]}
    out = {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]}
    for specs, heard in (
        ([], True),
        ([TO_SERVER | {"policyTypes": ["Ingress"]}], False),
        ([ingress({"podSelector": {}})], True),
        ([ingress({"podSelector": {}}, ports=[{"port": 4791}])], False),
        ([out], False),
        ([out | {"egress": [to_group]}], False),
        ([out | {"egress": [to_server]}], True),
        ([out | {"egress": [to_server]}, TO_SERVER | {"policyTypes": ["Ingress"]}], False),
    ):
        gate, _, _ = gated(*specs)
        assert gate.delivers(CLIENT.address, SERVER.address) == heard, specs
        assert gate.delivers(SERVER.address, SERVER.address), "a pod hears itself"
        assert gate.forbidden == ({} if heard else {"a/client": 1})
    gate, _, _ = gated(TO_SERVER | {"policyTypes": ["Ingress"]})
    assert gate.admits(CLIENT.address, SERVER.address)


def test_what_is_known_of_a_sender_is_forgotten_in_time() -> None:
    gate, directory, router = gated(ingress({"podSelector": {}}))
    assert CLIENT.pod is not None
    late = dataclasses.replace(CLIENT.pod, name="late", uid="late", address=IPv4Address("10.0.0.9"))
    assert not gate.delivers(IPv4Address("10.0.0.9"), SERVER.address), "of whom nothing is known yet"
    assert gate.delivers(CLIENT.address, SERVER.address)
    # Others than senders are of no interest.
    directory._on_pod(FOREIGN.pod, None)
    assert router.forgotten == []
    directory._on_pod(None, late)
    assert router.forgotten == [late.address]
    assert gate.delivers(IPv4Address("10.0.0.9"), SERVER.address)
    directory._on_pod(late, dataclasses.replace(late, annotations={"other": "one"}))
    assert router.forgotten == [late.address]
    directory._on_pod(CLIENT.pod, dataclasses.replace(CLIENT.pod, ended=True))
    assert router.forgotten == [late.address, CLIENT.address]
    # New rules, or other labels: all of it.
    directory._on_pod(late, dataclasses.replace(late, labels={"app": "other"}))
    assert router.forgotten[2:] == [None]


def test_selectors() -> None:
    labels = {"app": "x"}
    assert selects({}, labels)
    assert not selects(None, labels)
    for operator, values, expected in (
        ("In", ["x"], True),
        ("NotIn", ["x"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
        ("Newer", [], False),
    ):
        assert (
            selects({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}, labels) is expected
        )


# ---- directories ------------------------------------------------------------


def test_a_twin_holds_what_the_original_does(tmp_path: Path) -> None:
    original, twin = tmp_path / "original", tmp_path / "twin"
    (original / "sys" / "class").mkdir(parents=True)
    (original / "sys" / "gid").write_text("1")
    (original / "link").symlink_to("sys/class")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(original / "control"))
        listener.listen()
        twin.mkdir()
        inode = twin.stat().st_ino
        (twin / "stale").mkdir()
        (twin / "stale" / "file").touch()
        for _ in range(2):
            renew(twin, original)
        assert sorted(each.name for each in twin.rglob("*")) == ["class", "control", "gid", "link", "sys"]
        assert (twin.stat().st_ino, (twin / "sys/gid").read_text()) == (inode, "1")
        client.connect(str(twin / "control"))
        listener.accept()[0].close()


# ---- a node ---------------------------------------------------------------------

GBPS = 10**9
NICS = tuple(Nic(name, 10 * GBPS, f"{name}0") for name in ("left", "right"))


@pytest.fixture
def root() -> Any:
    """A short path: sockets lie below."""
    path = Path(tempfile.mkdtemp(prefix="sk-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def on_a_node(root: Path, body: Callable[[Router, Attachments], None], **changed: Any) -> None:
    """body() with a router that has both NICs; what it leaves is there for the next one."""
    settings = Settings("here", nics=NICS, cdi_dir=root / "cdi", shim_dir=root / "shim", **changed)

    async def run() -> None:
        router = Router(root / "state", devices=devices_of(NICS, [], {}))
        try:
            body(router, Attachments(router, settings, lambda: None))
        finally:
            router.close()

    asyncio.run(run())


def granted(uid: str, *parts: tuple[str, int], tenant: str = "pod", max: int | None = None) -> Grant:
    found = tuple(Share(f"r{i}", nic, bps, "", Parameters(max=max)) for i, (nic, bps) in enumerate(parts))
    return Grant(uid, "ns", f"claim-{uid}", "pod", "pod-uid", tenant, found)


def devices_in(router: Router, tenant: str = "pod") -> dict[str, tuple[str, int, int]]:
    """What a pod sees: each device's NIC, guarantee and ceiling."""
    running = router.tenants[tenant]
    found = {}
    for device in running.devices:
        policy = running.policy_on(device.node)
        found[device.name] = (device.node.name, policy.min_bps, policy.max_bps)
    return found


def test_each_nic_of_a_pod_is_a_device(root: Path) -> None:
    def body(router: Router, attachments: Attachments) -> None:
        attachments.attach(granted("one", ("right", 4 * GBPS), max=6 * GBPS))
        assert devices_in(router) == {"sluice0": ("right", 4 * GBPS, 6 * GBPS)}
        # Another claim on another NIC, and one on the same: the NIC's parts add up.
        attachments.attach(granted("two", ("left", 3 * GBPS)))
        attachments.attach(granted("three", ("right", GBPS), max=2 * GBPS))
        both = {"sluice0": ("left", 3 * GBPS, 0), "sluice1": ("right", 5 * GBPS, 8 * GBPS)}
        assert devices_in(router) == both
        assert attachments.devices("pod") == {"left": "sluice0", "right": "sluice1"}
        rows = {nic["name"]: (nic["used_bps"], nic["tenants"]["pod"]) for nic in attachments.nics()}
        assert rows == {
            "left": (3 * GBPS, {"min_bps": 3 * GBPS, "max_bps": 0}),
            "right": (5 * GBPS, {"min_bps": 5 * GBPS, "max_bps": 8 * GBPS}),
        }
        attachments.detach("one")
        attachments.detach("three")
        assert devices_in(router) == {"sluice0": ("left", 3 * GBPS, 0)}
        attachments.attach(granted("four", ("right", 2 * GBPS)))
        assert devices_in(router)["sluice1"] == ("right", 2 * GBPS, 0)
        for uid in ("two", "four"):
            attachments.detach(uid)
        assert router.tenants == {} and all(not device.hierarchy.tenants for device in router.devices)

    on_a_node(root, body)


def test_a_pod_finds_the_same_devices_after_a_restart(root: Path) -> None:
    def before(router: Router, attachments: Attachments) -> None:
        attachments.attach(granted("a", ("right", 4 * GBPS)))
        attachments.attach(granted("b", ("left", 3 * GBPS)))

    def after(router: Router, attachments: Attachments) -> None:
        assert list(attachments.restore()) == []
        assert devices_in(router) == {"sluice0": ("left", 3 * GBPS, 0), "sluice1": ("right", 4 * GBPS, 0)}

    on_a_node(root, before)
    on_a_node(root, after)


def test_directories_of_nobody_go(root: Path) -> None:
    tenant = tenant_name("ns", "pod", "pod-uid")

    def before(router: Router, attachments: Attachments) -> None:
        attachments.attach(granted("a", ("left", GBPS), tenant=tenant))
        for name in (tenant_name("ns", "killed", "other"), "devices-0123456789abcdef", "somebody"):
            (router.state_dir / "tenants" / name).mkdir()

    def after(router: Router, attachments: Attachments) -> None:
        assert list(attachments.restore()) == []
        # Not what isn't named as a pod's: the node may have other tenants.
        assert {path.name for path in (router.state_dir / "tenants").iterdir()} == {tenant, "somebody"}

    on_a_node(root, before)
    on_a_node(root, after)


def test_a_container_gets_a_userfaultfd(tmp_path: Path) -> None:
    assert userfaultfd(tmp_path) == []
    number = tmp_path / "class/misc/userfaultfd/dev"
    number.parent.mkdir(parents=True)
    number.write_text("10:257\n")
    edits = Injection({}, [], userfaultfd(tmp_path))
    Specifications(tmp_path / "cdi").write("uid", edits)
    (made,) = (tmp_path / "cdi").glob("*.json")
    (device,) = json.loads(made.read_text())["devices"]
    # Any user of the container may open it; the runtime need not find it on its own /dev.
    assert device["containerEdits"]["deviceNodes"] == [
        {"path": "/dev/userfaultfd", "type": "c", "major": 10, "minor": 257, "fileMode": 0o666}
    ]


def test_a_claim_is_granted_as_a_whole(root: Path) -> None:
    def body(router: Router, attachments: Attachments) -> None:
        attachments.attach(granted("other", ("right", 8 * GBPS), tenant="other"))
        with pytest.raises(ClaimError, match="NIC right has 2G free of 10G, and 3G are asked for"):
            attachments.attach(granted("both", ("left", GBPS), ("right", 3 * GBPS)))
        assert "pod" not in router.tenants
        attachments.attach(granted("both", ("left", GBPS), ("right", 2 * GBPS)))
        assert list(devices_in(router)) == ["sluice0", "sluice1"]

    on_a_node(root, body)


def test_annotations_of_each_device(root: Path) -> None:
    def body(router: Router, attachments: Attachments) -> None:
        attachments.attach(granted("both", ("left", 4 * GBPS), ("right", 2 * GBPS)))
        attachments.set_annotations("pod", {"rdma.sluice.dev/max": "9G", "rdma.sluice.dev/sluice1.max": "5G"})
        now = {"sluice0": ("left", 4 * GBPS, 9 * GBPS), "sluice1": ("right", 2 * GBPS, 5 * GBPS)}
        assert devices_in(router) == now
        assert attachments.describe("pod") == "sluice0: min 4Gbps, max 9Gbps; sluice1: min 2Gbps, max 5Gbps"
        with pytest.raises(FieldError, match="the pod has no device sluice2; it has sluice0, sluice1"):
            attachments.set_annotations("pod", {"rdma.sluice.dev/sluice2.max": "5G"})
        with pytest.raises(FieldError, match="min: 3G is more than the 2G that are granted on sluice1"):
            attachments.set_annotations("pod", {"rdma.sluice.dev/min": "3G"})
        assert devices_in(router) == now
        attachments.set_annotations("pod", {"rdma.sluice.dev/sluice0.min": "3G"})
        assert devices_in(router) == {"sluice0": ("left", 3 * GBPS, 0), "sluice1": ("right", 2 * GBPS, 0)}

    on_a_node(root, body)


def test_annotations_keep_to_the_device_class(root: Path) -> None:
    def body(router: Router, attachments: Attachments) -> None:
        bounds = Parameters(max=6 * GBPS, weight=50)
        parts = tuple(Share(f"r{i}", "left", GBPS, "", bounds, bounds) for i in range(2))
        attachments.attach(Grant("one", "ns", "claim", "pod", "pod-uid", "pod", parts))
        assert devices_in(router) == {"sluice0": ("left", 2 * GBPS, 12 * GBPS)}
        attachments.set_annotations("pod", {"rdma.sluice.dev/max": "12G", "rdma.sluice.dev/weight": "50"})
        with pytest.raises(FieldError, match=r"metadata\.annotations: max: 13G is more than the DeviceClass"):
            attachments.set_annotations("pod", {"rdma.sluice.dev/max": "13G"})
        with pytest.raises(FieldError, match=r"metadata\.annotations: weight: 51 is more than"):
            attachments.set_annotations("pod", {"rdma.sluice.dev/sluice0.weight": "51"})
        # A claim of another class, which leaves it open.
        attachments.attach(granted("two", ("left", GBPS)))
        attachments.set_annotations("pod", {"rdma.sluice.dev/max": "13G"})
        assert devices_in(router) == {"sluice0": ("left", 3 * GBPS, 13 * GBPS)}

    on_a_node(root, body)


class Refused(Exception):
    """What the kubelet is told."""


class Caller:
    """A gRPC context."""

    async def abort(self, _code: Any, details: str) -> NoReturn:
        raise Refused(details)


def run(coroutine: Any) -> Any:
    """Of what doesn't wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def request_for(units: Sequence[str]) -> Any:
    request = protocol.message("v1beta1.AllocateRequest")()
    request.container_requests.add(devices_ids=units)
    return request


class Kubelet:
    """Gives any units that it takes for free, container by container, and starts pods as a kubelet does.

    It is the plugin's pod resources service, API server and event log as well. told: of what there is an Event.
    """

    def __init__(self, attachments: Attachments) -> None:
        self.attachments = attachments
        settings = Settings("here", nics=NICS, dra=False, device_plugin=True)
        me: Any = self
        self.plugin = Plugin(settings, attachments, me, me, self._find_pod, lambda _grant: None)
        self._held: dict[str, list[list[str]]] = {}
        self.told: list[str] = []

    async def holders(self) -> dict[tuple[str, str], tuple[str, ...]]:
        return {
            ("ns", name): tuple(sorted(unit for units in held for unit in units)) for name, held in self._held.items()
        }

    def _find_pod(self, namespace: str, name: str) -> Pod | None:
        return Pod(namespace, name, f"{name}-uid", "here", None, False, False, {}, {}, {})

    def warn(self, _subject: Any, reason: str, _action: str, note: str) -> None:
        self.told.append(f"{reason}: {note}")

    def offered(self) -> int:
        """Units that are healthy: what the scheduler counts with."""
        return sum(self.plugin.offered().values())

    def free(self) -> int:
        return self.offered() - sum(len(units) for held in self._held.values() for units in held)

    def allocate(self, name: str, size: int, again: Sequence[str] = (), init: bool = False) -> list[str]:
        """For the next container of a pod. again: what an init container had. init: it is one."""
        in_use = {unit for held in self._held.values() for units in held for unit in units}
        free = sorted(unit for unit, fine in self.plugin.offered().items() if fine and unit not in in_use)
        units = [*again, *reversed(free)][:size]
        assert len(units) == size
        run(self.plugin.Allocate(request_for(units), Caller()))
        if not init:
            self._held.setdefault(name, []).append(units)
        return units

    def start(self, units: Sequence[str]) -> None:
        """The container that has them. Refused."""
        run(
            self.plugin.PreStartContainer(
                protocol.message("v1beta1.PreStartContainerRequest")(devices_ids=units), Caller()
            )
        )

    def admit(self, name: str, *sizes: int) -> None:
        """A pod with so many units for each container."""
        for size in sizes:
            self.allocate(name, size)

    def start_all(self, name: str) -> str:
        """The pod's containers. Returns its NIC. Refused."""
        for units in self._held[name]:
            self.start(units)
        grant = self.attachments.grants[f"{name}-uid"]
        (share,) = grant.shares
        assert share.bps == sum(map(len, self._held[name])) * GBPS
        return share.nic

    def end(self, name: str) -> None:
        del self._held[name]
        self.attachments.detach(f"{name}-uid")
        self.plugin.returned()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no room hears it at once."""
    monkeypatch.setattr("sluice.kubernetes.device_plugin.PATIENCE", -1.0)


def on_a_node_without_dra(root: Path, body: Callable[[Router, Kubelet], None]) -> None:
    on_a_node(root, lambda router, attachments: body(router, Kubelet(attachments)))


def test_the_device_plugin_packs(root: Path) -> None:
    """Onto the fullest NIC with room; and offers what the emptiest has room for, so that no pod comes in vain."""

    def body(_router: Router, kubelet: Kubelet) -> None:
        assert (kubelet.offered(), kubelet.free()) == (10, 10), "20 in all, 10 for one pod"
        kubelet.admit("a", 4)
        assert kubelet.free() == 6, "nobody knows yet which NIC gives it"
        first = kubelet.start_all("a")
        assert kubelet.free() == 10, "of the other NIC"
        kubelet.admit("b", 7)
        second = kubelet.start_all("b")
        assert second != first
        # 6 and 3 are left.
        assert (kubelet.offered(), kubelet.free()) == (17, 6)
        kubelet.admit("c", 3)
        assert kubelet.start_all("c") == second, "the fullest that has room"
        assert kubelet.free() == 6
        kubelet.admit("d", 6)
        assert kubelet.start_all("d") == first
        assert (kubelet.offered(), kubelet.free()) == (20, 0)

    on_a_node_without_dra(root, body)


def test_a_pods_containers_have_one_nic(root: Path) -> None:
    """Also where the first one alone would be packed elsewhere; each has a directory of its own, of one tenant."""

    def body(router: Router, kubelet: Kubelet) -> None:
        kubelet.admit("other", 6)
        taken = kubelet.start_all("other")
        kubelet.admit("pod", 3, 5)
        nic = kubelet.start_all("pod")
        assert nic != taken
        (tenant,) = (name for name in router.tenants if name.startswith("ns-pod-"))
        assert devices_in(router, tenant) == {"sluice0": (nic, 8 * GBPS, 0)}
        assert len(kubelet.attachments.grants["pod-uid"].twins) == 2
        for name in ("pod", "other"):
            kubelet.end(name)
        assert router.tenants == {} and list((router.state_dir / "tenants").iterdir()) == []

    on_a_node_without_dra(root, body)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 10), min_size=1, max_size=3), st.booleans(), st.booleans()), max_size=30)
)
def test_what_the_scheduler_places_fits(pods: list[tuple[list[int], bool, bool]]) -> None:
    """Pods come, of several containers, several before the node has said what is left by now, some before the others
    have started; and go."""

    def body(_router: Router, kubelet: Kubelet) -> None:
        running: dict[str, int] = {}
        admitted: dict[str, int] = {}
        known = kubelet.free()
        for index, (sizes, told, starts) in enumerate(pods):
            name, size = f"p{index}", sum(sizes)
            if told:
                known = kubelet.free()
            if size <= known:
                kubelet.admit(name, *sizes)
                known -= size
                admitted[name] = size
            elif running:
                ended = next(iter(running))
                kubelet.end(ended)
                del running[ended]
                known = kubelet.free()
            if starts:
                for each in admitted:
                    kubelet.start_all(each)
                running |= admitted
                admitted.clear()
        for each in admitted:
            kubelet.start_all(each)
        used = sum(10 * GBPS - kubelet.attachments.free_bps(nic.name) for nic in NICS)
        assert used == sum((running | admitted).values()) * GBPS
        assert not kubelet.told

    folder = Path(tempfile.mkdtemp(prefix="sk-", dir="/tmp"))
    try:
        on_a_node_without_dra(folder, body)
    finally:
        shutil.rmtree(folder)


def test_init_containers_are_of_the_pod(root: Path) -> None:
    """What they have is the next ones', and the kubelet names them nowhere."""

    def body(router: Router, kubelet: Kubelet) -> None:
        first = kubelet.allocate("pod", 8, init=True)
        kubelet.allocate("pod", 3, again=first)
        kubelet.allocate("pod", 7, again=first[3:])
        kubelet.start(first)
        kubelet.start_all("pod")
        (tenant,) = router.tenants
        assert [device[1] for device in devices_in(router, tenant).values()] == [10 * GBPS]
        assert len(kubelet.attachments.grants["pod-uid"].twins) == 3
        kubelet.end("pod")
        assert list((router.state_dir / "tenants").iterdir()) == []

    on_a_node_without_dra(root, body)


@pytest.mark.usefixtures("impatient")
def test_bandwidth_of_init_containers_alone_is_refused(root: Path) -> None:
    def body(_router: Router, kubelet: Kubelet) -> None:
        units = kubelet.allocate("pod", 3, init=True)
        with pytest.raises(Refused, match="beyond its init containers"):
            kubelet.start(units)

    on_a_node_without_dra(root, body)


def test_a_nic_in_trouble_gives_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(_router: Router, kubelet: Kubelet) -> None:
        kubelet.admit("pod", 4)
        down = kubelet.start_all("pod")
        monkeypatch.setattr("sluice.kubernetes.device_plugin.trouble", lambda nic: "is down" * (nic.name == down))
        assert kubelet.offered() == 10, "the other's, and not those in use"

    on_a_node_without_dra(root, body)


@pytest.mark.usefixtures("impatient")
def test_a_pod_waits_for_a_nic_with_room(root: Path) -> None:
    """The scheduler had counted what scattered units would be together, or what is about to end."""

    def body(_router: Router, kubelet: Kubelet) -> None:
        for name, size in (("a", 4), ("b", 7)):
            kubelet.admit(name, size)
            kubelet.start_all(name)
        late = [f"unit-9{number}" for number in range(8)]
        run(kubelet.plugin.Allocate(request_for(late), Caller()))
        kubelet._held["late"] = [late]
        reason = "no NIC of this node has the 8G free that pod ns/late asks for: there are 6G of left, 3G of right"
        with pytest.raises(Refused, match=reason):
            kubelet.start_all("late")
        assert kubelet.told == [f"BandwidthAwaited: {reason}; it starts when one has"]
        assert kubelet.free() == 0, "nobody comes before who waits"
        kubelet.end("a")
        assert kubelet.start_all("late") == "left"
        assert kubelet.free() == 3

    on_a_node_without_dra(root, body)


@pytest.mark.usefixtures("impatient")
def test_what_no_nic_can_ever_give(root: Path) -> None:
    def body(_router: Router, kubelet: Kubelet) -> None:
        with pytest.raises(Refused, match="no NIC of this node ever has 11G for one container: the most is 10G"):
            run(kubelet.plugin.Allocate(request_for([f"unit-{number}" for number in range(11)]), Caller()))
        kubelet._held["wide"] = [[f"unit-{part}{number}" for number in range(6)] for part in range(2)]
        for units in kubelet._held["wide"]:
            run(kubelet.plugin.Allocate(request_for(units), Caller()))
        with pytest.raises(
            Refused, match="pod ns/wide asks for 12G in all its containers, and no NIC of this node ever"
        ):
            kubelet.start_all("wide")
        assert kubelet.free() == 10, "nobody waits for who waits in vain"

    on_a_node_without_dra(root, body)


def test_a_pod_that_was_not_admitted_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(_router: Router, kubelet: Kubelet) -> None:
        kubelet.allocate("gone", 4, init=True)
        kubelet.admit("pod", 1)
        monkeypatch.setattr("sluice.kubernetes.device_plugin.UNCLAIMED", -1.0)
        run(kubelet.plugin.forget_unclaimed())
        assert kubelet.offered() == 10 and kubelet.free() == 9

    on_a_node_without_dra(root, body)


def test_a_node_that_has_forgotten_everything(root: Path) -> None:
    """As after a reboot: the kubelet creates the containers anew, and does not allocate again."""

    def body(router: Router, kubelet: Kubelet) -> None:
        kubelet.admit("pod", 3, 5)
        nic = kubelet.start_all("pod")
        twins = set(kubelet.attachments.grants["pod-uid"].twins)
        kubelet.attachments.detach("pod-uid")
        assert list((router.state_dir / "tenants").iterdir()) == []
        assert kubelet.start_all("pod") == nic
        assert set(kubelet.attachments.grants["pod-uid"].twins) == twins
        assert {path.name for path in (router.state_dir / "tenants").iterdir()} > twins

    on_a_node_without_dra(root, body)


def test_a_container_that_waits_starts_when_something_ends(root: Path) -> None:
    async def body(kubelet: Kubelet) -> None:
        for name in ("a", "b", "c"):
            units = [f"unit-{name}{number}" for number in range(10)]
            await kubelet.plugin.Allocate(request_for(units), Caller())
            kubelet._held[name] = [units]
        start = protocol.message("v1beta1.PreStartContainerRequest")
        starts = {name: start(devices_ids=held[0]) for name, held in kubelet._held.items()}
        for name in ("a", "b"):
            await kubelet.plugin.PreStartContainer(starts[name], Caller())
        waiting = asyncio.create_task(kubelet.plugin.PreStartContainer(starts["c"], Caller()))
        while not kubelet.told:
            await asyncio.sleep(0)
        assert not waiting.done()
        kubelet.end("b")
        await waiting

    async def on_this_node() -> None:
        settings = Settings("here", nics=NICS, cdi_dir=root / "cdi", shim_dir=root / "shim")
        router = Router(root / "state", devices=devices_of(NICS, [], {}))
        try:
            await body(Kubelet(Attachments(router, settings, lambda: None)))
        finally:
            router.close()

    asyncio.run(on_this_node())


def test_the_routers_devices_are_the_settings_nics() -> None:
    chosen = [DeviceSpec("right0", "right0")]
    found = devices_of(NICS, chosen, {"left": GBPS})
    assert [(spec.name, spec.nic) for spec in found] == [("left", None), ("right", "right0")]
    # The NIC that the router opens keeps the sum to what it has by itself.
    assert [(spec.capacity.bps, spec.capacity.wire) for spec in found if spec.capacity] == [
        (GBPS, True),
        (10 * GBPS, False),
    ]
    for paced in (True, False):
        shaped = [spec.capacity.wire for spec in devices_of(NICS, chosen, {}, paced) if spec.capacity]
        assert shaped == [paced, False]
    # The RDMA device of the only interface.
    assert devices_of(NICS[:1], [DeviceSpec("rxe0", "rxe0")], {})[0].nic == "rxe0"
    # Each of them has its own; what auto finds beside them is left alone.
    auto = [DeviceSpec(name, name, found=True) for name in ("left0", "other0", "right0")]
    assert [spec.nic for spec in devices_of(NICS, auto, {})] == ["left0", "right0"]
    assert [spec.nic for spec in devices_of(NICS[:1], auto, {})] == ["left0"]
    assert [spec.nic for spec in devices_of(NICS[:1], auto[1:], {})] == ["other0"]
    with pytest.raises(ValueError, match="--device rxe0: is none of the settings' nics, which are left0, right0"):
        devices_of(NICS, [DeviceSpec("rxe0", "rxe0")], {})


def test_what_kubectl_refuses_is_what_the_driver_does() -> None:
    """deploy/kubernetes/validation.yaml says the parameters' names once more."""
    text = Path(__file__).parents[2].joinpath("deploy/kubernetes/validation.yaml").read_text()
    said = re.search(r"name in \[(.*?)\]", text)
    assert said is not None
    with pytest.raises(FieldError) as refused:
        parse_parameters({"apiVersion": "rdma.sluice.dev/v1", "kind": "Bandwidth", "nonsense": 1}, "parameters")
    known = str(refused.value).partition("there are ")[2].split(", ")
    assert known != [""]
    assert re.findall(r"'(\w+)'", said[1]) == ["apiVersion", "kind", *known]
