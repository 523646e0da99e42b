# SPDX-License-Identifier: Apache-2.0
"""Many nodes and pods, as objects only: what the scheduler sees of a large cluster."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

from cluster import claim, template
from control_plane import WITHIN, ControlPlane
from sluice.kubernetes import DRIVER
from sluice.kubernetes.api import CONFLICT, RESOURCE, Api, ApiError
from sluice.kubernetes.inventory import Nic
from sluice.kubernetes.pod import Pod, read_pod
from sluice.kubernetes.settings import Settings
from sluice.kubernetes.slices import SLICES, device
from sluice.kubernetes.watch import Watch

NAMESPACE = "crowd"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
CLAIMS = f"{RESOURCE}/namespaces/{NAMESPACE}/resourceclaims"
EXTENDED = "rdma.sluice.dev/bandwidth"
KINDS = ("plain", "extended", "template", "claim", "device", "class")
"""Pods that ask for nothing; for 5 Gbit/s each by the extended resource, a claim's template, a claim that is there.

device: for a whole device of another driver, by a claim's template: the least that Kubernetes has to do for a claim.
class: for the same, by the extended resource that its DeviceClass stands for (KEP-5004).
"""
OTHER = "other.example"
OTHER_RESOURCE = f"{OTHER}/device"
"""That driver, and its DeviceClass. Each node has ten devices of it, of which nothing is said."""
DEVICES = 10
AT_ONCE = 50
"""Requests on the way to the API server."""
CROWD = {"crowd": "true"}
"""The label of its nodes, and of their slices."""


def node_name(index: int) -> str:
    return f"crowd-{index:03d}"


def node(index: int) -> dict[str, Any]:
    resources = {"cpu": "64", "memory": "256Gi", "pods": "250", EXTENDED: "50"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node_name(index), "labels": CROWD},
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Crowd", "message": ""}],
        },
    }


def _slice(driver: str, name: str, owner: str, devices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {
            "name": f"{name}-{driver}",
            "labels": CROWD,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": owner}],
        },
        "spec": {
            "driver": driver,
            "nodeName": name,
            "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
            "devices": devices,
        },
    }


def resource_slices(index: int, owner: str) -> list[dict[str, Any]]:
    """A node's: of ours with two NICs, and of the other driver."""
    name = node_name(index)
    settings = Settings(name, nics=tuple(Nic(f"mlx5-{port}", 25 * 10**9, f"mlx5_{port}") for port in range(2)))
    return [
        _slice(DRIVER, name, owner, [device(nic, settings, {}) for nic in settings.nics]),
        _slice(OTHER, name, owner, [{"name": f"device-{number}"} for number in range(DEVICES)]),
    ]


def other_driver() -> list[dict[str, Any]]:
    """Its DeviceClass, and a template of claims for one of its devices."""
    selector = {"cel": {"expression": f'device.driver == "{OTHER}"'}}
    kind = {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": OTHER}}
    made = template("whole", None)
    made["metadata"]["namespace"] = NAMESPACE
    made["spec"]["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"] = OTHER
    return [{**kind, "spec": {"selectors": [selector], "extendedResourceName": OTHER_RESOURCE}}, made]


def crowd_pod(name: str, kind: str, on: str = "") -> dict[str, Any]:
    """kind: see KINDS. on: a node; else scheduled."""
    container: dict[str, Any] = {"name": "main", "image": "none", "resources": {"requests": {"cpu": "100m"}}}
    spec: dict[str, Any] = {
        "containers": [container],
        "nodeSelector": CROWD,
        "tolerations": [{"operator": "Exists"}],
        "automountServiceAccountToken": False,
    }
    if kind == "extended":
        container["resources"]["limits"] = {EXTENDED: "5"}
    if kind == "class":
        container["resources"]["limits"] = {OTHER_RESOURCE: "1"}
    if kind in ("template", "claim", "device"):
        templates = {"template": "five", "device": "whole"}
        source = {"resourceClaimTemplateName": templates[kind]} if kind in templates else {"resourceClaimName": name}
        spec["resourceClaims"] = [{"name": "rdma", **source}]
        container["resources"]["claims"] = [{"name": "rdma"}]
    if on:
        spec["nodeName"] = on
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name[:20]}}, "spec": spec}


