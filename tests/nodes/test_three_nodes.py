# SPDX-License-Identifier: Apache-2.0
"""Three nodes at once: every pair talks, groups reach all, and each node knows the others."""

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, REPORTS, next_port, output_of, wait_until
from network import Cluster, made

Program = Callable[[str], Path]
NODES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from made(*NODES)


def start(cluster: Cluster, client: str, server: str, *argv: str | Path) -> "list[subprocess.Popen[str]]":
    """A client and its server, of tenants of their own; argv ends with the option of the port."""
    port = next_port()
    command = [*argv, str(port)]
    listener = cluster[server].run(f"of-{client}", *command)
    wait_until(lambda: cluster[server].listening(port) or listener.poll() is not None, "a server")
    return [cluster[client].run(f"to-{server}", *command, cluster[server].address), listener]


def test_every_pair_at_once(cluster: Cluster, program: Program) -> None:
    """Every byte of every operation, each node with both others at the same time."""
    running = [start(cluster, *pair, program("bytes")) for pair in itertools.combinations(NODES, 2)]
    for client, server in running:
        assert "every byte right" in output_of(client)
        output_of(server)


@pytest.mark.parametrize("argv", [["ib_write_bw", "-a"], ["ib_send_lat", "-c", "UD"], ["ib_atomic_bw"]], ids=" ".join)
def test_perftest_to_two_nodes(cluster: Cluster, argv: list[str]) -> None:
    running = [
        start(cluster, "alpha", node, *argv, REPORTS, "-n", "104" if argv[0].endswith("_bw") else "20", "-p")
        for node in NODES[1:]
    ]
    for client, server in running:
        text = output_of(client)
        output_of(server)
        assert "Failed" not in text and "Completion with error" not in text


def test_a_group_of_three_nodes(cluster: Cluster, program: Program) -> None:
    group = "239.3.3.3"
    receivers = [cluster[node].run("receiver", program("datagrams"), "receive", group) for node in NODES]
    for receiver in receivers:
        assert receiver.stdout is not None
        assert receiver.stdout.readline().strip().isdigit()
    sender = cluster["gamma"].run("sender", program("datagrams"), "send", group)
    assert sender.stdout is not None and sender.stdin is not None
    assert sender.stdout.readline().strip() == "ready"
    sender.stdin.write(f"{0xFFFFFF}\n")
    sender.stdin.flush()
    for receiver in receivers:
        assert "arrived" in output_of(receiver)
    sender.communicate("\n", timeout=PATIENCE)
    assert sender.returncode == 0
