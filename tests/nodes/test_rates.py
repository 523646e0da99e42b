# SPDX-License-Identifier: Apache-2.0
"""Ceilings and guarantees of who is at the other end hold between nodes: the receiver's, and of whom one reads from."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import PATIENCE, next_port, wait_until
from conftest import endless as endless_argv
from network import Cluster, Node, made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from made("alpha", "beta", "gamma")


def endless(
    cluster: Cluster, tool: str, client: tuple[str, str], server: tuple[str, str], *options: str
) -> "list[subprocess.Popen[str]]":
    """Traffic without end between a tenant (node and name) and another."""
    port = next_port()
    argv = endless_argv(tool, port, *options)
    node = cluster[server[0]]
    passive = node.run(server[1], *argv)
    wait_until(lambda: node.listening(port) or passive.poll() is not None, "the server")
    return [cluster[client[0]].run(client[1], *argv, node.address), passive]


def end(children: "list[subprocess.Popen[str]]") -> None:
    for child in children:
        child.terminate()
    for child in children:
        child.wait(PATIENCE)


def moved(node: Node, counter: str, tenants: tuple[str, ...]) -> tuple[int, int]:
    """The sum over tenants, and when."""
    status = node.ask("status")
    return sum(status["tenants"][name]["counters"][counter] for name in tenants), status["time_ns"]


def rate(node: Node, counter: str, *tenants: str) -> float:
    """Bits per second over a second and more."""
    first = moved(node, counter, tenants)
    deadline = time.monotonic() + 1
    wait_until(lambda: time.monotonic() >= deadline, "time")
    second = moved(node, counter, tenants)
    return 8e9 * (second[0] - first[0]) / (second[1] - first[1])


def near(node: Node, counter: str, bps: float) -> bool:
    measured = rate(node, counter, "server")
    print(f"{measured / 1e6:.1f} Mbit/s")
    return measured == pytest.approx(bps, rel=0.03)


@pytest.mark.parametrize(
    ("tool", "counter", "policy"),
    [("ib_write_bw", "rx_bytes", "max-ingress"), ("ib_read_bw", "tx_bytes", "max-egress")],
)
def test_the_other_ends_ceiling(cluster: Cluster, tool: str, counter: str, policy: str) -> None:
    beta = cluster["beta"]
    running = [
        *endless(cluster, tool, ("alpha", "one"), ("beta", "server")),
        *endless(cluster, tool, ("gamma", "two"), ("beta", "server")),
    ]
    try:
        before = moved(beta, counter, ("server",))[0]
        wait_until(lambda: moved(beta, counter, ("server",))[0] > before + 10**7, "traffic")
        for text, bps in (("300Mbps", 3e8), ("50Mbps", 5e7), ("600Mbps", 6e8)):
            beta.ask("policy-set", name="server", policy={policy: text})
            wait_until(partial(near, beta, counter, bps), text)
        assert all(child.poll() is None for child in running)
    finally:
        beta.ask("policy-set", name="server", policy={policy: "none"})
        end(running)


@pytest.mark.parametrize("service", [("-c", "RC"), ("-c", "UD", "-s", "1024")], ids=" ".join)
def test_who_stops_receiving_delays_nobody(cluster: Cluster, service: tuple[str, ...]) -> None:
    """Its process is stopped, with its receives used up and its sockets full: other tenants of the same nodes go on."""
    beta = cluster["beta"]
    running = endless(cluster, "ib_send_bw", ("alpha", "one"), ("beta", "stops"), *service)
    stopped: list[int] = []

    def goes_on(tenant: str, amount: int) -> None:
        before = moved(beta, "rx_bytes", (tenant,))[0]
        wait_until(lambda: moved(beta, "rx_bytes", (tenant,))[0] >= before + amount, f"bytes of {tenant}")

    try:
        wait_until(lambda: "stops" in beta.ask("status")["tenants"], "the tenant")
        goes_on("stops", 10**6)
        stopped = beta.status("stops")["processes"]
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        running += endless(cluster, "ib_send_bw", ("alpha", "two"), ("beta", "other"), "-c", "RC", "-s", "65536")
        running += endless(cluster, "ib_send_bw", ("alpha", "two"), ("beta", "other-ud"), "-c", "UD", "-s", "1024")
        wait_until(lambda: {"other", "other-ud"} <= beta.ask("status")["tenants"].keys(), "the tenants")
        goes_on("other", 10**8)
        goes_on("other-ud", 10**6)
        for process in stopped:
            os.kill(process, signal.SIGCONT)
        stopped = []
        goes_on("stops", 10**6)
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)
        end(running)


CAPACITY, GUARANTEE, LINK = 80, 60, 100
"""Mbit/s: far below what a machine that is busy otherwise can do."""


@pytest.fixture(scope="module")
def narrow() -> Iterator[Cluster]:
    """Beta has a wire of CAPACITY, and promises a victim most of it, and a link not much wider."""
    for cluster in made("alpha", "beta", "gamma", options={"beta": ("--capacity", f"{CAPACITY}Mbps")}):
        beta = cluster["beta"]
        beta.ask("tenant-add", name="victim", policy={"min-ingress": f"{GUARANTEE}Mbps"})
        # A kernel without it has a link that never fills: easier, and still worth the test.
        link = [
            "tc",
            "qdisc",
            "add",
            "dev",
            beta.link,
            "root",
            "tbf",
            "rate",
            f"{LINK}mbit",
            "burst",
            "64k",
            "latency",
            "20ms",
        ]
        subprocess.run(link, check=False)
        yield cluster


def towards_beta(cluster: Cluster, load: Path, kind: str, node: str, tenant: str) -> "list[subprocess.Popen[str]]":
    """Bytes arrive at this tenant of beta's without end; who reads is the client."""
    ends = (node, f"{tenant}-peer"), ("beta", tenant)
    if kind == "datagrams":
        return endless(cluster, "ib_send_bw", *ends, "-c", "UD", "-s", "4096")
    (client, client_name), (server, server_name) = ends[::-1] if kind == "read" else ends
    port = next_port()
    passive = cluster[server].run(server_name, load, str(port))
    wait_until(lambda: cluster[server].listening(port) or passive.poll() is not None, "the server")
    queue_pairs = "1" if tenant == "victim" else "8"
    argv = [str(port), cluster[server].address, kind, "65536", "16", queue_pairs, "3600"]
    active = cluster[client].run(client_name, load, *argv)
    assert active.stdin is not None
    active.stdin.write("\n")
    active.stdin.flush()
    return [active, passive]


