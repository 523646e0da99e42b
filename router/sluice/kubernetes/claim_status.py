# SPDX-License-Identifier: Apache-2.0
"""What became of a claim's devices, in the claim's own status: `kubectl get resourceclaim -o yaml`.

status.devices, as KEP-4817 has it: a condition Ready for each device, and the network data of the
device that the pod sees. Who writes it is each driver for its own devices; the API server drops it with the allocation.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address

from sluice.kubernetes import DRIVER
from sluice.kubernetes.api import RESOURCE, Api, ApiError, Object
from sluice.kubernetes.claim import Share
from sluice.kubernetes.quantity import format_quantity
from sluice.kubernetes.state import Grant

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _News:
    namespace: str
    name: str
    uid: str
    devices: list[Object]


def _key(device: Object) -> tuple[str, str, str, str]:
    return device["driver"], device["pool"], device["device"], device.get("shareID") or ""


def _ready(device: Object) -> Object:
    conditions = device.get("conditions") or []
    return next((each for each in conditions if each["type"] == "Ready"), {})


class ClaimStatus:
    """Writes one claim after another; nobody waits for it."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self._queue: asyncio.Queue[_News] = asyncio.Queue()
        self._told: set[str] = set()

    def _device(self, nic: str, share_id: str, ready: bool, reason: str, message: str) -> Object:
        condition = {"type": "Ready", "status": str(ready), "reason": reason, "message": message[:1024]}
        found: Object = {"driver": DRIVER, "pool": self._node, "device": nic, "conditions": [condition]}
        return found | ({"shareID": share_id} if share_id else {})

    def attached(self, grant: Grant, address: IPv4Address, names: Mapping[str, str]) -> None:
        """The pod has its devices. names: what they are called there, by NIC."""
        if not grant.claim or grant.uid in self._told:
            return
        self._told.add(grant.uid)

        def device(share: Share) -> Object:
            amount = format_quantity(share.bps) if share.bps else "all"
            found = self._device(
                share.nic, share.share_id, True, "BandwidthGranted", f"{amount} for tenant {grant.tenant}"
            )
            return found | {"networkData": {"interfaceName": names[share.nic], "ips": [f"{address}/32"]}}

        self._queue.put_nowait(_News(grant.namespace, grant.claim, grant.uid, [device(each) for each in grant.shares]))

    def failed(self, claim: Object, error: str) -> None:
        """It can't be prepared."""
        metadata = claim["metadata"]
        results = (claim.get("status", {}).get("allocation") or {}).get("devices", {}).get("results") or []
        devices = [
            self._device(each["device"], each.get("shareID") or "", False, "BandwidthNotPrepared", error)
            for each in results
            if each["driver"] == DRIVER and each["pool"] == self._node
        ]
        if devices:
            self._queue.put_nowait(_News(metadata["namespace"], metadata["name"], metadata["uid"], devices))

    def forget(self, uid: str) -> None:
        self._told.discard(uid)

    async def run(self) -> None:
        """For ever; cancel it to end."""
        while True:
            news = await self._queue.get()
            try:
                # What is read is older than what somebody writes meanwhile: a conflict, and read anew.
                await self._api.insist(partial(self._write, news))
            except ApiError as error:
                # The claim may be gone by now, which is no trouble.
                level = logging.INFO if error.status == 404 else logging.WARNING
                log.log(level, "status of claim %s/%s: %s", news.namespace, news.name, error)

    async def _write(self, news: _News) -> None:
        path = f"{RESOURCE}/namespaces/{news.namespace}/resourceclaims/{news.name}"
        found = await self._api.get(path)
        if found["metadata"]["uid"] != news.uid:
            return
        before = {_key(each): each for each in found.get("status", {}).get("devices") or []}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        devices = []
        for device in news.devices:
            old, condition = _ready(before.get(_key(device), {})), _ready(device)
            since = old["lastTransitionTime"] if old.get("status") == condition["status"] else now
            devices.append(device | {"conditions": [condition | {"lastTransitionTime": since}]})
        if all(before.get(_key(device)) == device for device in devices):
            return
        await self._api.apply(
            f"{path}/status",
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "ResourceClaim",
                "metadata": {"name": news.name, "namespace": news.namespace, "uid": news.uid},
                "status": {"devices": devices},
            },
        )
