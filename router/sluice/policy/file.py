# SPDX-License-Identifier: Apache-2.0
"""The policy file:

device:
  capacity: 100Gbps   # in each direction; without it what the engine can do bounds guarantees, nothing traffic
groups:
  team-a: {min: 20Gbps, max: 50Gbps, weight: 200}
tenants:
  training:
    group: team-a
    min: 10Gbps
    max-mr-bytes: 64GiB
  batch: {max: 500Mbps, weight: 10, scope: wire, ip: 10.1.0.5}

All this is about the router's first device. Others are named:

devices:
  mlx5_1: {capacity: 25Gbps}
groups:
  team-a: {min: 20Gbps, devices: {mlx5_1: {max: 10Gbps}}}
tenants:
  training: {min: 10Gbps, devices: {mlx5_1: {min: 5Gbps}}}   # has both
  backup: {devices: {mlx5_1: {max: 1Gbps}}}                  # has this one alone

It is applied as a whole or not at all.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

import yaml

from sluice.document import DocumentError, compose, entries, mistake
from sluice.policy.policy import GroupPolicy, Policy, PolicyError, check_name
from sluice.policy.rate import parse_rate

_Kind = TypeVar("_Kind", bound=GroupPolicy)


@dataclass(frozen=True)
class DevicePolicies:
    """What a file says of one device. capacity: bits per second, 0 where the file leaves it open."""

    capacity: int = 0
    groups: dict[str, GroupPolicy] = field(default_factory=dict)
    tenants: dict[str, Policy] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicyFile:
    """What a file says. devices: by name, "" where none is named. addresses: by tenant.

    lines: of each device, tenant, group and its own fields, by their names ("tenants.a.ip"). One that stands at several
    places has the first.
    """

    devices: dict[str, DevicePolicies] = field(default_factory=dict)
    addresses: dict[str, IPv4Address] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def unnamed(self) -> DevicePolicies:
        """What is said without naming a device."""
        return self.devices.get("", DevicePolicies())

    @property
    def tenants(self) -> set[str]:
        return {name for device in self.devices.values() for name in device.tenants}


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, int] = {}
        self.addresses: dict[str, IPv4Address] = {}

    def mistake(self, node: yaml.Node, where: str, text: object) -> DocumentError:
        return mistake(self.path, node, where, str(text))

    def stands(self, field: str, node: yaml.Node) -> None:
        self.lines.setdefault(field, node.start_mark.line + 1)

    def entries(self, node: yaml.Node, where: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null" and where:
            return {}
        return entries(self.path, node, where)

    def value(self, node: yaml.Node, key: yaml.Node, where: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.mistake(key, where, "one value belongs here, as in max: 2Gbps")
        return str(node.value)

    def policies(self, node: yaml.Node, where: str, none: _Kind, what: str) -> dict[str, dict[str, _Kind]]:
        """By device, "" where none is named, and by name."""
        policies: dict[str, dict[str, _Kind]] = {}
        more = ("ip", "devices") if what == "tenant" else ("devices",)
        for name, (key, value) in self.entries(node, where).items():
            here = f"{where}.{name}"
            try:
                check_name(name, what)
            except PolicyError as error:
                raise self.mistake(key, where, error) from None
            fields = self.entries(value, here)
            if what == "tenant" and "ip" in fields:
                self.address(name, *fields.pop("ip"))
            nobody = not fields
            _, of_devices = fields.pop("devices", (key, None))
            if fields or nobody:
                policies.setdefault("", {})[name] = self.policy(fields, here, none, more)
            for device, (place, of_device) in (
                {} if of_devices is None else self.entries(of_devices, f"{here}.devices")
            ).items():
                self.stands(f"devices.{device}", place)
                there = f"{here}.devices.{device}"
                policies.setdefault(device, {})[name] = self.policy(self.entries(of_device, there), there, none)
            self.stands(here, key)
        return policies

    def address(self, tenant: str, key: yaml.Node, value: yaml.Node) -> None:
        where = f"tenants.{tenant}.ip"
        text = self.value(value, key, where)
        try:
            address = IPv4Address(text)
        except ValueError:
            raise self.mistake(key, where, f"{text!r} is not an IPv4 address: write one as 10.1.0.5") from None
        for other, taken in self.addresses.items():
            if taken == address:
                line = self.lines[f"tenants.{other}.ip"]
                raise self.mistake(key, where, f"{address} is that of tenant {other!r} (line {line}) already")
        self.addresses[tenant] = address
        self.stands(where, key)

    def policy(
        self, fields: dict[str, tuple[yaml.Node, yaml.Node]], where: str, none: _Kind, more: tuple[str, ...] = ()
    ) -> _Kind:
        """more: fields that may stand here beside those of a policy."""
        texts = {}
        for name, (key, value) in fields.items():
            if name not in none.known_fields():
                known = ", ".join([*none.known_fields(), *more])
                raise self.mistake(key, f"{where}.{name}", f"no such field; there are {known}")
            texts[name] = self.value(value, key, f"{where}.{name}")
            self.stands(f"{where}.{name}", key)
        try:
            # All at once: which stands first is nothing to the others.
            return none.changed(texts)
        except PolicyError as error:
            text = str(error).removeprefix(f"{error.field}: ")
            raise self.mistake(fields[error.field][0], f"{where}.{error.field}", text) from None

    def capacity(self, node: yaml.Node, where: str) -> int:
        capacity = 0
        for name, (key, value) in self.entries(node, where).items():
            if name != "capacity":
                raise self.mistake(key, f"{where}.{name}", "no such field; there is only capacity")
            self.stands(f"{where}.capacity", key)
            text = self.value(value, key, f"{where}.capacity")
            try:
                capacity = parse_rate(text)
            except ValueError as error:
                raise self.mistake(key, f"{where}.capacity", error) from None
        return capacity


def load_policies(path: Path) -> PolicyFile:
    """All that a file says, or PolicyError with file:line: field: for the first mistake."""
    try:
        return _read(path)
    except DocumentError as error:
        raise PolicyError(str(error)) from None


def _read(path: Path) -> PolicyFile:
    root = compose(path)
    if root is None:
        raise DocumentError(f"{path}:1: the file is empty; 'tenants:' belongs here")
    reader = _Reader(path)
    capacities: dict[str, int] = {}
    groups: dict[str, dict[str, GroupPolicy]] = {}
    tenants: dict[str, dict[str, Policy]] = {}
    for name, (key, value) in reader.entries(root, "").items():
        if name == "device":
            capacities[""] = reader.capacity(value, "device")
        elif name == "devices":
            for device, (place, of_device) in reader.entries(value, "devices").items():
                reader.stands(f"devices.{device}", place)
                capacities[device] = reader.capacity(of_device, f"devices.{device}")
        elif name == "groups":
            groups = reader.policies(value, "groups", GroupPolicy(), "group")
        elif name == "tenants":
            tenants = reader.policies(value, "tenants", Policy(), "tenant")
        else:
            raise reader.mistake(key, name, "no such field; there are device, devices, groups and tenants")
    devices = {
        name: DevicePolicies(capacities.get(name, 0), groups.get(name, {}), tenants.get(name, {}))
        for name in [*capacities, *groups, *tenants]
    }
    return PolicyFile(devices, reader.addresses, reader.lines)
