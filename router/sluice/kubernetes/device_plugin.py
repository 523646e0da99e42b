# SPDX-License-Identifier: Apache-2.0
"""The extended resource rdma.sluice.dev/bandwidth, for clusters without DRA.

https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/
The scheduler knows one number for a node, and a container's bandwidth comes from one NIC. So the node offers what is
in use and what its emptiest NIC could still give: whatever the scheduler places by that fits, also where several pods
come before it hears of the first. Units therefore belong to no NIC: which one gives them is decided when it is known
how many are wanted, and is the fullest that has room.

The kubelet does not say for which pod it allocates. Its pod resources service tells a moment
later, before the container starts; the pod's address and annotations are applied then.
"""

import asyncio
import hashlib
import logging
import time
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
PATIENCE = 2.0
"""Seconds for which an allocation waits for room."""
HASTE = 0.2
"""Seconds between two questions for the pod of an allocation."""

Identified = Callable[[Grant, str, str], None]


def unit_ids(settings: Settings) -> list[str]:
    """As many as there are units in all NICs."""
    return [
        f"unit-{number:05d}"
        for number in range(sum(capacity_bps(nic, settings) // settings.unit for nic in settings.nics))
    ]


def grant_of(devices: list[str], nic: str, settings: Settings) -> Grant:
    """So many units of a NIC; for nobody yet."""
    mark = hashlib.sha256(",".join(sorted(devices)).encode()).hexdigest()[:16]
    name = f"{DEVICES}{mark}"
    share = Share("", nic, len(devices) * settings.unit)
    return Grant(name, "", "", "", "", name, (share,), tuple(sorted(devices)))


class Plugin:
    """v1beta1.DevicePlugin"""

    def __init__(self, settings: Settings, attachments: Attachments) -> None:
        self._settings = settings
        self._attachments = attachments
        self.allocated = asyncio.Event()
        self._changed = asyncio.Event()

    async def GetDevicePluginOptions(self, _request: Any, _context: Any) -> Any:
        return protocol.message(f"{API}.DevicePluginOptions")()

    def returned(self) -> None:
        """Something that was granted is free again."""
        self._changed.set()

    def offered(self) -> dict[str, bool]:
        """All units, and which of them can be had or are in use."""
        troubled = {nic.name for nic in self._settings.nics if trouble(nic)}
        offered: dict[str, bool] = {}
        for grant in self._attachments.grants.values():
            fine = not any(share.nic in troubled for share in grant.shares)
            offered |= dict.fromkeys(grant.devices, fine)
        room = max(
            (self._attachments.free_bps(nic.name) for nic in self._settings.nics if nic.name not in troubled), default=0
        )
        free = [unit for unit in unit_ids(self._settings) if unit not in offered]
        units = max(room // self._settings.unit, 0)
        return offered | dict.fromkeys(free[:units], True) | dict.fromkeys(free[units:], False)

    async def ListAndWatch(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        said: dict[str, bool] = {}
        while True:
            self._changed.clear()
            offered = self.offered()
            if offered != said:
                said = offered
                answer = protocol.message(f"{API}.ListAndWatchResponse")()
                for device, fine in sorted(offered.items()):
                    answer.devices.add(ID=device, health="Healthy" if fine else "Unhealthy")
                yield answer
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), UNHURRIED)

    async def GetPreferredAllocation(self, _request: Any, _context: Any) -> Any:
        """One unit is as good as another."""
        return protocol.message(f"{API}.PreferredAllocationResponse")()

    async def Allocate(self, request: Any, context: Any) -> Any:
        answer = protocol.message(f"{API}.AllocateResponse")()
        done: list[str] = []
        try:
            for wanted in request.container_requests:
                grant = await self._attach(list(wanted.devices_ids))
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
        self._changed.set()
        return answer

    async def _attach(self, devices: list[str]) -> Grant:
        """ClaimError, OSError."""
        before = [old for old in self._attachments.grants.values() if set(old.devices) & set(devices)]
        # An init container's go to the pod's others, and its directory is needed first. Its pod is not known yet.
        mine = next((old for old in before if not old.pod_uid), None)
        for old in before:
            # The kubelet gives what it considers free: whoever had it is gone.
            if old is not mine:
                self._attachments.detach(old.uid)
        if mine is not None and set(mine.devices) == set(devices):
            self._attachments.attach(mine)
            return mine
        grant = grant_of(devices, await self._choose(len(devices) * self._settings.unit, mine), self._settings)
        if mine is not None:
            return self._attachments.succeed(mine, grant)
        self._attachments.attach(grant)
        return grant

    async def _choose(self, bps: int, mine: Grant | None) -> str:
        """The fullest NIC that has so much free, with what its own container had before: bin packing. ClaimError."""
        had = {} if mine is None else {share.nic: share.bps for share in mine.shares}
        deadline = time.monotonic() + PATIENCE
        while True:
            wrong = {nic.name: trouble(nic) for nic in self._settings.nics}
            free = {name: self._attachments.free_bps(name) + had.get(name, 0) for name in wrong}
            enough = [name for name, room in free.items() if room >= bps and not wrong[name]]
            if enough:
                return min(enough, key=free.__getitem__)
            # The kubelet knows that a pod has ended a moment before the API server tells us.
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), deadline - time.monotonic())
            except TimeoutError:
                break
        there = ", ".join(
            f"{format_quantity(max(room, 0))} of {name}" + (f" ({wrong[name]})" if wrong[name] else "")
            for name, room in free.items()
        )
        raise ClaimError(f"no NIC of this node has {format_quantity(bps)} free: there are {there}")

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
        self.missing = f"{RESOURCE_NAME} is not registered yet"
        """Why the kubelet has no such resource; empty where it has."""

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
            try:
                inode = self._kubelet.stat().st_ino
                # A kubelet that starts removes all sockets but its own.
                if inode != self._registered or not self._socket.exists():
                    await self._register()
                    self._registered = inode
                self._missing("")
            except OSError as error:
                self._missing(f"{self._kubelet}: {error.strerror or error}")
            await asyncio.sleep(UNHURRIED)

    def _missing(self, why: str) -> None:
        if why and why != self.missing:
            log.warning("the kubelet does not know %s yet: %s", RESOURCE_NAME, why)
        self.missing = why

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
