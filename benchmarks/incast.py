#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An incast from two nodes into a third: what is left of a victim's guarantee there.

    make bench-incast            everything, as a table (about a minute; as root)
    benchmarks/incast.py --json  the same for machines

Three network namespaces are three nodes. Beta's router has a capacity and has promised most of it to the tenant
victim, to which one QP of alpha's writes, or which reads by one from there. Then two other tenants of beta are sent all
that alpha and gamma have: WRITEs on 8 QPs each, READs of theirs, or datagrams. Then the same where beta's link itself
(tc's tbf) carries hardly more than that capacity.
"""

import argparse
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from conftest import next_port, wait_until
from figure import Figure, show
from local import BUILD
from network import Cluster, Node

MBPS = 10**6
CAPACITY, GUARANTEE, LINK = 800 * MBPS, 600 * MBPS, 1000 * MBPS
SECONDS = 3.0
LOAD = BUILD / "load"


def _start(cluster: Cluster, kind: str, node: str, tenant: str, queue_pairs: int) -> "list[subprocess.Popen[str]]":
    """Bytes arrive at this tenant of beta's, from a node."""
    port = next_port()
    ends = (node, f"{tenant}-peer"), ("beta", tenant)
    (client, client_name), (server, server_name) = ends[::-1] if kind == "read" else ends
    there, here = cluster[server], cluster[client]
    size, depth = ("4096", "256") if kind == "datagrams" else ("65536", "16")
    passive = there.run(server_name, LOAD.absolute(), str(port))
    active = [str(LOAD.absolute()), str(port), there.address, kind, size, depth, str(queue_pairs), "3600"]
    wait_until(lambda: there.listening(port) or passive.poll() is not None, "the passive end")
    running = here.run(client_name, *active)
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()
    return [running, passive]


@contextmanager
def traffic(cluster: Cluster, kind: str, node: str, tenant: str, queue_pairs: int = 1) -> Iterator[None]:
    before = _received(cluster["beta"], tenant)
    children = _start(cluster, kind, node, tenant, queue_pairs)
    try:
        wait_until(lambda: _received(cluster["beta"], tenant) > before + 10**5, f"traffic of {tenant}")
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(60)


def _received(node: Node, tenant: str) -> int:
    tenants = node.ask("status")["tenants"]
    return int(tenants[tenant]["counters"]["rx_bytes"]) if tenant in tenants else 0


def _rate(node: Node, tenant: str) -> float:
    """Mbit/s."""
    first, start = _received(node, tenant), time.monotonic()
    time.sleep(SECONDS)
    return (_received(node, tenant) - first) * 8 / (time.monotonic() - start) / MBPS


def measure(cluster: Cluster, where: str) -> list[Figure]:
    figures = []
    for victim in ("write", "read"):
        with traffic(cluster, victim, "alpha", "victim"):
            for attack in ("write", "read", "datagrams"):
                one = traffic(cluster, attack, "alpha", f"{attack}-one", 8)
                two = traffic(cluster, attack, "gamma", f"{attack}-two", 8)
                with one, two:
                    rate = _rate(cluster["beta"], "victim")
                what = f"{victim.upper()} beside {attack}{where}"
                figures.append(Figure(what, rate, "Mbit/s", "its guarantee", 0.97, True, GUARANTEE / MBPS))
    return figures


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--json", action="store_true", help="for machines")
    options = arguments.parse_args()
    cluster = Cluster("alpha", "beta", "gamma", options={"beta": ("--capacity", f"{CAPACITY // MBPS}Mbps")})
    try:
        beta = cluster["beta"]
        beta.ask("tenant-add", name="victim", policy={"min-ingress": f"{GUARANTEE // MBPS}Mbps"})
        figures = measure(cluster, "")
        link = ["tc", "qdisc", "add", "dev", beta.link, "root", "tbf", "rate", f"{LINK // MBPS}mbit"]
        subprocess.run([*link, "burst", "256k", "latency", "10ms"], check=True)
        figures += measure(cluster, ", narrow link")
    finally:
        cluster.close()
    show(figures, options.json)


if __name__ == "__main__":
    main()
