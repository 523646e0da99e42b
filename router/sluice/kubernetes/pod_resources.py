# SPDX-License-Identifier: Apache-2.0
"""Which pod has which of a device plugin's units, from the kubelet.

https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/#monitoring-device-plugin-resources
"""

from pathlib import Path

import grpc.aio

from sluice.kubernetes import protocol

Holders = dict[tuple[str, str], tuple[str, ...]]
"""Namespace and name of a pod: its containers' units. Init containers that end are left out: what they had is among the
others'."""


class PodResources:
    """v1.PodResourcesLister of a kubelet."""

    def __init__(self, kubelet_dir: Path, resource_name: str) -> None:
        self._socket = kubelet_dir / "pod-resources" / "kubelet.sock"
        self._resource_name = resource_name

    async def holders(self) -> Holders:
        """Of all pods that the kubelet has not done with. OSError."""
        request = protocol.message("v1.ListPodResourcesRequest")()
        try:
            async with grpc.aio.insecure_channel(f"unix:{self._socket}") as channel:
                answer = await protocol.call(channel, "v1.PodResourcesLister", "List")(request, timeout=5)
        except grpc.aio.AioRpcError as error:
            raise OSError(f"the kubelet does not say whose units are whose: {error.details()}") from None
        found: Holders = {}
        for pod in answer.pod_resources:
            devices = [each for container in pod.containers for each in container.devices]
            units = [unit for each in devices if each.resource_name == self._resource_name for unit in each.device_ids]
            if units:
                found[pod.namespace, pod.name] = tuple(sorted(units))
        return found
