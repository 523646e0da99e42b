# SPDX-License-Identifier: Apache-2.0
"""What is used of a pod, and how labels select."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from sluice.kubernetes import DRIVER
from sluice.kubernetes.api import Object

_PREFIX = f"{DRIVER}/"


@dataclass(frozen=True)
class Pod:
    """ended: it will never run again. ports: named ones, as (number, protocol) by name."""

    namespace: str
    name: str
    uid: str
    node: str
    address: IPv4Address | None
    host_network: bool
    ended: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    ports: Mapping[str, tuple[int, str]]


def _address(status: Object) -> IPv4Address | None:
    """Its IPv4 address; a GID of ours maps one."""
    for each in status.get("podIPs") or [{"ip": status.get("podIP", "")}]:
        try:
            return IPv4Address(each.get("ip", ""))
        except AddressValueError:
            continue
    return None


def read_pod(found: Object) -> Pod:
    metadata, spec, status = found["metadata"], found["spec"], found.get("status") or {}
    ports: dict[str, tuple[int, str]] = {}
    for container in spec.get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name"):
                ports[port["name"]] = (int(port["containerPort"]), port.get("protocol", "TCP"))
    annotations = metadata.get("annotations") or {}
    return Pod(
        metadata["namespace"],
        metadata["name"],
        metadata["uid"],
        spec.get("nodeName", ""),
        _address(status),
        bool(spec.get("hostNetwork")),
        status.get("phase") in ("Succeeded", "Failed"),
        metadata.get("labels") or {},
        {name: value for name, value in annotations.items() if name.startswith(_PREFIX)},
        ports,
    )


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """A LabelSelector; an empty one selects everything, none (None) nothing."""
    if selector is None:
        return False
    for name, value in (selector.get("matchLabels") or {}).items():
        if labels.get(name) != value:
            return False
    for expression in selector.get("matchExpressions") or []:
        name, operator, values = expression["key"], expression["operator"], expression.get("values") or []
        met = {
            "In": name in labels and labels[name] in values,
            "NotIn": labels.get(name) not in values,
            "Exists": name in labels,
            "DoesNotExist": name not in labels,
        }
        # What a later version adds selects nothing: rather too little than too much is let through.
        if not met.get(operator, False):
            return False
    return True
