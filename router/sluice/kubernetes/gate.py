# SPDX-License-Identifier: Apache-2.0
"""The router's gate: NetworkPolicies, and what the pod's side hears of a refusal."""

import logging

from sluice.control.connections import Flow
from sluice.control.router import Router
from sluice.device.host import IP
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
        self._senders: set[IP] = set()
        """Of whom it was asked who hears them."""
        self.forbidden: dict[str, int] = {}
        self.ended: dict[str, int] = {}

    def _whose(self, address: IP) -> str:
        pod = self._directory.pod_at(address)
        return f"{pod.namespace}/{pod.name}" if pod is not None else str(address)

    def forget(self, pod: Pod) -> None:
        """It is gone, and its counts with it."""
        for counts in (self.forbidden, self.ended):
            counts.pop(f"{pod.namespace}/{pod.name}", None)

    def moved(self, old: Pod | None, new: Pod | None) -> None:
        """A pod came, changed or went: an address may be another one's, and known for the first time."""
        addresses = [None if pod is None or pod.ended else pod.address for pod in (old, new)]
        if addresses[0] == addresses[1]:
            return
        for address in self._senders.intersection(each for each in addresses if each is not None):
            self._senders.remove(address)
            self._router.forget_members(address)

    def admits(self, source: IP, destination: IP, port: int | None = None) -> bool:
        return self._report(source, destination, "connection", self._directory.refusal(source, destination, port))

    def delivers(self, sender: IP, member: IP) -> bool:
        self._senders.add(sender)
        return self._report(sender, member, "multicast", self._directory.refusal(sender, member, one_way=True))

    def _report(self, source: IP, destination: IP, what: str, text: str) -> bool:
        """text: why not. Whether it may be."""
        if not text:
            return True
        mine, other = self._whose(source), self._whose(destination)
        self.forbidden[mine] = self.forbidden.get(mine, 0) + 1
        pod = self._directory.pod_at(source)
        # A pod may try for ever: the log has what its Events have, the metric counts all.
        if pod is None or self._events.warn(
            subject_of(pod), "RDMAConnectionForbidden", "Connecting", f"RDMA {what} to {other}: {text}"
        ):
            log.warning("pod %s: %s to %s refused: %s", mine, what, other, text)
        return False

    def enforce(self) -> None:
        """Ends the connections that are forbidden by now, and has who hears whom in groups asked again."""
        self._senders.clear()
        self._router.forget_members()
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
