# SPDX-License-Identifier: Apache-2.0
"""The router's gate: NetworkPolicies, and what the pod's side hears of a refusal."""

import logging
from ipaddress import IPv4Address

from sluice.control.connections import Flow
from sluice.control.router import Router
from sluice.kubernetes.directory import PodDirectory
from sluice.kubernetes.events import Events, Subject
from sluice.kubernetes.pod import Pod

log = logging.getLogger(__name__)


def subject_of(pod: Pod) -> Subject:
    return Subject("v1", "Pod", pod.namespace, pod.name, pod.uid)


class PolicyGate:
    """control.connections.Gate. forbidden, ended: connections, by the pod that wanted or had them."""

    def __init__(self, router: Router, directory: PodDirectory, events: Events) -> None:
        self._router = router
        self._directory = directory
        self._events = events
        self.forbidden: dict[str, int] = {}
        self.ended: dict[str, int] = {}

    def _whose(self, address: IPv4Address) -> str:
        pod = self._directory.pod_at(address)
        return f"{pod.namespace}/{pod.name}" if pod is not None else str(address)

    def forget(self, pod: Pod) -> None:
        """It is gone, and its counts with it."""
        for counts in (self.forbidden, self.ended):
            counts.pop(f"{pod.namespace}/{pod.name}", None)

    def admits(self, source: IPv4Address, destination: IPv4Address, port: int | None = None) -> bool:
        text = self._directory.refusal(source, destination, port)
        if not text:
            return True
        mine, other = self._whose(source), self._whose(destination)
        self.forbidden[mine] = self.forbidden.get(mine, 0) + 1
        pod = self._directory.pod_at(source)
        # A pod may try for ever: the log has what its Events have, the metric counts all.
        if pod is None or self._events.warn(
            subject_of(pod), "RDMAConnectionForbidden", "Connecting", f"RDMA connection to {other}: {text}"
        ):
            log.warning("pod %s: connection to %s refused: %s", mine, other, text)
        return False

    def enforce(self) -> None:
        """Ends the connections that are forbidden by now."""
        for tenant in list(self._router.tenants.values()):
            if tenant.address is None:
                continue
            mine = self._whose(tenant.address)
            for connection in tenant.end_forbidden(self._still_admits):
                self.ended[mine] = self.ended.get(mine, 0) + 1
                other = self._whose(connection.peer)
                log.warning("pod %s: connection to %s ended by a NetworkPolicy", mine, other)
                pod = self._directory.pod_at(tenant.address)
                if pod is not None:
                    flow = connection.flow
                    text = self._directory.refusal(flow.source, flow.destination, flow.port)
                    self._events.warn(
                        subject_of(pod), "RDMAConnectionEnded", "Disconnecting", f"RDMA connection to {other}: {text}"
                    )

    def _still_admits(self, flow: Flow) -> bool:
        return not self._directory.refusal(flow.source, flow.destination, flow.port)
