# SPDX-License-Identifier: Apache-2.0
"""What a tenant, and a group of tenants, may use. How the fields are written: policy files (file.py), options."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from sluice.engine import Pair, Shape, Share, lib
from sluice.policy.rate import format_rate, format_size, parse_rate, parse_size

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

EGRESS, INGRESS = 0, 1


class PolicyError(ValueError):
    """What is wrong, where, and what would be right.

    field: as a policy file has it ("tenants.a.group"); of a policy alone its own ("max").
    """

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.field = field


def check_name(name: str, what: str = "tenant") -> str:
    """A tenant's name is a DNS label, as Kubernetes names pods; a group's as well."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise PolicyError(
            f"{name!r} is not a {what} name: use 1 to 63 lower-case letters, digits and '-', "
            "with a letter or digit at both ends"
        )
    return name


def _number(text: str, what: str, most: int) -> int:
    match = re.fullmatch(r"(\d+)(k|M)?", text)
    number = int(match[1]) * {"": 1, "k": 1000, "M": 10**6}[match[2] or ""] if match else 0
    if not 0 < number <= most:
        raise ValueError(f"{text!r} is not a {what}: write a whole number from 1 to {most}, for instance 4096 or 10k")
    return number


def _count(text: str) -> int:
    return _number(text, "count", 2**32 - 1)


def _weight(text: str) -> int:
    return _number(text, "weight", int(lib.SLUICE_WEIGHT_MAX))


