# SPDX-License-Identifier: Apache-2.0
"""Promises and the capacity: what is refused, with the arithmetic, and what the engine is told."""

from collections.abc import Iterator

import pytest
from sluice.engine import Engine
from sluice.policy.hierarchy import Capacity, Hierarchy
from sluice.policy.policy import GroupPolicy, Policy, PolicyError

GBPS = 10**9


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as running:
        yield running


@pytest.fixture
def hierarchy(engine: Engine) -> Hierarchy:
    return Hierarchy(engine, Capacity(10 * GBPS, True))


def test_guarantees_within_the_capacity(hierarchy: Hierarchy) -> None:
    hierarchy.add_tenant("a", Policy(min_bps=6 * GBPS))
    with pytest.raises(PolicyError, match=r"capacity, egress: a 6Gbps \+ b 5Gbps = 11Gbps > 10Gbps"):
        hierarchy.add_tenant("b", Policy(min_bps=5 * GBPS))
    hierarchy.add_tenant("b", Policy(min_bps=4 * GBPS))
    with pytest.raises(PolicyError, match=r"capacity, ingress: a 6Gbps .* 5Gbps"):
        hierarchy.set_tenant("b", Policy(min_bps=4 * GBPS, min_ingress_bps=5 * GBPS))
    assert hierarchy.tenants["b"] == Policy(min_bps=4 * GBPS)
    hierarchy.remove_tenant("a")
    hierarchy.set_tenant("b", Policy(min_bps=10 * GBPS))
    with pytest.raises(PolicyError, match="> 9Gbps"):
        hierarchy.apply(capacity=Capacity(9 * GBPS, True))


def test_groups(hierarchy: Hierarchy) -> None:
    with pytest.raises(PolicyError, match="no group 'team'; there are: none yet"):
        hierarchy.add_tenant("a", Policy(group="team"))
    hierarchy.set_group("team", GroupPolicy(min_bps=5 * GBPS, max_bps=8 * GBPS))
    hierarchy.add_tenant("a", Policy(group="team", min_bps=3 * GBPS))
    with pytest.raises(PolicyError, match=r"group's guarantee, egress: a 3Gbps \+ b 3Gbps = 6Gbps > 5Gbps"):
        hierarchy.add_tenant("b", Policy(group="team", min_bps=3 * GBPS))
    hierarchy.add_tenant("b", Policy(group="team"))
    with pytest.raises(PolicyError, match=r"c 6Gbps \+ group team 5Gbps"):
        hierarchy.add_tenant("c", Policy(min_bps=6 * GBPS))
    with pytest.raises(PolicyError, match="still has tenants: a, b"):
        hierarchy.remove_group("team")
    hierarchy.remove_tenant("a")
    hierarchy.set_tenant("b", Policy())
    hierarchy.remove_group("team")
    with pytest.raises(PolicyError, match="no group 'team'"):
        hierarchy.remove_group("team")


def test_all_or_nothing(hierarchy: Hierarchy) -> None:
    hierarchy.add_tenant("a", Policy(max_bps=GBPS))
    with pytest.raises(PolicyError):
        hierarchy.apply(groups={"team": GroupPolicy()}, tenants={"a": Policy(group="team", min_bps=11 * GBPS)})
    assert hierarchy.groups == {} and hierarchy.tenants == {"a": Policy(max_bps=GBPS)}


def test_a_measured_capacity_is_plausible(engine: Engine) -> None:
    hierarchy = Hierarchy(engine)
    assert 10**9 < hierarchy.capacity.bps < 10**13 and not hierarchy.capacity.wire