@pytest.mark.parametrize("attack", ["write", "read", "datagrams"])
@pytest.mark.parametrize("victim", ["write", "read"])
def test_incast(narrow: Cluster, load: Path, victim: str, attack: str) -> None:
    """Two nodes send all they can to others of beta's: the victim's guarantee is whole, and the wire is not passed.

    Who sends datagrams is held back as who writes is: none is lost on the way.
    """
    beta = narrow["beta"]
    running = [
        *towards_beta(narrow, load, victim, "alpha", "victim"),
        *towards_beta(narrow, load, attack, "alpha", "one"),
        *towards_beta(narrow, load, attack, "gamma", "two"),
    ]
    try:
        tenants = ("victim", "one", "two")
        wait_until(lambda: all(name in beta.ask("status")["tenants"] for name in tenants), "the tenants")
        before = {name: moved(beta, "rx_bytes", (name,))[0] for name in tenants}
        wait_until(
            lambda: all(moved(beta, "rx_bytes", (name,))[0] > before[name] + 10**5 for name in tenants), "traffic"
        )

        def whole() -> bool:
            mine, all_of_them = rate(beta, "rx_bytes", "victim"), rate(beta, "rx_bytes", *tenants)
            print(f"{mine / 1e6:.1f} of {all_of_them / 1e6:.1f} Mbit/s")
            return mine > 0.97e6 * GUARANTEE and all_of_them < 1.03e6 * CAPACITY

        wait_until(whole, "the victim's guarantee")
        assert moved(beta, "drops", tenants)[0] == 0
        assert all(child.poll() is None for child in running)
    finally:
        end(running)
