# SPDX-License-Identifier: Apache-2.0
"""The node's ResourceSlice: each NIC is a device whose bandwidth many claims consume.

https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/ (consumable capacity)
"""

import asyncio
import logging
from typing import Any

from sluice.kubernetes import DRIVER
from sluice.kubernetes.api import RESOURCE, Api, ApiError, Object
from sluice.kubernetes.claim import CAPACITY
from sluice.kubernetes.events import Events, Subject
from sluice.kubernetes.inventory import Nic
from sluice.kubernetes.quantity import format_quantity
from sluice.kubernetes.settings import Settings
from sluice.kubernetes.watch import Watch

log = logging.getLogger(__name__)

SLICES = f"{RESOURCE}/resourceslices"


def capacity_bps(nic: Nic, settings: Settings) -> int:
    """What may be asked for in all: the wire times the over-commit ratio."""
    return int(nic.bandwidth_bps * settings.over_commit)


def device(nic: Nic, settings: Settings, more: Object) -> Object:
    """more: attributes of the node's router."""
    request = settings.request
    attributes: Object = {
        "interface": {"string": nic.interface},
        "linkLayer": {"string": nic.kind},
        "rdma": {"bool": nic.rdma},
        **more,
    }
    if nic.numa_node >= 0:
        attributes["numaNode"] = {"int": nic.numa_node}
    return {
        "name": nic.name,
        "allowMultipleAllocations": True,
        "attributes": attributes,
        "capacity": {
            CAPACITY: {
                "value": format_quantity(capacity_bps(nic, settings)),
                "requestPolicy": {
                    "default": format_quantity(request.default),
                    "validRange": {"min": format_quantity(request.min), "step": format_quantity(request.step)},
                },
            }
        },
    }


class Publisher:
    """Keeps the slice as it should be: who deletes or changes it finds it back."""

    def __init__(self, api: Api, settings: Settings, more: Object, events: Events) -> None:
        """more: attributes of the node's router."""
        self._events = events
        self._api = api
        self._settings = settings
        self._name = f"{settings.node}-{DRIVER}"
        self._devices = [device(nic, settings, more) for nic in settings.nics]
        self._disturbed = asyncio.Event()
        self._disturbed.set()
        self._watch: Watch[Any] = Watch(
            api,
            SLICES,
            lambda found: found if found["metadata"]["name"] == self._name else None,
            lambda _old, new: None if new is not None and self._as_published(new) else self._disturbed.set(),
            fieldSelector=f"spec.driver={DRIVER},spec.nodeName={settings.node}",
        )

    def _as_published(self, found: Object) -> bool:
        def essence(devices: list[Object]) -> list[tuple[Any, ...]]:
            return [(one["name"], one.get("attributes"), one.get("capacity")) for one in devices]

        return essence(found["spec"].get("devices") or []) == essence(self._devices)

    async def run(self) -> None:
        """For ever; cancel it to end."""
        watching = asyncio.create_task(self._watch.run())
        try:
            while True:
                await self._disturbed.wait()
                self._disturbed.clear()
                try:
                    await self.publish()
                except ApiError as error:
                    log.warning("publishing the node's NICs: %s", error)
                    await asyncio.sleep(1)
                    self._disturbed.set()
        finally:
            watching.cancel()

    async def publish(self) -> None:
        path = f"{SLICES}/{self._name}"
        node = await self._api.get(f"/api/v1/nodes/{self._settings.node}")
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._settings.node, "uid": node["metadata"]["uid"]}
        body: Object = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {"name": self._name, "ownerReferences": [owner]},
            "spec": {
                "driver": DRIVER,
                "nodeName": self._settings.node,
                "pool": {"name": self._settings.node, "generation": 1, "resourceSliceCount": 1},
                "devices": self._devices,
            },
        }
        try:
            found = await self._api.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            await self._api.create(SLICES, body)
            self._tell(owner["uid"])
            return
        if self._as_published(found) and found["metadata"].get("ownerReferences", [{}])[0].get("uid") == owner["uid"]:
            return
        # A scheduler that reads half of a change goes by the generation.
        body["spec"]["pool"]["generation"] = found["spec"]["pool"]["generation"] + 1
        body["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        await self._api.replace(path, body)
        self._tell(owner["uid"])

    def _tell(self, uid: str) -> None:
        nics = self._settings.nics
        text = ", ".join(f"{format_quantity(capacity_bps(nic, self._settings))} of {nic.name}" for nic in nics)
        log.warning("published the bandwidth of node %s: %s", self._settings.node, text)
        node = Subject("v1", "Node", "", self._settings.node, uid)
        self._events.inform(node, "BandwidthPublished", "Publishing", f"pods may have {text}")
