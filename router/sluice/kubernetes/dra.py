# SPDX-License-Identifier: Apache-2.0
"""The DRA driver's services for the kubelet: registration, preparing and unpreparing claims, the NICs' health.

Sockets, as the kubelet expects them:
    KUBELET_DIR/plugins_registry/rdma.sluice.dev-reg.sock   the kubelet finds this one, and asks for the other
    KUBELET_DIR/plugins/rdma.sluice.dev/dra.sock
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio

from sluice.kubernetes import DRIVER, protocol
from sluice.kubernetes.api import RESOURCE, Api, ApiError
from sluice.kubernetes.attachments import Attachments, tenant_name
from sluice.kubernetes.claim import ClaimError, consumers, shares
from sluice.kubernetes.claim_status import ClaimStatus
from sluice.kubernetes.events import Events, Subject
from sluice.kubernetes.inventory import trouble
from sluice.kubernetes.quantity import format_quantity
from sluice.kubernetes.settings import Settings
from sluice.kubernetes.state import Grant

log = logging.getLogger(__name__)

VERSIONS = ["v1.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"]
BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
REGISTRATION_SECONDS = 30
"""A kubelet registers a driver within a second; who waits for so long waits for nothing."""
UNHURRIED = 1.0
"""Seconds between two looks at whether the sockets are there."""
HEALTH_SECONDS = 30
"""Between two words on the devices' health."""


class Registration:
    """pluginregistration.Registration"""

    def __init__(self, endpoint: Path) -> None:
        self._endpoint = endpoint
        self.registered = asyncio.Event()
        self.error = ""

    async def GetInfo(self, _request: Any, _context: Any) -> Any:
        return protocol.message("pluginregistration.PluginInfo")(
            type="DRAPlugin", name=DRIVER, endpoint=str(self._endpoint), supported_versions=VERSIONS
        )

    async def NotifyRegistrationStatus(self, request: Any, _context: Any) -> Any:
        self.error = request.error
        if request.plugin_registered:
            log.warning("the kubelet has registered %s", DRIVER)
            self.registered.set()
        else:
            log.error("the kubelet refuses %s: %s", DRIVER, request.error)
            self.registered.clear()
        return protocol.message("pluginregistration.RegistrationStatusResponse")()


class Timings:
    """A histogram. within: how many took at most so many seconds."""

    def __init__(self) -> None:
        self.within = dict.fromkeys(BUCKETS, 0)
        self.count = 0
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        for bound in self.within:
            self.within[bound] += seconds <= bound


class Plugin:
    """k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"""

    def __init__(
        self,
        api: Api,
        settings: Settings,
        attachments: Attachments,
        events: Events,
        status: ClaimStatus,
        granted: Callable[[Grant], None],
    ) -> None:
        self._granted = granted
        self._api = api
        self._settings = settings
        self._attachments = attachments
        self._events = events
        self._status = status
        self.timings = Timings()

    async def NodePrepareResources(self, request: Any, _context: Any) -> Any:
        answer = protocol.message(f"{protocol.DRA}.NodePrepareResourcesResponse")()
        for claim in request.claims:
            start = time.monotonic()
            try:
                for device in await self.prepare(claim.namespace, claim.name, claim.uid):
                    answer.claims[claim.uid].devices.add(**device)
            except (ClaimError, ValueError, ApiError, OSError) as error:
                log.warning("claim %s/%s: %s", claim.namespace, claim.name, error)
                answer.claims[claim.uid].error = f"claim {claim.namespace}/{claim.name}: {error}"
            self.timings.add(time.monotonic() - start)
        return answer

    async def prepare(self, namespace: str, name: str, uid: str) -> list[dict[str, Any]]:
        """The devices of a claim, for the kubelet. Again for a prepared one: the same answer."""
        grant = self._attachments.grants.get(uid)
        if grant is None:
            claim = await self._api.get(f"{RESOURCE}/namespaces/{namespace}/resourceclaims/{name}")
            if claim["metadata"]["uid"] != uid:
                raise ClaimError("another claim has this name by now")
            subject = Subject("resource.k8s.io/v1", "ResourceClaim", namespace, name, uid)
            try:
                grant = self._grant(claim)
                device = self._attachments.attach(grant)
            except ValueError as error:
                self._events.warn(subject, "BandwidthNotPrepared", "Preparing", str(error))
                self._status.failed(claim, str(error))
                for pod in consumers(claim):
                    self._events.warn(
                        Subject("v1", "Pod", namespace, pod.name, pod.uid),
                        "BandwidthNotPrepared",
                        "Preparing",
                        f"claim {name}: {error}",
                    )
                raise
            self._granted(grant)
            self._announce(grant)
        else:
            device = self._attachments.attach(grant)
        return [
            {
                "request_names": [share.request],
                "pool_name": self._settings.node,
                "device_name": share.nic,
                "cdi_device_ids": [device],
                **({"share_id": share.share_id} if share.share_id else {}),
            }
            for share in grant.shares
        ]

    def _grant(self, claim: Any) -> Grant:
        metadata = claim["metadata"]
        found = shares(claim, self._settings.node)
        pods = consumers(claim)
        if not pods:
            raise ClaimError("no pod has reserved it")
        pod = pods[0]
        # A pod that is part of a tenant already, by another claim, stays there.
        tenant = next(
            (known for known in (self._attachments.tenant_of_pod(one.uid) for one in pods) if known is not None),
            tenant_name(metadata["namespace"], pod.name, pod.uid),
        )
        return Grant(metadata["uid"], metadata["namespace"], metadata["name"], pod.name, pod.uid, tenant, tuple(found))

    def _announce(self, grant: Grant) -> None:
        amounts = ", ".join(f"{format_quantity(share.bps)} of {share.nic}" for share in grant.shares)
        note = f"claim {grant.claim}: {amounts}, as tenant {grant.tenant}"
        pod = Subject("v1", "Pod", grant.namespace, grant.pod, grant.pod_uid)
        self._events.inform(pod, "BandwidthGranted", "Preparing", note)

    async def NodeUnprepareResources(self, request: Any, _context: Any) -> Any:
        answer = protocol.message(f"{protocol.DRA}.NodeUnprepareResourcesResponse")()
        for claim in request.claims:
            try:
                self._status.forget(claim.uid)
                self._attachments.detach(claim.uid)
                answer.claims[claim.uid].error = ""
            except (ValueError, OSError) as error:
                log.error("claim %s/%s: %s", claim.namespace, claim.name, error)
                answer.claims[claim.uid].error = f"claim {claim.namespace}/{claim.name}: {error}"
        return answer


