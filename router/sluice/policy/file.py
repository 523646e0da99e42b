# SPDX-License-Identifier: Apache-2.0
"""The policy file:

device:
  capacity: 100Gbps   # in each direction; without it the engine's own speed is measured, and limits nothing
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
from typing import Any, TypeVar

import yaml

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

    def mistake(self, node: yaml.Node, text: str) -> PolicyError:
        return PolicyError(f"{self.path}:{node.start_mark.line + 1}: {text}")

    def stands(self, field: str, node: yaml.Node) -> None:
        self.lines.setdefault(field, node.start_mark.line + 1)

    def entries(self, node: yaml.Node, where: str) -> list[tuple[str, yaml.Node, yaml.Node]]:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null" and where:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise self.mistake(node, f"{where}: a mapping belongs here (name: value)")
        entries: list[tuple[str, yaml.Node, yaml.Node]] = []
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise self.mistake(key, f"{where}{name}: stands here twice")
            seen.add(name)
            entries.append((name, key, value))
        return entries

    def value(self, node: yaml.Node, key: yaml.Node, where: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.mistake(key, f"{where}: one value belongs here, as in max: 2Gbps")
        return str(node.value)

    def policies(self, node: yaml.Node, where: str, none: _Kind, what: str) -> dict[str, dict[str, _Kind]]:
        """By device, "" where none is named, and by name."""
        policies: dict[str, dict[str, _Kind]] = {}
        for name, key, value in self.entries(node, f"{where}."):
            try:
                check_name(name, what)
            except PolicyError as error:
                raise self.mistake(key, f"{where}: {error}") from None
            fields = self.entries(value, f"{where}.{name}.")
            if what == "tenant":
                self.address(name, fields)
                fields = [entry for entry in fields if entry[0] != "ip"]
            named = [entry for entry in fields if entry[0] == "devices"]
            if len(named) < len(fields) or not fields:
                unnamed = [entry for entry in fields if entry[0] != "devices"]
                policies.setdefault("", {})[name] = self.policy(unnamed, f"{where}.{name}", none)
            for device, place, of_device in self.entries(named[0][2], f"{where}.{name}.devices.") if named else []:
                self.stands(f"devices.{device}", place)
                here = f"{where}.{name}.devices.{device}"
                found = self.policy(self.entries(of_device, f"{here}."), here, none)
                policies.setdefault(device, {})[name] = found
            self.stands(f"{where}.{name}", key)
        return policies

    def address(self, tenant: str, fields: list[tuple[str, yaml.Node, yaml.Node]]) -> None:
        where = f"tenants.{tenant}.ip"
        for _, key, value in [entry for entry in fields if entry[0] == "ip"]:
            text = self.value(value, key, where)
            try:
                address = IPv4Address(text)
            except ValueError:
                raise self.mistake(key, f"{where}: {text!r} is not an IPv4 address: write one as 10.1.0.5") from None
            for other, taken in self.addresses.items():
                if taken == address:
                    line = self.lines[f"tenants.{other}.ip"]
                    raise self.mistake(key, f"{where}: {address} is that of tenant {other!r} (line {line}) already")
            self.addresses[tenant] = address
            self.stands(where, key)

    def policy(self, fields: list[tuple[str, yaml.Node, yaml.Node]], where: str, none: _Kind) -> _Kind:
        policy = none
        for name, key, value in fields:
            text = self.value(value, key, f"{where}.{name}")
            self.stands(f"{where}.{name}", key)
            try:
                policy = policy.changed({name: text})
            except PolicyError as error:
                raise self.mistake(key, f"{where}.{error}") from None
        return policy

    def capacity(self, node: yaml.Node, where: str) -> int:
        capacity = 0
        for name, key, value in self.entries(node, f"{where}."):
            if name != "capacity":
                raise self.mistake(key, f"{where}.{name}: no such field; there is only capacity")
            self.stands(f"{where}.capacity", key)
            try:
                capacity = parse_rate(self.value(value, key, f"{where}.capacity"))
            except PolicyError:
                raise
            except ValueError as error:
                raise self.mistake(key, f"{where}.capacity: {error}") from None
        return capacity


def load_policies(path: Path) -> PolicyFile:
    """All that a file says, or PolicyError with file:line: field: for the first mistake."""
    try:
        root: Any = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PolicyError(f"{path}: is not text in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PolicyError(f"{path}:{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise PolicyError(f"{path}: not YAML: {error}") from None
    if root is None:
        raise PolicyError(f"{path}:1: the file is empty; 'tenants:' belongs here")
    reader = _Reader(path)
    capacities: dict[str, int] = {}
    groups: dict[str, dict[str, GroupPolicy]] = {}
    tenants: dict[str, dict[str, Policy]] = {}
    for name, key, value in reader.entries(root, ""):
        if name == "device":
            capacities[""] = reader.capacity(value, "device")
        elif name == "devices":
            for device, place, of_device in reader.entries(value, "devices."):
                reader.stands(f"devices.{device}", place)
                capacities[device] = reader.capacity(of_device, f"devices.{device}")
        elif name == "groups":
            groups = reader.policies(value, "groups", GroupPolicy(), "group")
        elif name == "tenants":
            tenants = reader.policies(value, "tenants", Policy(), "tenant")
        else:
            raise reader.mistake(key, f"{name}: no such field; there are device, devices, groups and tenants")
    devices = {
        name: DevicePolicies(capacities.get(name, 0), groups.get(name, {}), tenants.get(name, {}))
        for name in [*capacities, *groups, *tenants]
    }
    return PolicyFile(devices, reader.addresses, reader.lines)
