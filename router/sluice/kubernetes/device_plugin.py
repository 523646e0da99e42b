# SPDX-License-Identifier: Apache-2.0
"""The extended resource rdma.sluice.dev/bandwidth, for clusters without DRA: one of it is one unit of one NIC.

https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/
The kubelet does not say for which pod it allocates. Its pod resources service tells a moment
later, before the container starts; the pod's address and annotations are applied then.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc.aio

from sluice.kubernetes import DRIVER, protocol
from sluice.kubernetes.attachments import DEVICES, Attachments
from sluice.kubernetes.claim import ClaimError, Share
from sluice.kubernetes.inventory import trouble
from sluice.kubernetes.quantity import format_quantity
from sluice.kubernetes.settings import Settings
from sluice.kubernetes.slices import capacity_bps
from sluice.kubernetes.state import Grant

log = logging.getLogger(__name__)

RESOURCE_NAME = f"{DRIVER}/bandwidth"
API = "v1beta1"
UNHURRIED = 1.0
"""Seconds between two looks at whether the kubelet is another one."""
HASTE = 0.2
"""Seconds between two questions for the pod of an allocation."""

Identified = Callable[[Grant, str, str], None]


def unit_ids(settings: Settings) -> list[str]:
    """One device per unit, NIC by NIC."""
    return [
        f"{nic.name}-{number:05d}"
        for nic in settings.nics
        for number in range(capacity_bps(nic, settings) // settings.unit)
    ]


def nic_of(device: str) -> str:
    return device.rpartition("-")[0]


def grant_of(devices: list[str], settings: Settings) -> Grant:
    """What these devices are worth; for nobody yet."""
    mark = hashlib.sha256(",".join(sorted(devices)).encode()).hexdigest()[:16]
    amounts: dict[str, int] = {}
    for device in devices:
        amounts[nic_of(device)] = amounts.get(nic_of(device), 0) + settings.unit
    shares = tuple(Share("", nic, bps) for nic, bps in sorted(amounts.items()))
    name = f"{DEVICES}{mark}"
    return Grant(name, "", "", "", "", name, shares, tuple(sorted(devices)))


class Plugin:
    """v1beta1.DevicePlugin"""

    def __init__(self, settings: Settings, attachments: Attachments) -> None:
        self._settings = settings
        self._attachments = attachments
        self.allocated = asyncio.Event()

    async def GetDevicePluginOptions(self, _request: Any, _context: Any) -> Any:
        return protocol.message(f"{API}.DevicePluginOptions")(get_preferred_allocation_available=True)

    async def ListAndWatch(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        said: dict[str, str] = {}
        while True:
            health = {nic.name: trouble(nic) for nic in self._settings.nics}
            if health != said:
                said = health
                answer = protocol.message(f"{API}.ListAndWatchResponse")()
                for device in unit_ids(self._settings):
                    answer.devices.add(ID=device, health="Unhealthy" if health[nic_of(device)] else "Healthy")
                yield answer
            await asyncio.sleep(UNHURRIED)

    async def GetPreferredAllocation(self, request: Any, _context: Any) -> Any:
        """All of one NIC, of the fullest that has room: bin packing."""
        answer = protocol.message(f"{API}.PreferredAllocationResponse")()
        for wanted in request.container_requests:
            chosen = list(wanted.must_include_deviceIDs)
            by_nic: dict[str, list[str]] = {}
            for device in sorted(set(wanted.available_deviceIDs) - set(chosen)):
                by_nic.setdefault(nic_of(device), []).append(device)
            missing = wanted.allocation_size - len(chosen)
            enough = [free for free in by_nic.values() if len(free) >= missing]
            # Where no NIC has enough, the emptiest first: as few NICs as can be.
            for free in [min(enough, key=len)] if enough else sorted(by_nic.values(), key=len, reverse=True):
                chosen += free[:missing]
                missing = wanted.allocation_size - len(chosen)
            answer.container_responses.add(deviceIDs=chosen)
        return answer

    async def Allocate(self, request: Any, context: Any) -> Any:
        answer = protocol.message(f"{API}.AllocateResponse")()
        done: list[str] = []
        try:
            for wanted in request.container_requests:
                grant = grant_of(list(wanted.devices_ids), self._settings)
                self._check_packed(grant)
                grant = self._attach(grant)
                done.append(grant.uid)
                edits = self._attachments.injection(grant)
                response = answer.container_responses.add(envs=edits.environment)
                for mount in edits.mounts:
                    response.mounts.add(container_path=mount.container, host_path=mount.host, read_only=mount.read_only)
                # With the rights that it has on the node: for pods that run as root.
                for each in edits.devices:
                    response.devices.add(container_path=each.path, host_path=each.path, permissions="rw")
        except (ValueError, OSError) as error:
            for uid in done:
                self._attachments.detach(uid)
            log.warning("allocating %s: %s", RESOURCE_NAME, error)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        self.allocated.set()
        return answer

    def _check_packed(self, grant: Grant) -> None:
        """ClaimError: what one NIC could give is scattered over several, since none has that much free."""
        amount = sum(share.bps for share in grant.shares)
        if len(grant.shares) < 2 or amount > max(capacity_bps(nic, self._settings) for nic in self._settings.nics):
            return
        free = ", ".join(
            f"{format_quantity(self._attachments.free_bps(nic.name))} of {nic.name}" for nic in self._settings.nics
        )
        raise ClaimError(f"no NIC of this node has {format_quantity(amount)} free: there are {free}")

    def _attach(self, grant: Grant) -> Grant:
        before = [old for old in self._attachments.grants.values() if set(old.devices) & set(grant.devices)]
        # An init container's go to the pod's others, and its directory is needed first. Its pod is not known yet.
        mine = next((old for old in before if not old.pod_uid), None)
        for old in before:
            # The kubelet gives what it considers free: whoever had it is gone.
            if old is not mine:
                self._attachments.detach(old.uid)
        if mine is not None and mine.uid != grant.uid:
            return self._attachments.succeed(mine, grant)
        self._attachments.attach(grant)
        return grant

    async def PreStartContainer(self, _request: Any, _context: Any) -> Any:
        return protocol.message(f"{API}.PreStartContainerResponse")()


class Server:
    """Serves the plugin and keeps it registered, with each kubelet that comes."""

    def __init__(self, settings: Settings, plugin: Plugin, attachments: Attachments, identified: Identified) -> None:
        directory = settings.kubelet_dir / "device-plugins"
        self._socket = directory / f"{DRIVER}.sock"
        self._kubelet = directory / "kubelet.sock"
        self._pod_resources = settings.kubelet_dir / "pod-resources" / "kubelet.sock"
        self._plugin = plugin
        self._attachments = attachments
        self._identified = identified
        self._server: grpc.aio.Server | None = None
        self._registered = -1

    async def run(self) -> None:
        """For ever; cancel it to end."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_registered())
                group.create_task(self._identify())
        finally:
            await self._close()

    async def _close(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=1)
            self._server = None
        self._socket.unlink(missing_ok=True)

    async def _keep_registered(self) -> None:
        while True:
            with suppress(OSError):
                inode = self._kubelet.stat().st_ino
                # A kubelet that starts removes all sockets but its own.
                if inode != self._registered or not self._socket.exists():
                    await self._register()
                    self._registered = inode
            await asyncio.sleep(UNHURRIED)

    async def _register(self) -> None:
        await self._close()
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((protocol.serve(f"{API}.DevicePlugin", self._plugin),))
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()
        request = protocol.message(f"{API}.RegisterRequest")(
            version=API,
            endpoint=self._socket.name,
            resource_name=RESOURCE_NAME,
            options={"get_preferred_allocation_available": True},
        )
        try:
            async with grpc.aio.insecure_channel(f"unix:{self._kubelet}") as channel:
                await protocol.call(channel, f"{API}.Registration", "Register")(request, timeout=5)
        except grpc.aio.AioRpcError as error:
            raise OSError(f"the kubelet refuses {RESOURCE_NAME}: {error.details()}") from None
        log.warning("registered %s with the kubelet", RESOURCE_NAME)

    async def _identify(self) -> None:
        while True:
            strangers = [grant for grant in self._attachments.grants.values() if grant.devices and not grant.pod]
            if not strangers:
                self._plugin.allocated.clear()
                await self._plugin.allocated.wait()
                continue
            try:
                owners = await self._owners()
            except grpc.aio.AioRpcError as error:
                log.warning("the kubelet's pod resources: %s", error.details())
                owners = {}
            for grant in strangers:
                if grant.devices in owners:
                    self._identified(grant, *owners[grant.devices])
            await asyncio.sleep(HASTE)

    async def _owners(self) -> dict[tuple[str, ...], tuple[str, str]]:
        """Namespace and name of the pod that has these devices."""
        request = protocol.message("v1.ListPodResourcesRequest")()
        async with grpc.aio.insecure_channel(f"unix:{self._pod_resources}") as channel:
            answer = await protocol.call(channel, "v1.PodResourcesLister", "List")(request, timeout=5)
        owners = {}
        for pod in answer.pod_resources:
            for container in pod.containers:
                # A container's devices come NUMA node by NUMA node.
                mine = [
                    one for each in container.devices if each.resource_name == RESOURCE_NAME for one in each.device_ids
                ]
                if mine:
                    owners[tuple(sorted(mine))] = (pod.namespace, pod.name)
        return owners