class Health:
    """v1.DRAResourceHealth"""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def NodeWatchResources(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        while True:
            answer = protocol.message("v1.NodeWatchResourcesResponse")()
            for nic in self._settings.nics:
                wrong = trouble(nic)
                answer.devices.add(
                    device={"pool_name": self._settings.node, "device_name": nic.name},
                    health=2 if wrong else 1,
                    last_updated_time=int(time.time()),
                    health_check_timeout_seconds=3 * HEALTH_SECONDS,
                    message=wrong,
                )
            yield answer
            await asyncio.sleep(HEALTH_SECONDS)


class Server:
    """Both sockets."""

    def __init__(self, settings: Settings, plugin: Plugin, health: Health) -> None:
        directory = settings.kubelet_dir / "plugins" / DRIVER
        self._endpoint = directory / "dra.sock"
        self._registry = settings.kubelet_dir / "plugins_registry" / f"{DRIVER}-reg.sock"
        self.registration = Registration(self._endpoint)
        older = f"{protocol.DRA}beta1.DRAPlugin"
        self._services = (
            (
                protocol.serve(f"{protocol.DRA}.DRAPlugin", plugin),
                protocol.serve(f"{protocol.DRA}.DRAPlugin", plugin, under=older),
                protocol.serve("v1.DRAResourceHealth", health),
                protocol.serve("v1.DRAResourceHealth", health, under="v1alpha1.DRAResourceHealth"),
            ),
            (protocol.serve("pluginregistration.Registration", self.registration),),
        )
        self._servers: list[grpc.aio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """OSError."""
        await self._serve()
        self._tasks = [asyncio.create_task(self._tell_if_nobody_comes()), asyncio.create_task(self._keep_sockets())]

    async def _serve(self) -> None:
        # The kubelet calls as soon as it sees the registration socket: the plugin's comes first.
        for services, path in zip(self._services, (self._endpoint, self._registry), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            server = grpc.aio.server()
            self._servers.append(server)
            server.add_generic_rpc_handlers(services)
            server.add_insecure_port(f"unix:{path}")
            await server.start()

    async def _keep_sockets(self) -> None:
        """Who installs a kubelet anew, or tidies up, may remove them: nobody finds the driver then."""
        while True:
            await asyncio.sleep(UNHURRIED)
            gone = [str(path) for path in (self._endpoint, self._registry) if not path.exists()]
            if not gone:
                continue
            self.registration.registered.clear()
            log.warning("removed by somebody, and made anew: %s", ", ".join(gone))
            try:
                await self._close()
                await self._serve()
            except (OSError, RuntimeError) as error:
                log.warning("%s: %s", self._registry.parent.parent, error)

    async def _tell_if_nobody_comes(self) -> None:
        try:
            await asyncio.wait_for(self.registration.registered.wait(), REGISTRATION_SECONDS)
        except TimeoutError:
            log.warning(
                "no kubelet has registered %s for %d s: is %s in its directory? (kubelet-dir in the settings)",
                DRIVER,
                REGISTRATION_SECONDS,
                self._registry,
            )

    async def _close(self) -> None:
        self._registry.unlink(missing_ok=True)
        for server in reversed(self._servers):
            await server.stop(grace=1)
        self._servers.clear()
        self._endpoint.unlink(missing_ok=True)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._close()