async def _create(api: Api, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        return await api.create(path, body)
    except ApiError as error:
        if error.status != CONFLICT:
            raise
        return await api.get(f"{path}/{body['metadata']['name']}")


async def _all(api: Api, path: str, bodies: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(body: dict[str, Any]) -> dict[str, Any]:
        async with limit:
            # A server that is too busy is asked again; it may have made it, and not said so in time.
            return await api.insist(partial(_create, api, path, body))

    return list(await asyncio.gather(*map(one, bodies)))


class Crowd:
    """An async context manager: its nodes and their slices, and a namespace for its pods."""

    def __init__(self, plane: ControlPlane, nodes: int) -> None:
        self._plane = plane
        self._nodes = nodes

    async def __aenter__(self) -> "Crowd":
        self.api = await Api.connect(self._plane.kubeconfig)
        self._plane.make_namespace(NAMESPACE)
        claims = template("five", "5G") | {"metadata": {"name": "five", "namespace": NAMESPACE}}
        self._plane.apply(claims, *other_driver())
        made = await _all(self.api, "/api/v1/nodes", map(node, range(self._nodes)))
        slices = (resource_slices(index, each["metadata"]["uid"]) for index, each in enumerate(made))
        await _all(self.api, SLICES, chain.from_iterable(slices))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.clear()
        # Their nodes' end would be theirs, but later: the next crowd has nodes of the same names.
        for path in ("/api/v1/nodes", SLICES):
            await self.api.insist(partial(self.api.request, "DELETE", path, labelSelector="crowd=true"))
        await self.api.close()
        self._plane.kubectl("delete", "namespace", NAMESPACE, WITHIN)

    async def create(self, pods: Iterable[dict[str, Any]]) -> None:
        await _all(self.api, PODS, pods)

    async def schedule(self, kind: str, count: int) -> float:
        """Seconds until all of so many new pods are bound to nodes."""
        bound: set[str] = set()
        finished = asyncio.Event()

        def changed(_old: Pod | None, new: Pod | None) -> None:
            if new is not None and new.node:
                bound.add(new.uid)
                if len(bound) >= count:
                    finished.set()

        watch: Watch[Pod] = Watch(self.api, PODS, read_pod, changed)
        following = asyncio.create_task(watch.run())
        await watch.synced.wait()
        names = [f"{kind}-{index:05d}" for index in range(count)]
        if kind == "claim":
            await _all(self.api, CLAIMS, (claim(name, "5G") for name in names))
        start = time.monotonic()
        await self.create(crowd_pod(name, kind) for name in names)
        await asyncio.wait_for(finished.wait(), 1200)
        seconds = time.monotonic() - start
        following.cancel()
        return seconds

    async def allocated(self) -> dict[tuple[str, str], int]:
        """Gbit/s that claims have, by node and NIC."""
        found: dict[tuple[str, str], int] = {}
        claims, _ = await self.api.list(CLAIMS)
        for each in claims:
            allocation = each.get("status", {}).get("allocation") or {"devices": {"results": []}}
            for result in allocation["devices"]["results"]:
                if result["driver"] != DRIVER:
                    continue
                key = (result["pool"], result["device"])
                found[key] = found.get(key, 0) + int(result["consumedCapacity"]["bandwidth"].removesuffix("G"))
        return found

    async def clear(self) -> None:
        """Deletes the pods, and their claims."""
        while (await self.api.list(PODS))[0] or (await self.api.list(CLAIMS))[0]:
            # The server goes on deleting when the answer takes too long for us.
            for path in (PODS, CLAIMS):
                with suppress(ApiError):
                    await self.api.request("DELETE", path, gracePeriodSeconds=0)
            await asyncio.sleep(0.2)