def _percent(text: str) -> int:
    """Of the engine's time; stored as nanoseconds per second."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)
    share = float(match[1]) / 100 if match else 0.0
    if not 0.001 <= share <= 1:
        raise ValueError(f"{text!r} is not a share: write a percentage from 0.1% to 100%")
    return round(share * 1e9)


def _scope(text: str) -> str:
    if text not in ("all", "wire"):
        raise ValueError(f"{text!r} is not a scope: write all, or wire to leave traffic within the node out")
    return text


def _group(text: str) -> str:
    return check_name(text, "group")


@dataclass(frozen=True)
class _Field:
    attribute: str
    parse: Callable[[str], Any]
    format: Callable[[Any], str]
    metavar: str
    help: str


def _directions(
    name: str, parse: Callable[[str], int], show: Callable[[float], str], unit: str, text: str, example: str
) -> dict[str, _Field]:
    attribute, metavar = name + unit, "SIZE" if unit == "" else "RATE"
    return {
        name: _Field(attribute, parse, show, metavar, f"{text} in each direction, {example}"),
        f"{name}-egress": _Field(f"{name}_egress{unit}", parse, show, metavar, f"{text} of what is sent"),
        f"{name}-ingress": _Field(f"{name}_ingress{unit}", parse, show, metavar, f"{text} of what is received"),
    }


SHARE_FIELDS: dict[str, _Field] = {
    **_directions("min", parse_rate, format_rate, "_bps", "guarantee", "for instance 2Gbps"),
    **_directions("max", parse_rate, format_rate, "_bps", "ceiling", "for instance 10Gbps"),
    **_directions("burst", parse_size, format_size, "", "what may go at once after a pause", "for instance 1MiB"),
    "weight": _Field("weight", _weight, str, "N", "share of what guarantees leave, 1 to 10000 (default: 100)"),
}
TENANT_FIELDS: dict[str, _Field] = {
    **SHARE_FIELDS,
    "group": _Field("group", _group, str, "NAME", "whose ceiling and guarantee it shares"),
    "scope": _Field("scope", _scope, str, "all|wire", "wire: rates leave traffic within the node out"),
    "max-ops": _Field("max_operations", _count, str, "N", "operations per second"),
    "max-verbs": _Field("max_verbs", _count, str, "N", "control verbs per second"),
    "max-engine": _Field("max_engine_ns", _percent, lambda ns: f"{ns / 1e7:g}%", "PERCENT", "of the engine's time"),
    "max-mr-bytes": _Field("max_mr_bytes", parse_size, format_size, "SIZE", "registered memory"),
    "max-mrs": _Field("max_mrs", _count, str, "N", "memory regions and windows"),
    "max-qps": _Field("max_qps", _count, str, "N", "queue pairs"),
    "max-cqs": _Field("max_cqs", _count, str, "N", "completion queues"),
}


@dataclass(frozen=True)
class GroupPolicy:
    """*_bps: bits per second; burst: bytes. The plain ones hold in both directions, unless a direction has its own.

    0: none (a burst is then chosen from the rate, a weight is the default).
    """

    min_bps: int = 0
    min_egress_bps: int = 0
    min_ingress_bps: int = 0
    max_bps: int = 0
    max_egress_bps: int = 0
    max_ingress_bps: int = 0
    burst: int = 0
    burst_egress: int = 0
    burst_ingress: int = 0
    weight: int = 0

    @classmethod
    def known_fields(cls) -> dict[str, _Field]:
        return SHARE_FIELDS

    @property
    def guarantees(self) -> Pair:
        return self.min_egress_bps or self.min_bps, self.min_ingress_bps or self.min_bps

    @property
    def ceilings(self) -> Pair:
        return self.max_egress_bps or self.max_bps, self.max_ingress_bps or self.max_bps

    def share(self) -> Share:
        return Share(
            self.guarantees,
            self.ceilings,
            (self.burst_egress or self.burst, self.burst_ingress or self.burst),
            self.weight,
        )

    def changed(self, fields: Mapping[str, object]) -> Self:
        """With these fields ("max": "2Gbps"); "none" lifts one. PolicyError names the field."""
        known = self.known_fields()
        values: dict[str, Any] = {}
        for name, text in fields.items():
            if name not in known:
                raise PolicyError(f"{name}: no such field; there are {', '.join(known)}", name)
            field = known[name]
            nothing = type(getattr(self, field.attribute))()
            try:
                values[field.attribute] = nothing if str(text) == "none" else field.parse(str(text))
            except ValueError as error:
                raise PolicyError(f"{name}: {error}", name) from None
        policy = replace(self, **values)
        for direction, least, most in zip(("egress", "ingress"), policy.guarantees, policy.ceilings, strict=True):
            if most and least > most:
                name = f"min-{direction}" if getattr(policy, f"min_{direction}_bps") else "min"
                raise PolicyError(
                    f"{name}: the guarantee of {format_rate(least)} ({direction}) is above "
                    f"the ceiling of {format_rate(most)}",
                    name,
                )
        return policy

    def fields(self) -> dict[str, str]:
        """The limits there are, as they are written."""
        values = {name: (field, getattr(self, field.attribute)) for name, field in self.known_fields().items()}
        return {name: field.format(value) for name, (field, value) in values.items() if value}


@dataclass(frozen=True)
class Policy(GroupPolicy):
    """A tenant's: the same, its group, and limits of other things. max_engine_ns: of the engine's time, per second."""

    group: str = ""
    scope: str = ""
    max_operations: int = 0
    max_verbs: int = 0
    max_engine_ns: int = 0
    max_mr_bytes: int = 0
    max_mrs: int = 0
    max_qps: int = 0
    max_cqs: int = 0

    @classmethod
    def known_fields(cls) -> dict[str, _Field]:
        return TENANT_FIELDS

    def shape(self, group: int | None = None) -> Shape:
        """group: the engine's number of self.group."""
        return Shape(
            self.share(),
            max_operations=self.max_operations,
            max_verbs=self.max_verbs,
            max_engine_ns=self.max_engine_ns,
            max_mr_bytes=self.max_mr_bytes,
            max_mrs=self.max_mrs,
            max_qps=self.max_qps,
            max_cqs=self.max_cqs,
            group=group,
            wire_only=self.scope == "wire",
        )
