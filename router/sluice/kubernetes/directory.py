# SPDX-License-Identifier: Apache-2.0
"""Who is where, and who may talk to whom, from the API server: pods, namespaces, NetworkPolicies.

A source of the cluster's directory (cluster/directory.py), and the router's gate
(control/connections.py). Both are asked on every connection, and answer from memory.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address

from sluice.cluster.directory import Place
from sluice.device.host import IP
from sluice.kubernetes.api import Api, Object
from sluice.kubernetes.network_policy import End, Evaluation, NetworkPolicy, read_policy
from sluice.kubernetes.pod import Pod, read_pod
from sluice.kubernetes.watch import Watch

log = logging.getLogger(__name__)


Namespace = tuple[str, Mapping[str, str]]
"""Its name and labels."""


def _labels(found: Object) -> Namespace:
    return found["metadata"]["name"], found["metadata"].get("labels") or {}


class PodDirectory:
    """tenant_of(pod): its tenant's name. pod_changed(old, new): a pod of any node.

    rules_changed(): what a gate said may be wrong by now.
    """

    def __init__(
        self,
        api: Api,
        tenant_of: Callable[[Pod], str],
        pod_changed: Callable[[Pod | None, Pod | None], None],
        rules_changed: Callable[[], None],
    ) -> None:
        self._tenant_of = tenant_of
        self._pod_changed = pod_changed
        self._rules_changed = rules_changed
        self._by_address: dict[IP, Pod] = {}
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._evaluation: Evaluation | None = None
        self.pods: Watch[Pod] = Watch(api, "/api/v1/pods", read_pod, self._on_pod)
        self.namespaces: Watch[Namespace] = Watch(api, "/api/v1/namespaces", _labels, self._on_namespace)
        self.policies: Watch[NetworkPolicy] = Watch(
            api, "/apis/networking.k8s.io/v1/networkpolicies", read_policy, lambda _old, _new: self._on_rules()
        )

    @property
    def watches(self) -> tuple[Watch[Pod], Watch[Namespace], Watch[NetworkPolicy]]:
        return self.pods, self.namespaces, self.policies

    async def run(self) -> None:
        """For ever; cancel it to end."""
        async with asyncio.TaskGroup() as group:
            for watch in self.watches:
                group.create_task(watch.run())

    async def synced(self) -> None:
        """Returns when everything was read once."""
        for watch in self.watches:
            await watch.synced.wait()

    def _on_pod(self, old: Pod | None, new: Pod | None) -> None:
        if old is not None and old.address is not None and self._by_address.get(old.address) == old:
            del self._by_address[old.address]
        if new is not None and new.address is not None and not new.ended and not new.host_network:
            # An address goes to the next pod soon after its last one ended.
            self._by_address[new.address] = new
        self._pod_changed(old, new)
        if old is not None and new is not None and old.labels != new.labels:
            self._rules_changed()

    def _on_namespace(self, old: Namespace | None, new: Namespace | None) -> None:
        if old is not None:
            self._namespaces.pop(old[0], None)
        if new is not None:
            self._namespaces[new[0]] = new[1]
        self._rules_changed()

    def _on_rules(self) -> None:
        self._evaluation = None
        self._rules_changed()

    def pod_at(self, address: IP) -> Pod | None:
        return self._by_address.get(address)

    def find(self, address: IPv4Address) -> Place | None:
        """Who has this address."""
        pod = self._by_address.get(address)
        return None if pod is None else Place(pod.node, self._tenant_of(pod))

    def address_of(self, node: str, tenant: str) -> IPv4Address | None:
        """Nobody's: a pod's tenant learns its address later, from its pod."""
        return None

    def refusal(self, source: IP, destination: IP, port: int | None = None, one_way: bool = False) -> str:
        """Empty where source may connect to destination, else who forbids it.

        Nobody can say which end of a QP began: two pods are connected if either may connect to
        the other, as a TCP connection carries both directions' bytes. With a port (of the
        connection manager), source is who asks; one_way: it is in any case.
        """
        if self._evaluation is None:
            self._evaluation = Evaluation(self.policies.objects.values(), lambda name: self._namespaces.get(name, {}))
        one, other = End(source, self.pod_at(source)), End(destination, self.pod_at(destination))
        text = self._evaluation.refusal(one, other, port)
        if text and port is None and not one_way and not self._evaluation.refusal(other, one):
            return ""
        return text
