# SPDX-License-Identifier: Apache-2.0
"""What the wire does to connections, and a router's death: no byte is wrong, nothing is done twice, nothing hangs.

Cables are pulled, connections killed; a wire of the tests' own (wire.py) loses, delays, reorders, and falls silent.
"""

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, next_port, output_of, wait_until
from network import Cluster, Node, made
from wire import Faults

Program = Callable[[str], Path]
PATIENT, HASTY = "22", "14"
"""QP timeouts: 2 * 17 s and 2 * 67 ms, which the transport takes for half a second."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    yield from made("alpha", "beta")


@pytest.fixture(scope="module")
def faulty() -> Iterator[Cluster]:
    yield from made("alpha", "beta", faulty=True)


@pytest.fixture
def rough(faulty: Cluster) -> Iterator[Cluster]:
    """On a wire that can have faults, and has none after the test."""
    assert faulty.wire is not None
    yield faulty
    faulty.wire.faults = Faults()
    faulty.wait_for_links()


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
        text, _ = self.client.communicate("", timeout=PATIENCE)
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
    text, _ = soak.client.communicate(timeout=PATIENCE)
    assert soak.client.returncode == 0 and "transport retry counter exceeded" in text, text


def test_a_router_dies_and_returns(cluster: Cluster, program: Program) -> None:
    soak = Soak(cluster, program("soak"), HASTY)
    cluster["beta"].kill()
    text, _ = soak.client.communicate(timeout=PATIENCE)
    assert soak.client.returncode == 0 and "transport retry counter exceeded" in text, text
    soak.server.kill()
    # Found again, with nothing restarted on alpha.
    cluster["beta"].start()
    cluster.wait_for_links()
    Soak(cluster, program("soak"), PATIENT).ends_right()


ROUGH = {
    "frames are lost": Faults(loss=0.03),
    "a long way": Faults(delay=0.03),
    "frames overtake each other": Faults(delay=0.001, jitter=0.02),
    "all of it": Faults(loss=0.01, delay=0.005, jitter=0.01),
}


@pytest.mark.parametrize("faults", ROUGH.values(), ids=ROUGH)
def test_a_rough_wire(rough: Cluster, program: Program, faults: Faults) -> None:
    """Links between routers suffer as data connections do."""
    assert rough.wire is not None
    soak = Soak(rough, program("soak"), PATIENT)
    rough.wire.faults = faults
    soak.wait_for_more(100)
    kill_connections(rough["beta"])
    soak.wait_for_more(100)
    rough.wire.faults = Faults()
    soak.ends_right()


def test_silence_of_a_second(rough: Cluster, program: Program) -> None:
    """No kernel is told anything: neither a cable that is out, nor a connection that is reset."""
    assert rough.wire is not None
    soak = Soak(rough, program("soak"), PATIENT)
    for seconds in (0.3, 1.0):
        rough.wire.faults = Faults(loss=1)
        time.sleep(seconds)  # the fault itself: nothing to wait for
        rough.wire.faults = Faults()
        soak.wait_for_more()
    soak.ends_right()


def test_routers_that_have_no_core(rough: Cluster, program: Program) -> None:
    """Both stand still, for longer than a peer that is gone is waited for: nobody is gone."""
    soak = Soak(rough, program("soak"), HASTY)
    requester, responder = (rough[name].process for name in ("alpha", "beta"))
    assert requester is not None and responder is not None
    for _ in range(2):
        # The responder is the first to stop and the last to go on: the requester finds nothing that is said meanwhile.
        for process, number, seconds in (
            (responder, signal.SIGSTOP, 0.25),
            (requester, signal.SIGSTOP, 0.7),
            (requester, signal.SIGCONT, 0.25),
            (responder, signal.SIGCONT, 0.0),
        ):
            process.send_signal(number)
            time.sleep(seconds)  # the fault itself: nothing to wait for
        soak.wait_for_more()
    soak.ends_right()


def test_silence_for_ever(rough: Cluster, program: Program) -> None:
    assert rough.wire is not None
    soak = Soak(rough, program("soak"), HASTY)
    rough.wire.faults = Faults(loss=1)
    text, _ = soak.client.communicate(timeout=PATIENCE)
    assert soak.client.returncode == 0 and "transport retry counter exceeded" in text, text
    soak.server.kill()
    # Nothing was restarted, and new ones connect.
    rough.wire.faults = Faults()
    rough.wait_for_links()
    Soak(rough, program("soak"), PATIENT).ends_right()


def test_datagrams_on_a_rough_wire(rough: Cluster, program: Program) -> None:
    """Between nodes they share a connection: late is not lost, and what is lost is no other's."""
    assert rough.wire is not None
    rough.wire.faults = Faults(loss=0.02, delay=0.002, jitter=0.01)
    port = next_port()
    argv = ["ibv_ud_pingpong", "-g", "0", "-n", "200", "-s", "1024", "-c", "-p", str(port)]
    server = rough["beta"].run("server", *argv)
    wait_until(lambda: rough["beta"].listening(port) or server.poll() is not None, "the server")
    client = rough["alpha"].run("client", *argv, rough["beta"].address)
    assert "usec/iter" in output_of(client)
    output_of(server)
