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
  batch: {max: 500Mbps, weight: 10, scope: wire}

It is applied as a whole or not at all.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sluice.policy.policy import GroupPolicy, Policy, PolicyError, check_name
from sluice.policy.rate import parse_rate

_Kind = TypeVar("_Kind", bound=GroupPolicy)


@dataclass(frozen=True)
class PolicyFile:
    """What a file says. capacity: bits per second, 0 where the file leaves it open. lines: of each tenant and group."""

    capacity: int = 0
    groups: dict[str, GroupPolicy] = field(default_factory=dict)
    tenants: dict[str, Policy] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, int] = {}

    def mistake(self, node: yaml.Node, text: str) -> PolicyError:
        return PolicyError(f"{self.path}:{node.start_mark.line + 1}: {text}")

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

    def policies(self, node: yaml.Node, where: str, none: _Kind, what: str) -> dict[str, _Kind]:
        policies: dict[str, _Kind] = {}
        for name, key, value in self.entries(node, f"{where}."):
            try:
                check_name(name, what)
            except PolicyError as error:
                raise self.mistake(key, f"{where}: {error}") from None
            policy = none
            for field_name, field_key, field_value in self.entries(value, f"{where}.{name}."):
                text = self.value(field_value, field_key, f"{where}.{name}.{field_name}")
                try:
                    policy = policy.changed({field_name: text})
                except PolicyError as error:
                    raise self.mistake(field_key, f"{where}.{name}.{error}") from None
            policies[name] = policy
            self.lines[f"{where}.{name}"] = key.start_mark.line + 1
        return policies

    def device(self, node: yaml.Node) -> int:
        capacity = 0
        for name, key, value in self.entries(node, "device."):
            if name != "capacity":
                raise self.mistake(key, f"device.{name}: no such field; there is only capacity")
            try:
                capacity = parse_rate(self.value(value, key, "device.capacity"))
            except PolicyError:
                raise
            except ValueError as error:
                raise self.mistake(key, f"device.capacity: {error}") from None
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
    capacity = 0
    groups: dict[str, GroupPolicy] = {}
    tenants: dict[str, Policy] = {}
    for name, key, value in reader.entries(root, ""):
        if name == "device":
            capacity = reader.device(value)
        elif name == "groups":
            groups = reader.policies(value, "groups", GroupPolicy(), "group")
        elif name == "tenants":
            tenants = reader.policies(value, "tenants", Policy(), "tenant")
        else:
            raise reader.mistake(key, f"{name}: no such field; there are device, groups and tenants")
    return PolicyFile(capacity, groups, tenants, reader.lines)
