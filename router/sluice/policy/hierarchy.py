# SPDX-License-Identifier: Apache-2.0
"""The hierarchy of a device, its groups, their tenants: what was promised to whom, and whether it can be kept."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sluice.engine import Engine, Pair, Share, measure_copy
from sluice.policy.policy import GroupPolicy, Policy, PolicyError
from sluice.policy.rate import format_rate

log = logging.getLogger(__name__)

DIRECTIONS = ("egress", "ingress")


@dataclass(frozen=True)
class Capacity:
    """Bits per second in each direction. wire: all traffic together keeps to it; else it is what the engine can do."""

    bps: int
    wire: bool
    note: str = ""

    @classmethod
    def measured(cls, devices: int = 1) -> "Capacity":
        """What one thread copies between cold memory; each direction gets half, as both share the engine.

        devices: how many share it.
        """
        note = "half of what this machine was measured to copy"
        return cls(
            max(1, measure_copy() // 2 // devices), False, note if devices == 1 else f"one of {devices} parts of {note}"
        )

    def __str__(self) -> str:
        return format_rate(self.bps) + (f" ({self.note})" if self.note else "")


def _arithmetic(parts: Mapping[str, int]) -> str:
    """The sum as text, the largest first."""
    ordered = sorted((-bps, name) for name, bps in parts.items() if bps)
    shown = [f"{name} {format_rate(-bps)}" for bps, name in ordered[:6]]
    if len(ordered) > 6:
        rest = -sum(bps for bps, _ in ordered[6:])
        shown.append(f"{len(ordered) - 6} others {format_rate(rest)}")
    return f"{' + '.join(shown)} = {format_rate(sum(parts.values()))}"


def _by_group(tenants: Mapping[str, Policy]) -> dict[str, dict[str, Policy]]:
    """In one pass, as there may be thousands of tenants in hundreds of groups; "": those in none."""
    members: dict[str, dict[str, Policy]] = {}
    for name, policy in tenants.items():
        members.setdefault(policy.group, {})[name] = policy
    return members


def _check_group(name: str, group: GroupPolicy, members: Mapping[str, Policy], direction: int) -> int:
    """The group's guarantee: its own, or what its tenants' come to."""
    parts = {tenant: policy.guarantees[direction] for tenant, policy in members.items()}
    total = sum(parts.values())
    own, ceiling = group.guarantees[direction], group.ceilings[direction]
    for limit, what in ((own, "guarantee"), (ceiling, "ceiling")):
        if limit and total > limit:
            raise PolicyError(
                f"the guarantees in group {name!r} are more than the group's {what}, "
                f"{DIRECTIONS[direction]}: {_arithmetic(parts)} > {format_rate(limit)}",
                f"groups.{name}",
            )
    return max(own, total)


def check(capacity: Capacity, groups: Mapping[str, GroupPolicy], tenants: Mapping[str, Policy]) -> None:
    """PolicyError, with the arithmetic, where a promise couldn't be kept."""
    members = _by_group(tenants)
    for group_name, (name, *_) in members.items():
        if group_name and group_name not in groups:
            known = ", ".join(sorted(groups)) or "none yet"
            raise PolicyError(
                f"tenant {name!r}: there is no group {group_name!r}; there are: {known}", f"tenants.{name}.group"
            )
    for direction, word in enumerate(DIRECTIONS):
        parts = {
            f"group {name}": _check_group(name, group, members.get(name, {}), direction)
            for name, group in groups.items()
        }
        parts |= {name: policy.guarantees[direction] for name, policy in members.get("", {}).items()}
        if sum(parts.values()) > capacity.bps:
            raise PolicyError(
                f"guarantees are more than the device's capacity, {word}: {_arithmetic(parts)} > {capacity}",
                "device.capacity",
            )


