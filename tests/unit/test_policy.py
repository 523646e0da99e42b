# SPDX-License-Identifier: Apache-2.0
import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from sluice.policy.file import load_policies
from sluice.policy.policy import GroupPolicy, Policy, PolicyError, check_name


def test_fields_change_and_are_lifted() -> None:
    policy = Policy().changed({"max": "2Gbps", "max-mrs": "10"})
    assert (policy.max_bps, policy.max_mrs) == (2_000_000_000, 10)
    assert policy.fields() == {"max": "2Gbps", "max-mrs": "10"}
    assert policy.changed({"max": "none"}).fields() == {"max-mrs": "10"}


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "device:\n  capacity: 100Gbps\n"
        "groups:\n  team: {min: 20Gbps, weight: 200}\n"
        "tenants:\n  a:\n    max: 10Gbps\n    burst: 1MiB\n    group: team\n    max-engine: 25%\n"
        "  b:\n    max-mr-bytes: 8GiB\n    min-egress: 1Gbps\n    scope: wire\n    max-ops: 10k\n  c: {ip: 10.1.0.5}\n"
    )
    whole = load_policies(path)
    assert whole.addresses == {"c": IPv4Address("10.1.0.5")}
    assert whole.lines["tenants.c.ip"] == 16
    file = whole.unnamed
    assert file.capacity == 10**11
    assert file.groups == {"team": GroupPolicy(min_bps=2 * 10**10, weight=200)}
    assert file.tenants == {
        "a": Policy(max_bps=10**10, burst=2**20, group="team", max_engine_ns=250_000_000),
        "b": Policy(max_mr_bytes=2**33, min_egress_bps=10**9, scope="wire", max_operations=10_000),
        "c": Policy(),
    }


def test_what_is_written_is_what_is_shown() -> None:
    fields = {
        "min": "1Gbps",
        "max": "2Gbps",
        "max-ingress": "3Gbps",
        "burst": "1MiB",
        "weight": "7",
        "group": "team",
        "scope": "wire",
        "max-ops": "1000",
        "max-verbs": "50",
        "max-engine": "12.5%",
        "max-qps": "9",
        "max-cqs": "8",
    }
    policy = Policy().changed(fields)
    assert policy.fields() == fields
    assert (policy.guarantees, policy.ceilings) == ((10**9, 10**9), (2 * 10**9, 3 * 10**9))
    assert Policy().changed(policy.changed(dict.fromkeys(fields, "none")).fields()) == Policy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the file is empty"),
        ("tenants:\n  a:\n    max: 10\n", ":3: tenants.a.max: '10' has no unit"),
        ("tenants:\n  a:\n    rate: 10Gbps\n", ":3: tenants.a.rate: no such field"),
        ("tenants:\n  a:\n    max: [1, 2]\n", ":3: tenants.a.max: one value belongs here"),
        ("tenants:\n  A_1:\n    max: 1Gbps\n", ":2: tenants: 'A_1' is not a tenant name"),
        ("tenants:\n  a:\n    max: 1Gbps\n  a:\n    max: 2Gbps\n", ":4: tenants.a: stands here twice"),
        ("tenants: 5\n", ":1: tenants: a mapping belongs here"),
        ("tenant:\n  a: {}\n", ":1: tenant: no such field"),
        ("tenants:\n  a: {max: 1Gbps\n", ": not YAML"),
        ("device:\n  capacity: 5\n", ":2: device.capacity: '5' has no unit"),
        ("device:\n  speed: 5Gbps\n", ":2: device.speed: no such field"),
        ("groups:\n  g:\n    max-ops: 5\n", ":3: groups.g.max-ops: no such field"),
        ("tenants:\n  a:\n    weight: 0\n", ":3: tenants.a.weight: '0' is not a weight"),
        ("tenants:\n  a:\n    max: 1Gbps\n    min: 2Gbps\n", ":4: tenants.a.min: the guarantee of 2Gbps"),
        ("tenants:\n  a:\n    scope: node\n", ":3: tenants.a.scope: 'node' is not a scope"),
        ("tenants:\n  a:\n    ip: 10.1.0\n", ":3: tenants.a.ip: '10.1.0' is not an IPv4 address"),
        (
            "tenants:\n  a:\n    ip: 10.1.0.5\n  b: {ip: 10.1.0.5}\n",
            ":4: tenants.b.ip: 10.1.0.5 is that of tenant 'a' (line 3) already",
        ),
        ("- a\n", ":1: a mapping belongs here"),
        ("tenants:\n  a:\n    rate: 10Gbps\n", "max-cqs, ip, devices"),
        ("tenants:\n  a:\n    min-egress: 2Gbps\n    max: 1Gbps\n", ":3: tenants.a.min-egress: the guarantee of 2Gbps"),
        ("tenants:\n  a: &limits {max: 1Gbps}\n  b: {<<: *limits}\n", ":3: tenants.b.<<: fields aren't merged"),
        ("tenants:\n  ? [a]\n  : {}\n", ":2: tenants: a name belongs before the colon"),
        ("tenants:\n  a:\n    max: 1\x01\n", ":3: not YAML: character '\\x01'"),
        ("a: 1\nb: {c: 2\n\n\n", "while parsing a flow mapping, from line 2 on"),
        ("a:\n  " + "[" * 100_000, ":2: not YAML: nested deeper than 32 levels"),
        ("#" * (1 << 20) + "\n", ": is longer than 1 MiB"),
        ("groups:\n  g: {ip: 10.1.0.5}\n", ":2: groups.g.ip: no such field"),
        ("tenants:\n  a:\n    max-engine: 0.5\n", ":3: tenants.a.max-engine: '0.5' is not a share"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as error:
        load_policies(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_what_stands_first_is_nothing_to_the_others(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("tenants:\n  a: {max: 2Gbps, min-egress: 5Gbps, max-egress: 10Gbps}\n")
    assert load_policies(path).unnamed.tenants["a"].guarantees == (5 * 10**9, 0)


def test_what_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes("tenants:\n  a: {}  # für\n".encode("latin-1"))
    with pytest.raises(PolicyError, match=r"policy.yaml:2: is not text in UTF-8: byte 0xfc"):
        load_policies(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    """Nobody who reads it waits for a pipe's writer."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(PolicyError, match="is not a regular file"):
        load_policies(pipe)
    with pytest.raises(PolicyError, match="Is a directory"):
        load_policies(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="No such file"):
        load_policies(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a/b", "..", "a" * 64, "a b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(PolicyError):
        check_name(name)
