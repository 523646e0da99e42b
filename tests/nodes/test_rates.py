# SPDX-License-Identifier: Apache-2.0
"""Ceilings of who is at the other end hold between nodes: the receiver's, and those of whom one reads from."""

import subprocess
import time
from collections.abc import Iterator
from functools import partial

import pytest
from conftest import next_port, wait_until
from network import Cluster, Node, made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from made("alpha", "beta", "gamma")


def endless(cluster: Cluster, tool: str, sender: str, tenant: str) -> "list[subprocess.Popen[str]]":
    """Traffic without end between a tenant of one node and the tenant `server` of beta."""
    port = next_port()
    argv = [tool, "-p", str(port), "--run_infinitely", "-D", "1", "-s", "65536"]
    server = cluster["beta"].run("server", *argv)
    wait_until(lambda: cluster["beta"].listening(port) or server.poll() is not None, "the server")
    return [cluster[sender].run(tenant, *argv, cluster["beta"].address), server]


def moved(node: Node, counter: str) -> tuple[int, int]:
    status = node.ask("status")
    return status["tenants"]["server"]["counters"][counter], status["time_ns"]


def rate(node: Node, counter: str) -> float:
    """Bits per second over a second and more."""
    first = moved(node, counter)
    deadline = time.monotonic() + 1
    wait_until(lambda: time.monotonic() >= deadline, "time")
    second = moved(node, counter)
    return 8e9 * (second[0] - first[0]) / (second[1] - first[1])


def near(node: Node, counter: str, bps: float) -> bool:
    measured = rate(node, counter)
    print(f"{measured / 1e6:.1f} Mbit/s")
    return measured == pytest.approx(bps, rel=0.03)


@pytest.mark.parametrize(
    ("tool", "counter", "policy"),
    [("ib_write_bw", "rx_bytes", "max-ingress"), ("ib_read_bw", "tx_bytes", "max-egress")],
)
def test_the_other_ends_ceiling(cluster: Cluster, tool: str, counter: str, policy: str) -> None:
    beta = cluster["beta"]
    running = [*endless(cluster, tool, "alpha", "one"), *endless(cluster, tool, "gamma", "two")]
    try:
        before = moved(beta, counter)[0]
        wait_until(lambda: moved(beta, counter)[0] > before + 10**7, "traffic")
        for text, bps in (("300Mbps", 3e8), ("50Mbps", 5e7), ("600Mbps", 6e8)):
            beta.ask("policy-set", name="server", policy={policy: text})
            wait_until(partial(near, beta, counter, bps), text)
        assert all(child.poll() is None for child in running)
    finally:
        beta.ask("policy-set", name="server", policy={policy: "none"})
        for child in running:
            child.terminate()
        for child in running:
            child.wait(60)
