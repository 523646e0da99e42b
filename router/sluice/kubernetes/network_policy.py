# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicy: whether one pod may reach another.

https://kubernetes.io/docs/concepts/services-networking/network-policies/
Policies only ever allow. A pod that some policy selects for a direction is closed in that
direction but for what the rules of all such policies let through; a pod that none selects is open.

A rule's ports: every RDMA connection is RoCE v2, that is UDP port 4791. One that was set up
by the connection manager also has the port that its server listens on, as a TCP port.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from sluice.device.host import IP
from sluice.kubernetes.api import Object
from sluice.kubernetes.pod import Pod, selects

ROCE_PORT = ("UDP", 4791)

INGRESS, EGRESS = "Ingress", "Egress"


@dataclass(frozen=True)
class NetworkPolicy:
    namespace: str
    name: str
    spec: Mapping[str, Any]

    @property
    def directions(self) -> set[str]:
        """Where policyTypes is missing: ingress, and egress if there are such rules."""
        types = self.spec.get("policyTypes")
        return set(types) if types else {INGRESS} | ({EGRESS} if self.spec.get("egress") else set())


def read_policy(found: Object) -> NetworkPolicy:
    return NetworkPolicy(found["metadata"]["namespace"], found["metadata"]["name"], found.get("spec") or {})


@dataclass(frozen=True)
class End:
    """One end of a connection; pod: None for an address that no pod has."""

    address: IP
    pod: Pod | None


def _in_block(block: Mapping[str, Any], address: IP) -> bool:
    try:
        return address in ip_network(block["cidr"], strict=False) and not any(
            address in ip_network(hole, strict=False) for hole in block.get("except") or []
        )
    except ValueError:
        return False


class Evaluation:
    """labels_of_namespace: of a namespace by its name."""

    def __init__(
        self, policies: Iterable[NetworkPolicy], labels_of_namespace: Callable[[str], Mapping[str, str]]
    ) -> None:
        self._by_namespace: dict[str, list[NetworkPolicy]] = {}
        for policy in policies:
            self._by_namespace.setdefault(policy.namespace, []).append(policy)
        self._labels_of_namespace = labels_of_namespace

    def refusal(self, source: End, destination: End, port: int | None = None) -> str:
        """Empty where source may connect to destination, else who forbids it, in words."""
        if source.address == destination.address:
            # A pod can't be kept from itself.
            return ""
        ports = {ROCE_PORT} | ({("TCP", port)} if port is not None else set())
        for direction, mine, other in ((EGRESS, source, destination), (INGRESS, destination, source)):
            text = self._closed(direction, mine, other, destination, ports)
            if text:
                return text
        return ""

    def _closed(self, direction: str, mine: End, other: End, server: End, ports: set[tuple[str, int]]) -> str:
        # Pods of the host's network are the node itself, which policies don't speak of.
        if mine.pod is None or mine.pod.host_network:
            return ""
        selecting = [
            policy
            for policy in self._by_namespace.get(mine.pod.namespace, [])
            if direction in policy.directions and selects(policy.spec.get("podSelector") or {}, mine.pod.labels)
        ]
        if not selecting:
            return ""
        rules, peers = ("ingress", "from") if direction == INGRESS else ("egress", "to")
        for policy in selecting:
            for rule in policy.spec.get(rules) or []:
                if self._peers_match(policy.namespace, rule.get(peers), other) and _ports_match(
                    rule.get("ports"), server.pod, ports
                ):
                    return ""
        names = ", ".join(sorted(policy.name for policy in selecting))
        whose = f"{mine.pod.namespace}/{mine.pod.name}"
        return f"no {direction.lower()} rule of NetworkPolicy {names} lets it through at pod {whose}"

    def _peers_match(self, namespace: str, peers: list[Mapping[str, Any]] | None, other: End) -> bool:
        if not peers:
            return True
        return any(self._peer_matches(namespace, peer, other) for peer in peers)

    def _peer_matches(self, namespace: str, peer: Mapping[str, Any], other: End) -> bool:
        if "ipBlock" in peer:
            return _in_block(peer["ipBlock"], other.address)
        if other.pod is None or other.pod.host_network:
            return False
        if "namespaceSelector" in peer:
            if not selects(peer["namespaceSelector"] or {}, self._labels_of_namespace(other.pod.namespace)):
                return False
        elif other.pod.namespace != namespace:
            return False
        return "podSelector" not in peer or selects(peer["podSelector"] or {}, other.pod.labels)


def _ports_match(wanted: list[Mapping[str, Any]] | None, server: Pod | None, ports: set[tuple[str, int]]) -> bool:
    if not wanted:
        return True
    for entry in wanted:
        protocol, port = entry.get("protocol", "TCP"), entry.get("port")
        if isinstance(port, str) and not port.isdigit():
            number, its_protocol = (server.ports.get(port) if server else None) or (-1, "")
            if its_protocol != protocol:
                continue
            port = number
        for its_protocol, number in ports:
            if its_protocol != protocol:
                continue
            if port is None or int(port) <= number <= int(entry.get("endPort", port)):
                return True
    return False