class Hierarchy:
    """Keeps the engine's groups and shapes in step with policies. tenants: those that exist, by name."""

    def __init__(self, engine: Engine, capacity: Capacity | None = None, device: int = 0) -> None:
        """capacity None: measured now, which takes a tenth of a second. device: the engine's number of it."""
        self._engine = engine
        self._device = device
        self._given = capacity or Capacity.measured()
        self.capacity = self._given
        self.groups: dict[str, GroupPolicy] = {}
        self.tenants: dict[str, Policy] = {}
        self.group_numbers: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._shares: dict[str, Share] = {}
        self._engine.shape_device(self.capacity.bps, self.capacity.wire, device)

    def add_tenant(self, name: str, policy: Policy, of: int | None = None) -> int:
        """The engine's number of a new tenant. of: its number on its first device. PolicyError, OSError."""
        check(self.capacity, self.groups, self.tenants | {name: policy})
        number = self._engine.add_tenant(policy.shape(self.group_numbers.get(policy.group)), self._device, of)
        self.tenants[name] = policy
        self._numbers[name] = number
        self._shape_groups()
        return number

    def remove_tenant(self, name: str) -> None:
        self._engine.remove_tenant(self._numbers.pop(name))
        del self.tenants[name]
        self._shape_groups()

    def set_tenant(self, name: str, policy: Policy) -> None:
        self.apply(tenants={name: policy})

    def set_group(self, name: str, group: GroupPolicy) -> None:
        self.apply(groups={name: group})

    def remove_group(self, name: str) -> None:
        if name not in self.groups:
            raise PolicyError(f"there is no group {name!r}; there are: {', '.join(sorted(self.groups)) or 'none yet'}")
        members = sorted(tenant for tenant, policy in self.tenants.items() if policy.group == name)
        if members:
            raise PolicyError(f"group {name!r} still has tenants: {', '.join(members)}")
        self._drop_group(name)

    def would_accept(
        self,
        capacity: Capacity | None = None,
        groups: Mapping[str, GroupPolicy] | None = None,
        tenants: Mapping[str, Policy] | None = None,
        dropped: frozenset[str] = frozenset(),
    ) -> None:
        """PolicyError where apply() would refuse; tenants may be new ones too."""
        kept = {name: group for name, group in self.groups.items() if name not in dropped}
        check(capacity or self.capacity, kept | dict(groups or {}), self.tenants | dict(tenants or {}))

    def apply(
        self,
        capacity: Capacity | None = None,
        groups: Mapping[str, GroupPolicy] | None = None,
        tenants: Mapping[str, Policy] | None = None,
        dropped: frozenset[str] = frozenset(),
    ) -> None:
        """All of it or nothing: PolicyError. tenants: of those that exist. dropped: groups that go."""
        self.would_accept(capacity, groups, tenants, dropped)
        if capacity is not None and capacity != self.capacity:
            self.capacity = capacity
            self._engine.shape_device(capacity.bps, capacity.wire, self._device)
        for name, group in (groups or {}).items():
            if name not in self.group_numbers:
                self.group_numbers[name] = self._engine.add_group(replace(group.share(), min_bps=(0, 0)), self._device)
            self.groups[name] = group
        self.tenants |= tenants or {}
        for name, policy in (tenants or {}).items():
            self._engine.shape_tenant(self._numbers[name], policy.shape(self.group_numbers.get(policy.group)))
        for name in dropped & self.groups.keys():
            self._drop_group(name)
        self._shape_groups()

    def given_capacity(self, bps: int) -> Capacity:
        """What a file's capacity comes to; 0: as the router was started."""
        return Capacity(bps, True) if bps else self._given

    def _drop_group(self, name: str) -> None:
        self._engine.remove_group(self.group_numbers.pop(name))
        del self.groups[name]
        self._shares.pop(name, None)

    def _shape_groups(self) -> None:
        """A group's own guarantee in the engine is what it has beyond its tenants'."""
        members = _by_group(self.tenants) if self.groups else {}
        for name, group in self.groups.items():
            share = replace(group.share(), min_bps=_beyond(group, members.get(name, {})))
            # Setting a share forgives debts: only where it is another one.
            if self._shares.get(name) != share:
                self._shares[name] = share
                self._engine.shape_group(self.group_numbers[name], share)


def _beyond(group: GroupPolicy, members: Mapping[str, Policy]) -> Pair:
    guarantees = [policy.guarantees for policy in members.values()]
    egress, ingress = (sum(guarantee[direction] for guarantee in guarantees) for direction in (0, 1))
    return max(0, group.guarantees[0] - egress), max(0, group.guarantees[1] - ingress)
