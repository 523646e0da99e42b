# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes part without a cluster: quantities, parameters, claims, settings, NetworkPolicies, what is on disk."""

import socket
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes.aio", reason="the kubernetes extra is not installed")

from sluice.kubernetes.claim import ClaimError, Share, shares
from sluice.kubernetes.inventory import Nic, discover, trouble
from sluice.kubernetes.network_policy import End, Evaluation, NetworkPolicy
from sluice.kubernetes.parameters import FieldError, Parameters, parse_annotations, parse_parameters
from sluice.kubernetes.pod import Pod, selects
from sluice.kubernetes.policy import policy_of
from sluice.kubernetes.quantity import format_quantity, parse_quantity
from sluice.kubernetes.settings import SettingsError, load_settings
from sluice.kubernetes.state import Grant, State
from sluice.kubernetes.twin import renew

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
    assert found == [Share("rdma", "eth0", 10**10, "s", Parameters(max=2 * 10**10, weight=2))]
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
        ("nics: {eth0: fast}", "nics: eth0: 'fast' is not a bandwidth"),
        ("over-commit: 0.5", "over-commit: 0.5 is not a ratio"),
        ("request: {min: 1G, default: 500M}", "request: default: must be min"),
        ("device-plugin: true", "device-plugin: only with dra: false"),
        ("dra: maybe", "dra: 'maybe' is neither true nor false"),
        ("cdi-dir: cdi", "cdi-dir: 'cdi' is not an absolute path"),
        ("nic: {eth0: 1G}", "nic: no such field; there are node"),
        ("- a", "a mapping belongs here"),
        ("a: [", "while parsing"),
    ],
)
def test_settings_name_file_and_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: str) -> None:
    monkeypatch.setenv("NODE_NAME", "here")
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert error in str(raised.value)


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
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "rate").write_text("100 Gb/sec (4X EDR)\n")
    (port / "state").write_text("4: ACTIVE\n")
    (nic,) = discover(tmp_path / "sys", tmp_path / "proc")
    assert (nic.name, nic.interface, nic.bandwidth_bps, nic.rdma) == ("mlx5-0", "mlx5_0", 10**11, True)


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


def test_grants_survive(tmp_path: Path) -> None:
    state = State(tmp_path)
    grant = Grant("u", "ns", "c", "p", "pu", "t", (Share("r", "eth0", 5, "s", Parameters(max=7)),), ("eth0-1",))
    state.save(grant)
    (tmp_path / "broken.json").write_text('{"uid": "x"')
    assert list(state.load()) == [grant]
    state.remove("u")
    assert list(state.load()) == []


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


def test_the_port_of_the_connection_manager() -> None:
    spec = ingress(ports=[{"protocol": "TCP", "port": 7000}])
    assert rules(spec).refusal(CLIENT, SERVER) != ""
    assert rules(spec).refusal(CLIENT, SERVER, port=7000) == ""
    assert rules(spec).refusal(CLIENT, SERVER, port=7001) != ""


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
