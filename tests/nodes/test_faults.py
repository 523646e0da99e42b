# SPDX-License-Identifier: Apache-2.0
"""The wire is cut, for a while and for ever, connections are killed, a router dies: no byte is wrong, nothing hangs."""

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import next_port, output_of, wait_until
from network import Cluster, Node, made

Program = Callable[[str], Path]
PATIENT, HASTY = "22", "14"
"""QP timeouts: 2 * 17 s and 2 * 67 ms, which the transport takes for half a second."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    yield from made("alpha", "beta")


class Soak:
    """Requester on alpha, responder on beta."""

    def __init__(self, cluster: Cluster, program: Path, timeout: str) -> None:
        self.cluster = cluster
        port = next_port()
        environment = ("env", f"PAIR_TIMEOUT={timeout}")
        self.server = cluster["beta"].run("server", *environment, program, str(port))
        wait_until(lambda: cluster["beta"].listening(port) or self.server.poll() is not None, "the responder")
        self.client = cluster["alpha"].run("client", *environment, program, str(port), cluster["beta"].address)
        assert self.client.stdout is not None
        assert self.client.stdout.readline() == "ready\n"
        self.wait_for_more()

    def sent(self) -> int:
        counters: dict[str, int] = self.cluster["alpha"].status("client")["counters"]
        return counters["tx_messages"] + counters["reads"] + counters["atomics"]

    def wait_for_more(self, steps: int = 20) -> None:
        before = self.sent()
        wait_until(lambda: self.sent() >= before + steps or self.client.poll() is not None, "traffic")
        assert self.client.poll() is None, self.client.communicate()[0]

    def ends_right(self) -> None:
        text, _ = self.client.communicate("", timeout=120)
        assert self.client.returncode == 0 and "steps right" in text, text
        assert "messages right" in output_of(self.server)


def kill_connections(node: Node) -> None:
    """All data connections of a node are reset, as a firewall or a restart of the path would."""
    subprocess.run(
        node.inside("ss", "-K", "dport", "=", ":7472", "or", "sport", "=", ":7472"), check=False, capture_output=True
    )


def test_a_cut_of_a_second(cluster: Cluster, program: Program) -> None:
    soak = Soak(cluster, program("soak"), PATIENT)
    cluster["beta"].cut()
    time.sleep(1)  # the fault itself: nothing to wait for
    cluster["beta"].mend()
    soak.wait_for_more()
    soak.ends_right()


def test_connections_are_killed_again_and_again(cluster: Cluster, program: Program) -> None:
    soak = Soak(cluster, program("soak"), PATIENT)
    chance = random.Random(7)
    for _ in range(8):
        kill_connections(cluster[chance.choice(["alpha", "beta"])])
        soak.wait_for_more(chance.randrange(1, 60))
    soak.ends_right()


def test_a_cut_for_ever(cluster: Cluster, program: Program) -> None:
    soak = Soak(cluster, program("soak"), HASTY)
    cluster["beta"].cut()
    text, _ = soak.client.communicate(timeout=120)
    assert soak.client.returncode == 0 and "transport retry counter exceeded" in text, text


def test_a_router_dies_and_returns(cluster: Cluster, program: Program) -> None:
    soak = Soak(cluster, program("soak"), HASTY)
    cluster["beta"].kill()
    text, _ = soak.client.communicate(timeout=120)
    assert soak.client.returncode == 0 and "transport retry counter exceeded" in text, text
    soak.server.kill()
    # Found again, with nothing restarted on alpha.
    cluster["beta"].start()
    cluster.wait_for_links()
    Soak(cluster, program("soak"), PATIENT).ends_right()
