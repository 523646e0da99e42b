# SPDX-License-Identifier: Apache-2.0
"""A large cluster, of which only the objects exist."""

import asyncio

from conftest import wait_until
from control_plane import ControlPlane
from crowd import NAMESPACE, Crowd, crowd_pod, node_name

pytest_plugins = ["cluster"]


def test_a_thousand_pods_fill_a_hundred_nodes(plane: ControlPlane) -> None:
    """Each of 200 NICs has room for five pods of 5G: all of it is given away, and not a bit more."""

    async def fill() -> dict[tuple[str, str], int]:
        async with Crowd(plane, 100) as crowd:
            await crowd.schedule("template", 1000)
            return await crowd.allocated()

    allocated = asyncio.run(fill())
    assert len(allocated) == 200
    assert set(allocated.values()) == {25}


def test_a_lost_node_takes_its_bandwidth_along(plane: ControlPlane) -> None:
    async def lose() -> None:
        async with Crowd(plane, 2) as crowd:
            plane.kubectl("delete", "node", node_name(0))
            gone = f"{node_name(0)}-rdma.sluice.dev"
            wait_until(
                lambda: gone not in [each["metadata"]["name"] for each in plane.get("resourceslices")["items"]],
                "its slice to go",
            )
            await crowd.create(crowd_pod(f"pod-{index}", "template") for index in range(12))
            pending = ("pods", "-n", NAMESPACE, "--field-selector", "spec.nodeName=")
            wait_until(lambda: len(plane.get(*pending)["items"]) == 2, "ten to be placed")
            assert set((await crowd.allocated()).values()) == {25}

    asyncio.run(lose())
