# SPDX-License-Identifier: Apache-2.0
"""The extended resource rdma.sluice.dev/bandwidth, for clusters without DRA.

https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/
The scheduler knows one number for a node, and a pod's bandwidth comes from one NIC. So the node offers what is
in use and what its emptiest NIC could still give: whatever the scheduler places by that fits, also where several pods
come before it hears of the first. Units therefore belong to no NIC: which one gives them is decided when it is known
how many a pod wants, and is the fullest that has room.

The kubelet allocates container by container, and does not say for which pod (Allocate). When it is about to create
one (PreStartContainer), all of the pod's have their units, and its pod resources service tells whose they are: then the
pod gets its place as a whole. Where no NIC has room, since the scheduler has counted what it has not heard of
yet, the container is not created, and the kubelet asks again: a pod waits, where a refused allocation would be its end.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any

import grpc.aio

from sluice.kubernetes import DRIVER, protocol
from sluice.kubernetes.attachments import DEVICES, Attachments, tenant_name
from sluice.kubernetes.claim import ClaimError, Share
from sluice.kubernetes.events import Events
from sluice.kubernetes.gate import subject_of
from sluice.kubernetes.inventory import trouble
from sluice.kubernetes.pod import Pod
from sluice.kubernetes.pod_resources import Holders, PodResources
from sluice.kubernetes.quantity import format_quantity
from sluice.kubernetes.settings import Settings
from sluice.kubernetes.slices import capacity_bps
from sluice.kubernetes.state import Grant

log = logging.getLogger(__name__)

RESOURCE_NAME = f"{DRIVER}/bandwidth"
API = "v1beta1"
UNHURRIED = 1.0
"""Seconds between two looks at whether the kubelet is another one."""
PATIENCE = 10.0
"""Seconds for which a container waits for room before the kubelet hears why. Its own limit for the call is 30."""
HASTE = 0.2
"""Seconds between two questions to the kubelet."""
UNCLAIMED = 10.0
"""Seconds after which an allocation of which the kubelet says nothing is nobody's: the pod was not admitted."""


def options() -> Any:
    """The kubelet tells before it creates a container."""
    return protocol.message(f"{API}.DevicePluginOptions")(pre_start_required=True)


