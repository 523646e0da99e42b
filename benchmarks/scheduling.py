# SPDX-License-Identifier: Apache-2.0
"""Kubernetes: what bandwidth costs the scheduler, what a claim costs a node, what 5,000 pods cost a router.

    make bench-kubernetes

Each round schedules the same pods in several ways (crowd.KINDS): one control plane, one run.
"""

import argparse
import asyncio
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import grpc.aio
import yaml
from cluster import DEPLOY
from conftest import wait_until
from control_plane import ControlPlane
from crowd import CLAIMS, KINDS, Crowd, crowd_pod, node_name
from programs import free_port, start, stop
from sluice.kubernetes import DRIVER, protocol
from sluice.kubernetes.api import Api
from sluice.kubernetes.directory import PodDirectory

NODES = 100


async def throughput(plane: ControlPlane, kinds: Sequence[str], pods: int, rounds: int) -> None:
    """kinds: of KINDS; "plain" is among them."""
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    processor: dict[str, dict[str, float]] = {}
    async with Crowd(plane, NODES) as crowd:
        for _ in range(rounds):
            for kind in kinds:
                before = plane.processor_seconds()
                rates[kind].append(pods / await crowd.schedule(kind, pods))
                after = plane.processor_seconds()
                processor[kind] = {name: 1000 * (after[name] - before[name]) / pods for name in after}
                await crowd.clear()
    plain = statistics.median(rates["plain"])
    for kind in kinds:
        median = statistics.median(rates[kind])
        print(f"schedule {pods} pods on {NODES} nodes, {kind:9}{median:8.0f} pods/s   {median / plain:.2f} of plain")
        print("    CPU of a pod: " + ", ".join(f"{name} {spent:.1f} ms" for name, spent in processor[kind].items()))


def start_router(plane: ControlPlane, root: Path, port: int) -> "subprocess.Popen[bytes]":
    """Of the crowd's first node, without a kubelet."""
    settings = root / "settings.yaml"
    settings.write_text(
        yaml.safe_dump(
            {
                "node": node_name(0),
                "kubeconfig": str(plane.kubeconfig),
                "nics": {"mlx5_0": "25G", "mlx5_1": "25G"},
                "kubelet-dir": str(root / "k"),
                "cdi-dir": str(root / "cdi"),
                "shim-dir": str(root / "shim"),
            }
        )
    )
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "sluice",
        "router",
        "--state-dir",
        root / "s",
        "--kubernetes",
        settings,
        "--http",
        str(port),
    ]
    return start(command, root / "log")


def page(port: int, name: str) -> str:
    """Of the router's HTTP server; empty while there is none."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=10) as answer:
        return str(answer.read().decode())
    return ""


async def prepare(plane: ControlPlane, rounds: int) -> None:
    """The kubelet's calls, one claim after the other, as the kubelet would see them."""
    root = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    socket = root / "k" / "plugins" / DRIVER / "dra.sock"
    async with Crowd(plane, 1) as crowd:
        port = free_port()
        router = start_router(plane, root, port)
        await crowd.schedule("template", 10)
        wait_until(lambda: page(port, "metrics").count("sluice_watch_up{") == 3, "the router")
        claims = (await crowd.api.list(CLAIMS))[0]
        seconds: dict[str, list[float]] = {"NodePrepareResources": [], "NodeUnprepareResources": []}
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            # A kubelet has connected long before the first claim.
            await channel.channel_ready()
            for method in [*seconds] * rounds:
                for each in claims:
                    request = protocol.message(f"{protocol.DRA}.{method}Request")()
                    metadata = each["metadata"]
                    request.claims.add(**{name: metadata[name] for name in ("namespace", "name", "uid")})
                    begun = time.monotonic()
                    call = protocol.call(channel, f"{protocol.DRA}.DRAPlugin", method)
                    answer = await call(request, wait_for_ready=True)
                    seconds[method].append(time.monotonic() - begun)
                    assert not answer.claims[metadata["uid"]].error, answer
        lines = page(port, "metrics").splitlines()
        own = [line.split() for line in lines if line.startswith("sluice_prepare_claim_seconds")]
        stop(router)
    shutil.rmtree(root)
    for method, times in seconds.items():
        order = sorted(times)
        print(
            f"{method}, as the kubelet sees it: median {1000 * statistics.median(order):.1f} ms, "
            f"99th percentile {1000 * order[int(0.99 * len(order))]:.1f} ms, first {1000 * times[0]:.1f} ms"
        )
    for name, count in own:
        if 'le="0.02"' in name:
            print(f"in the plugin at most 20 ms: {float(count):.0f} of {len(seconds['NodePrepareResources'])}")


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
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="beside plain")
    limit = "requests that the scheduler may send in a second (default: %(default)s, which nothing meets; its own: 50)"
    parser.add_argument("--scheduler-requests", type=int, default=1000, metavar="N", help=limit)
    parts = ("throughput", "prepare", "directory")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    plane = ControlPlane(options.scheduler_requests)
    plane.start()
    try:
        plane.kubectl("apply", "-f", DEPLOY / "kubernetes" / "deviceclass.yaml")
        for part in options.parts:
            asyncio.run(
                {
                    "throughput": lambda: throughput(
                        plane,
                        ["plain", *(kind for kind in options.kinds if kind != "plain")],
                        options.pods,
                        options.rounds,
                    ),
                    "prepare": lambda: prepare(plane, 10),
                    "directory": lambda: directory(plane, 5000),
                }[part]()
            )
    finally:
        plane.stop()


if __name__ == "__main__":
    main()
