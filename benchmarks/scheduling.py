# SPDX-License-Identifier: Apache-2.0
"""Kubernetes: what bandwidth costs the scheduler, and what 5,000 pods cost a router.

    make bench-kubernetes

Each round schedules the same pods in four ways (crowd.KINDS): one control plane, one run.
"""

import argparse
import asyncio
import resource
import statistics
import time

from cluster import DEPLOY
from control_plane import ControlPlane
from crowd import KINDS, Crowd, crowd_pod, node_name
from sluice.kubernetes.api import Api
from sluice.kubernetes.directory import PodDirectory

NODES = 100


async def throughput(plane: ControlPlane, pods: int, rounds: int) -> None:
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    processor: dict[str, dict[str, float]] = {}
    async with Crowd(plane, NODES) as crowd:
        for _ in range(rounds):
            for kind in KINDS:
                before = plane.processor_seconds()
                rates[kind].append(pods / await crowd.schedule(kind, pods))
                after = plane.processor_seconds()
                processor[kind] = {name: 1000 * (after[name] - before[name]) / pods for name in after}
                await crowd.clear()
    plain = statistics.median(rates["plain"])
    for kind in KINDS:
        median = statistics.median(rates[kind])
        print(f"schedule {pods} pods on {NODES} nodes, {kind:9}{median:8.0f} pods/s   {median / plain:.2f} of plain")
        print("    CPU of a pod: " + ", ".join(f"{name} {spent:.1f} ms" for name, spent in processor[kind].items()))


async def directory(plane: ControlPlane, pods: int) -> None:
    async with Crowd(plane, NODES) as crowd:
        await crowd.create(crowd_pod(f"pod-{index:05d}", "plain", node_name(index % NODES)) for index in range(pods))
        api = await Api.connect(plane.kubeconfig)
        before = resource.getrusage(resource.RUSAGE_SELF)
        found = PodDirectory(api, lambda pod: pod.name, lambda _old, _new: None, lambda: None)
        start = time.monotonic()
        running = asyncio.create_task(found.run())
        await found.synced()
        seconds = time.monotonic() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        count = len(found.pods.objects)
        print(f"directory, read {count} pods: {seconds:.2f} s, {processor:.2f} s of CPU")
        before = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.sleep(10)
        after = resource.getrusage(resource.RUSAGE_SELF)
        idle = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"directory, watching them for 10 s: {idle * 1000:.0f} ms of CPU")
        running.cancel()
        await api.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    plane = ControlPlane()
    plane.start()
    try:
        plane.kubectl("apply", "-f", DEPLOY / "kubernetes" / "deviceclass.yaml")
        asyncio.run(throughput(plane, options.pods, options.rounds))
        asyncio.run(directory(plane, 5000))
    finally:
        plane.stop()


if __name__ == "__main__":
    main()
