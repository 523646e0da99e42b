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
from sluice.kubernetes.inventory import Nic, trouble
from sluice.kubernetes.quantity import format_quantity
from sluice.kubernetes.settings import Settings
from sluice.kubernetes.watch import Watch

log = logging.getLogger(__name__)

SLICES = f"{RESOURCE}/resourceslices"

UNUSABLE = {"key": f"{DRIVER}/unusable", "effect": "NoSchedule"}
"""The taint of a NIC without a link. Kubernetes 1.36; older API servers leave it out."""
UNHURRIED = 1.0
"""Seconds between two looks at the NICs."""


def capacity_bps(nic: Nic, settings: Settings) -> int:
    """What may be asked for in all: the wire times the over-commit ratio."""
    return int(nic.bandwidth_bps * settings.over_commit)


def device(nic: Nic, settings: Settings, more: Object, wrong: str = "") -> Object:
    """more: attributes of the node's router. wrong: why nobody should be placed on it now."""
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
        **({"taints": [UNUSABLE]} if wrong else {}),
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
        self._more = more
        self._name = f"{settings.node}-{DRIVER}"
        self._wrong = self._look()
        self._taints = True
        self._disturbed = asyncio.Event()
        self._disturbed.set()
        self._watch: Watch[Any] = Watch(
            api,
            SLICES,
            lambda found: found if found["metadata"]["name"] == self._name else None,
            lambda _old, new: None if new is not None and self._as_published(new) else self._disturbed.set(),
            fieldSelector=f"spec.driver={DRIVER},spec.nodeName={settings.node}",
        )

    def _look(self) -> dict[str, str]:
        """What is wrong with each NIC."""
        return {nic.name: trouble(nic) for nic in self._settings.nics}

    def _devices(self) -> list[Object]:
        wrong = self._wrong if self._taints else {}
        return [device(nic, self._settings, self._more, wrong.get(nic.name, "")) for nic in self._settings.nics]

    def _as_published(self, found: Object) -> bool:
        def essence(devices: list[Object]) -> list[tuple[Any, ...]]:
            return [(one["name"], one.get("attributes"), one.get("capacity"), _taints(one)) for one in devices]

        return essence(found["spec"].get("devices") or []) == essence(self._devices())

    async def run(self) -> None:
        """For ever; cancel it to end."""
        tasks = [asyncio.create_task(self._watch.run()), asyncio.create_task(self.follow())]
        said = ""
        try:
            while True:
                await self.disturbed()
                try:
                    await self.publish()
                    said = ""
                except ApiError as error:
                    if str(error) != said:
                        log.warning("publishing the node's NICs, until it works: %s", error)
                    said = str(error)
                    await asyncio.sleep(1)
                    self._disturbed.set()
        finally:
            for task in tasks:
                task.cancel()

    async def disturbed(self) -> None:
        """Returns when there may be something to publish."""
        await self._disturbed.wait()
        self._disturbed.clear()

    async def follow(self) -> None:
        """For ever; cancel it to end. NICs lose their links, and get them back."""
        while True:
            wrong = self._look()
            if wrong != self._wrong:
                self._wrong = wrong
                self._disturbed.set()
            await asyncio.sleep(UNHURRIED)

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
                "devices": self._devices(),
            },
        }
        try:
            found = await self._api.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            self._published(body, await self._api.create(SLICES, body), owner["uid"])
            return
        if self._as_published(found) and found["metadata"].get("ownerReferences", [{}])[0].get("uid") == owner["uid"]:
            return
        # A scheduler that reads half of a change goes by the generation.
        body["spec"]["pool"]["generation"] = found["spec"]["pool"]["generation"] + 1
        body["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        self._published(body, await self._api.replace(path, body), owner["uid"])

    def _published(self, body: Object, made: Object, node_uid: str) -> None:
        """body: what was sent; made: what the API server has of it."""
        sent, kept = ([_taints(one) for one in each["spec"]["devices"]] for each in (body, made))
        if sent != kept:
            # It doesn't know taints: asked again and again, it would leave them out each time.
            self._taints = False
        fine = [nic for nic in self._settings.nics if not self._wrong[nic.name]]
        text = ", ".join(f"{format_quantity(capacity_bps(nic, self._settings))} of {nic.name}" for nic in fine)
        log.warning("published the bandwidth of node %s: %s", self._settings.node, text or "none")
        node = Subject("v1", "Node", "", self._settings.node, node_uid)
        if fine:
            self._events.inform(node, "BandwidthPublished", "Publishing", f"pods may have {text}")
        for wrong in filter(None, self._wrong.values()):
            log.warning("%s", wrong)
            self._events.warn(node, "NICUnusable", "Publishing", f"{wrong}: pods are placed elsewhere until it is up")


def _taints(found: Object) -> list[tuple[str, str]]:
    return [(taint["key"], taint["effect"]) for taint in found.get("taints") or []]
