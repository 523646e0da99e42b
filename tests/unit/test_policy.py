# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from sluice.policy.policy import Policy, PolicyError, check_name, load_policies


def test_fields_change_and_are_lifted() -> None:
    policy = Policy().changed({"max": "2Gbps", "max-mrs": "10"})
    assert (policy.max_bps, policy.max_mrs) == (2_000_000_000, 10)
    assert policy.fields() == {"max": "2Gbps", "max-mrs": "10"}
    assert policy.changed({"max": "none"}).fields() == {"max-mrs": "10"}


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("tenants:\n  a:\n    max: 10Gbps\n    burst: 1MiB\n  b:\n    max-mr-bytes: 8GiB\n")
    assert load_policies(path) == {"a": Policy(max_bps=10**10, burst=2**20), "b": Policy(max_mr_bytes=2**33)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the file is empty"),
        ("tenants:\n  a:\n    max: 10\n", ":3: tenants.a.max: '10' has no unit"),
        ("tenants:\n  a:\n    rate: 10Gbps\n", ":3: tenants.a.rate: no such field"),
        ("tenants:\n  a:\n    max: [1, 2]\n", ":3: tenants.a.max: one value belongs here"),
        ("tenants:\n  A_1:\n    max: 1Gbps\n", ":2: tenants: 'A_1' is not a tenant name"),
        ("tenants:\n  a:\n    max: 1Gbps\n  a:\n    max: 2Gbps\n", ":4: tenants.a: stands here twice"),
        ("tenants: 5\n", ":1: tenants.: a mapping belongs here"),
        ("tenant:\n  a: {}\n", ":1: tenant: no such field"),
        ("tenants:\n  a: {max: 1Gbps\n", ": not YAML"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as error:
        load_policies(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="No such file"):
        load_policies(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a/b", "..", "a" * 64, "a b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(PolicyError):
        check_name(name)
