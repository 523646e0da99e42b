# SPDX-License-Identifier: Apache-2.0
"""This node's part in a Kubernetes cluster: everything below kubernetes/, put together around a router."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from sluice import shim_path
from sluice.cluster.file import Node
from sluice.control.router import Router
from sluice.kubernetes import DRIVER, device_plugin, dra
from sluice.kubernetes.api import Api
from sluice.kubernetes.attachments import Attachments, tenant_name
from sluice.kubernetes.cdi import install_shim
from sluice.kubernetes.claim_status import ClaimStatus
from sluice.kubernetes.directory import PodDirectory
from sluice.kubernetes.events import Events, Subject
from sluice.kubernetes.gate import PolicyGate, subject_of
from sluice.kubernetes.inventory import trouble
from sluice.kubernetes.members import Members, attributes, read_member
from sluice.kubernetes.pod import Pod
from sluice.kubernetes.pod_resources import PodResources
from sluice.kubernetes.quantity import format_quantity
from sluice.kubernetes.settings import Settings
from sluice.kubernetes.slices import SLICES, Publisher
from sluice.kubernetes.state import Grant
from sluice.kubernetes.watch import Watch

log = logging.getLogger(__name__)


class KubernetesNode:
    """start() it, close() it. All of it runs in the router's event loop."""

    def __init__(self, router: Router, settings: Settings, api: Api, members: Members | None = None) -> None:
        """members: is told of the other nodes' routers."""
        self._members = members
        self._router = router
        self.settings = settings
        self._api = api
        self.events = Events(api, settings.node)
        self.attachments = Attachments(router, settings, self._on_returned)
        self.directory = PodDirectory(api, self._tenant_of, self._on_pod, self._on_rules)
        self.gate = PolicyGate(router, self.directory, self.events)
        self.claim_status = ClaimStatus(api, settings.node)
        self.plugin = dra.Plugin(api, settings, self.attachments, self.events, self.claim_status, self.refresh)
        self._server = dra.Server(settings, self.plugin, dra.Health(settings))
        self._allocator = device_plugin.Plugin(
            settings,
            self.attachments,
            self.events,
            PodResources(settings.kubelet_dir, device_plugin.RESOURCE_NAME),
            self._find_pod,
            self._on_place,
        )
        self._device_server = device_plugin.Server(settings, self._allocator)
        self._tasks: list[asyncio.Task[None]] = []
        self._enforcing = False

    async def start(self) -> None:
        """OSError."""
        self._router.set_gate(self.gate)
        self._router.set_orchestrator(self.status)
        # An address that the API server says is ours must be known as ours.
        self._router.directory.node = self.settings.node
        self._router.directory.add_source(self.directory)
        for grant, error in self.attachments.restore():
            if not grant.pod:
                continue
            pod = Subject("v1", "Pod", grant.namespace, grant.pod, grant.pod_uid)
            self.events.warn(pod, "BandwidthNotRestored", "Restoring", f"{grant.claim or 'its bandwidth'}: {error}")
        self._spawn(self.events.run(), "events")
        self._spawn(self.claim_status.run(), "claims' status")
        self._spawn(self.directory.run(), "directory")
        self._sweeping = asyncio.create_task(self._sweep())
        if self.settings.dra:
            await self._server.start()
            more = {} if self._members is None else attributes(self._members.own)
            # The kubelet waits for a claim to be prepared, and that for the API server.
            self._spawn(self._api.keep_connected(), "connection")
            self._spawn(Publisher(self._api, self.settings, more, self.events).run(), "slices")
            if self._members is not None:
                others: Watch[Node] = Watch(
                    self._api, SLICES, read_member, self._members.on_slice, fieldSelector=f"spec.driver={DRIVER}"
                )
                self._spawn(others.run(), "members")
        if self.settings.device_plugin:
            self._spawn(self._device_server.run(), "device plugin")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._on_done)
        self._tasks.append(task)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("%s ended", task.get_name(), exc_info=task.exception())

    def healthy(self) -> str:
        """Empty, or what doesn't run any more. An API server that is away is no reason to be restarted."""
        return ", ".join(f"{task.get_name()} ended" for task in self._tasks if task.done())

    def ready(self) -> str:
        """Empty, or what the node waits for before pods can be prepared here."""
        waiting = []
        if self.settings.dra and not self._server.registration.registered.is_set():
            refused = self._server.registration.error
            waiting.append(
                f"the kubelet {f'refuses the driver: {refused}' if refused else 'has not registered the driver'}"
            )
        if self.settings.device_plugin and self._device_server.missing:
            waiting.append(self._device_server.missing)
        waiting += [
            f"{watch.path} is not read yet" + (f": {watch.error}" if watch.error else "")
            for watch in self.directory.watches
            if not watch.synced.is_set()
        ]
        return ", ".join(waiting)

    def status(self) -> dict[str, Any]:
        """For the operator. wrong: sentences."""
        wrong = list(filter(None, (self.healthy(), self.ready(), *map(trouble, self.settings.nics))))
        away = [watch for watch in self.directory.watches if watch.synced.is_set() and not watch.reachable]
        if away:
            paths, errors = ", ".join(watch.path for watch in away), {watch.error for watch in away if watch.error}
            why = f" ({'; '.join(sorted(errors))})" if errors else ""
            wrong.append(f"the API server does not answer for {paths}: what changes there is not known here{why}")
        return {"node": self.settings.node, "grants": len(self.attachments.grants), "wrong": wrong}

    # ---- pods ------------------------------------------------------------

    def _tenant_of(self, pod: Pod) -> str:
        """Named after the pod on every node; but pods that share a claim are one tenant, that of the first."""
        return self.attachments.tenant_of_pod(pod.uid) or tenant_name(pod.namespace, pod.name, pod.uid)

    def _on_pod(self, old: Pod | None, new: Pod | None) -> None:
        self.gate.moved(old, new)
        if new is not None and new.node == self.settings.node:
            self._apply(new)
        gone = new if new is not None and new.ended else old if new is None else None
        if old is not None and new is None:
            self.gate.forget(old)
        if gone is not None and gone.node == self.settings.node:
            self._return_devices(gone)

    def _return_devices(self, pod: Pod) -> None:
        """A device plugin is not told when its devices are free; claims are unprepared by the kubelet."""
        for grant in list(self.attachments.grants.values()):
            if grant.devices and grant.pod_uid == pod.uid:
                self.attachments.detach(grant.uid)

    def _on_returned(self) -> None:
        """The next pod may have got the last one's address before that was returned here."""
        self._allocator.returned()
        for grant in self.attachments.without_address():
            self.refresh(grant)

    async def _sweep(self) -> None:
        """Once everything was read: what became of the pods of grants that an earlier router left."""
        await self.directory.synced()
        for grant in list(self.attachments.grants.values()):
            if grant.devices and grant.pod_uid and grant.pod_uid not in self.directory.pods.objects:
                self.attachments.detach(grant.uid)
            else:
                self.refresh(grant)

    def refresh(self, grant: Grant) -> None:
        """A new grant: what is known of its pod already."""
        pod = self.directory.pods.objects.get(grant.pod_uid)
        if pod is not None:
            self._apply(pod)

    def _apply(self, pod: Pod) -> None:
        tenant = self.attachments.tenant_of_pod(pod.uid)
        if tenant is None:
            return
        if pod.address is not None and not pod.ended:
            try:
                self.attachments.set_address(tenant, pod.address)
                for grant in self.attachments.grants_of(tenant):
                    self.claim_status.attached(grant, pod.address, self.attachments.devices(tenant))
            except ValueError as error:
                log.warning("pod %s/%s: %s", pod.namespace, pod.name, error)
                # Other addresses are still their last pod's for a moment.
                if pod.host_network:
                    text = f"{error}: of a node's pods with hostNetwork, one at a time has a device"
                    self.events.warn(subject_of(pod), "RDMAAddressTaken", "Attaching", text)
        try:
            changed = self.attachments.set_annotations(tenant, pod.annotations)
        except ValueError as error:
            self.events.warn(subject_of(pod), "BandwidthNotChanged", "Changing", f"{error}; the rates stay as they are")
            return
        if changed is not None:
            text = self.attachments.describe(tenant)
            self.events.inform(subject_of(pod), "BandwidthChanged", "Changing", f"by annotation: now {text}")

    def _find_pod(self, namespace: str, name: str) -> Pod | None:
        mine = (pod for pod in self.directory.pods.objects.values() if pod.node == self.settings.node)
        return next((pod for pod in mine if (pod.namespace, pod.name) == (namespace, name) and not pod.ended), None)

    def _on_place(self, grant: Grant) -> None:
        """A pod has got its place from the device plugin."""
        pod = Subject("v1", "Pod", grant.namespace, grant.pod, grant.pod_uid)
        amounts = ", ".join(f"{format_quantity(share.bps)} of {share.nic}" for share in grant.shares)
        self.events.inform(pod, "BandwidthGranted", "Allocating", f"{amounts}, as tenant {grant.tenant}")
        self.refresh(grant)

    # ---- policies --------------------------------------------------------

    def _on_rules(self) -> None:
        """Many changes come together: they are looked at once."""
        if not self._enforcing:
            self._enforcing = True
            asyncio.get_running_loop().call_soon(self._enforce)

    def _enforce(self) -> None:
        self._enforcing = False
        if all(watch.synced.is_set() for watch in self.directory.watches):
            self.gate.enforce()

    async def close(self) -> None:
        tasks = [*self._tasks, self._sweeping]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task
        if self.settings.dra:
            await self._server.stop()
        await self._api.close()


async def join(router: Router, settings: Settings, members: Members | None) -> KubernetesNode:
    """Connects and starts. ApiError, OSError."""
    install_shim(shim_path().parent, settings.shim_dir)
    node = KubernetesNode(router, settings, await Api.connect(settings.kubeconfig), members)
    await node.start()
    return node
