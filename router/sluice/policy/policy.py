# SPDX-License-Identifier: Apache-2.0
"""A tenant's policy, and the file that holds those of many.

tenants:
  training:
    max: 10Gbps
    burst: 1MiB
  batch:
    max: 500Mbps
    max-mr-bytes: 8GiB
    max-mrs: 4096
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sluice.engine import Shape
from sluice.policy.rate import format_rate, format_size, parse_rate, parse_size

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class PolicyError(ValueError):
    """What is wrong, where, and what would be right."""


def check_name(name: str) -> str:
    """A tenant's name is a DNS label, as Kubernetes names pods."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise PolicyError(
            f"{name!r} is not a tenant name: use 1 to 63 lower-case letters, digits and '-', "
            "with a letter or digit at both ends"
        )
    return name


def _count(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 2**32:
        raise ValueError(f"{text!r} is not a count: write a whole number, for instance 4096")
    return int(text)


_FIELDS: dict[str, tuple[str, Callable[[str], int]]] = {
    "max": ("max_bps", parse_rate),
    "burst": ("burst", parse_size),
    "max-mr-bytes": ("max_mr_bytes", parse_size),
    "max-mrs": ("max_mrs", _count),
}


@dataclass(frozen=True)
class Policy:
    """max_bps: bits per second each way. burst, max_mr_bytes: bytes. 0: no limit."""

    max_bps: int = 0
    burst: int = 0
    max_mr_bytes: int = 0
    max_mrs: int = 0

    def shape(self) -> Shape:
        return Shape(self.max_bps, self.burst, self.max_mr_bytes, self.max_mrs)

    def changed(self, fields: Mapping[str, object]) -> "Policy":
        """With these fields ("max": "2Gbps"); "none" lifts a limit. PolicyError names the field."""
        values: dict[str, int] = {}
        for name, text in fields.items():
            if name not in _FIELDS:
                raise PolicyError(f"{name}: no such field; there are {', '.join(_FIELDS)}")
            attribute, parse = _FIELDS[name]
            try:
                values[attribute] = 0 if str(text) == "none" else parse(str(text))
            except ValueError as error:
                raise PolicyError(f"{name}: {error}") from None
        return replace(self, **values)

    def fields(self) -> dict[str, str]:
        """The limits there are, as they are written."""
        texts = {
            "max": self.max_bps and format_rate(self.max_bps),
            "burst": self.burst and format_size(self.burst),
            "max-mr-bytes": self.max_mr_bytes and format_size(self.max_mr_bytes),
            "max-mrs": self.max_mrs and str(self.max_mrs),
        }
        return {name: text for name, text in texts.items() if isinstance(text, str)}


def _entries(node: yaml.Node, where: str, path: Path) -> list[tuple[str, yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise PolicyError(f"{path}:{line}: {where}: a mapping belongs here (name: value)")
    entries: list[tuple[str, yaml.Node, yaml.Node]] = []
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            raise PolicyError(f"{path}:{key.start_mark.line + 1}: {where}{name}: stands here twice")
        seen.add(name)
        entries.append((name, key, value))
    return entries


def _tenant_policy(path: Path, name: str, key: yaml.Node, value: yaml.Node) -> Policy:
    try:
        check_name(name)
    except PolicyError as error:
        raise PolicyError(f"{path}:{key.start_mark.line + 1}: tenants: {error}") from None
    policy = Policy()
    for field, field_key, field_value in _entries(value, f"tenants.{name}.", path):
        line = field_key.start_mark.line + 1
        if not isinstance(field_value, yaml.ScalarNode):
            raise PolicyError(f"{path}:{line}: tenants.{name}.{field}: one value belongs here, as in max: 2Gbps")
        try:
            policy = policy.changed({field: field_value.value})
        except PolicyError as error:
            raise PolicyError(f"{path}:{line}: tenants.{name}.{error}") from None
    return policy


def load_policies(path: Path) -> dict[str, Policy]:
    """All policies of a file, or PolicyError with file:line: field: for the first mistake."""
    try:
        root: Any = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PolicyError(f"{path}: is not text in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PolicyError(f"{path}:{line}: not YAML: {error.problem}") from None
    if root is None:
        raise PolicyError(f"{path}:1: the file is empty; 'tenants:' belongs here")
    policies: dict[str, Policy] = {}
    for name, key, value in _entries(root, "", path):
        if name != "tenants":
            line = key.start_mark.line + 1
            raise PolicyError(f"{path}:{line}: {name}: no such field; there is only 'tenants'")
        for tenant, tenant_key, tenant_value in _entries(value, "tenants.", path):
            policies[tenant] = _tenant_policy(path, tenant, tenant_key, tenant_value)
    return policies