def unit_ids(settings: Settings) -> list[str]:
    """As many as there are units in all NICs."""
    return [
        f"unit-{number:05d}"
        for number in range(sum(capacity_bps(nic, settings) // settings.unit for nic in settings.nics))
    ]


def directory_name(units: Iterable[str]) -> str:
    """Of what a container with these units mounts."""
    return DEVICES + hashlib.sha256(",".join(sorted(units)).encode()).hexdigest()[:16]


class Plugin:
    """v1beta1.DevicePlugin"""

    def __init__(
        self,
        settings: Settings,
        attachments: Attachments,
        events: Events,
        kubelet: PodResources,
        find_pod: Callable[[str, str], Pod | None],
        granted: Callable[[Grant], None],
    ) -> None:
        """find_pod(namespace, name): one of this node's. granted(): a pod has got its place."""
        self._settings = settings
        self._attachments = attachments
        self._events = events
        self._kubelet = kubelet
        self._find_pod = find_pod
        self._granted = granted
        self._allocated: dict[tuple[str, ...], float] = {}
        """Units of containers whose pods have no place yet, and since when."""
        self._hopeless: set[str] = set()
        """Units of pods that want more than any NIC has."""
        self._changed = asyncio.Event()

    async def GetDevicePluginOptions(self, _request: Any, _context: Any) -> Any:
        return options()

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
        allocated = {unit for units in self._allocated for unit in units}
        offered |= dict.fromkeys(allocated, True)
        room = max(
            (self._attachments.free_bps(nic.name) for nic in self._settings.nics if nic.name not in troubled), default=0
        )
        free = [unit for unit in unit_ids(self._settings) if unit not in offered]
        # Those who wait come first.
        units = max(room // self._settings.unit - len(allocated - self._hopeless), 0)
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
        most = max(self._capacities())
        for wanted in request.container_requests:
            units = tuple(sorted(wanted.devices_ids))
            if len(units) > most:
                error = (
                    f"no NIC of this node ever has {self._amount(len(units))} for one container: "
                    f"the most is {self._amount(most)}"
                )
                log.warning("allocating %s: %s", RESOURCE_NAME, error)
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, error)
            self._take(units)
            edits = self._attachments.injection_of(directory_name(units))
            response = answer.container_responses.add(envs=edits.environment)
            for mount in edits.mounts:
                response.mounts.add(container_path=mount.container, host_path=mount.host, read_only=mount.read_only)
            # With the rights that it has on the node: for pods that run as root.
            for each in edits.devices:
                response.devices.add(container_path=each.path, host_path=each.path, permissions="rw")
        self._changed.set()
        return answer

    def _take(self, units: tuple[str, ...]) -> None:
        """The kubelet gives what it considers free: whoever had it is gone, or an init container of the same pod."""
        for old in [old for old in self._allocated if set(old) & set(units)]:
            del self._allocated[old]
        for grant in list(self._attachments.grants.values()):
            if set(grant.devices) & set(units):
                self._attachments.detach(grant.uid)
        self._allocated[units] = time.monotonic()

    def _capacities(self) -> list[int]:
        """Units of each NIC."""
        return [capacity_bps(nic, self._settings) // self._settings.unit for nic in self._settings.nics]

    def _amount(self, units: int) -> str:
        return format_quantity(units * self._settings.unit)

    async def PreStartContainer(self, request: Any, context: Any) -> Any:
        units = set(request.devices_ids)
        deadline = time.monotonic() + PATIENCE
        while True:
            self._changed.clear()
            try:
                grant = self._grant_of(units) or self._place(units, await self._kubelet.holders())
                self._attachments.add_twin(grant.uid, directory_name(units))
                return protocol.message(f"{API}.PreStartContainerResponse")()
            except (ValueError, OSError) as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    log.warning("starting a container with %s: %s", RESOURCE_NAME, error)
                    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(HASTE, left))

    def _grant_of(self, units: set[str]) -> Grant | None:
        return next((grant for grant in self._attachments.grants.values() if units & set(grant.devices)), None)

    def _place(self, units: set[str], holders: Holders) -> Grant:
        """Gives the pod that has these units its bandwidth, all of it of one NIC. ClaimError, OSError."""
        # It may have got its place while the kubelet answered.
        grant = self._grant_of(units)
        if grant is not None:
            return grant
        whose = next((whose for whose, held in holders.items() if units & set(held)), None)
        if whose is None:
            raise ClaimError("the kubelet names no pod with this bandwidth that has it beyond its init containers")
        pod = self._find_pod(*whose)
        if pod is None:
            raise ClaimError(f"the API server has not told of pod {'/'.join(whose)} yet")
        wanted = holders[whose]
        try:
            share = Share("", self._choose(pod, wanted), len(wanted) * self._settings.unit)
        except ClaimError as error:
            self._events.warn(subject_of(pod), "BandwidthAwaited", "Allocating", str(error))
            raise
        tenant = tenant_name(pod.namespace, pod.name, pod.uid)
        grant = Grant(pod.uid, pod.namespace, "", pod.name, pod.uid, tenant, (share,), wanted)
        self._attachments.attach(grant)
        for old in [old for old in self._allocated if set(old) & (set(wanted) | units)]:
            del self._allocated[old]
        self._changed.set()
        self._granted(grant)
        return grant

    def _choose(self, pod: Pod, wanted: tuple[str, ...]) -> str:
        """The fullest NIC that has so much free: bin packing. ClaimError."""
        wrong = {nic.name: trouble(nic) for nic in self._settings.nics}
        free = {name: self._attachments.free_bps(name) for name in wrong}
        bps = len(wanted) * self._settings.unit
        enough = [name for name, room in free.items() if room >= bps and not wrong[name]]
        if enough:
            return min(enough, key=free.__getitem__)
        whose, most = f"pod {pod.namespace}/{pod.name}", max(self._capacities())
        if len(wanted) > most:
            self._hopeless |= set(wanted)
            raise ClaimError(
                f"{whose} asks for {self._amount(len(wanted))} in all its containers, and no NIC of this node ever has "
                f"that: the most is {self._amount(most)}"
            )
        there = ", ".join(
            f"{format_quantity(max(room, 0))} of {name}" + (f" ({wrong[name]})" if wrong[name] else "")
            for name, room in free.items()
        )
        raise ClaimError(
            f"no NIC of this node has the {self._amount(len(wanted))} free that {whose} asks for: there are {there}; "
            "it starts when one has"
        )

    async def forget_unclaimed(self) -> None:
        """Allocations of pods that never came: the kubelet has not admitted them, for another reason. OSError."""
        if not self._allocated:
            self._hopeless.clear()
            return
        held = {unit for units in (await self._kubelet.holders()).values() for unit in units}
        late = time.monotonic() - UNCLAIMED
        for units, since in list(self._allocated.items()):
            if since < late and held.isdisjoint(units):
                del self._allocated[units]
                self._hopeless -= set(units)
                self._changed.set()


class Server:
    """Serves the plugin and keeps it registered, with each kubelet that comes."""

    def __init__(self, settings: Settings, plugin: Plugin) -> None:
        directory = settings.kubelet_dir / "device-plugins"
        self._socket = directory / f"{DRIVER}.sock"
        self._kubelet = directory / "kubelet.sock"
        self._plugin = plugin
        self._server: grpc.aio.Server | None = None
        self._registered = -1
        self.missing = f"{RESOURCE_NAME} is not registered yet"
        """Why the kubelet has no such resource; empty where it has."""

    async def run(self) -> None:
        """For ever; cancel it to end."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_registered())
                group.create_task(self._keep_tidy())
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
            options=options(),
        )
        try:
            async with grpc.aio.insecure_channel(f"unix:{self._kubelet}") as channel:
                await protocol.call(channel, f"{API}.Registration", "Register")(request, timeout=5)
        except grpc.aio.AioRpcError as error:
            raise OSError(f"the kubelet refuses {RESOURCE_NAME}: {error.details()}") from None
        log.warning("registered %s with the kubelet", RESOURCE_NAME)

    async def _keep_tidy(self) -> None:
        while True:
            try:
                await self._plugin.forget_unclaimed()
            except OSError as error:
                log.warning("%s", error)
            await asyncio.sleep(UNHURRIED)
