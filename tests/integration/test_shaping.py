# SPDX-License-Identifier: Apache-2.0
"""Ceilings hold while perftest runs, and change under it. Measured by the counters over the exact time."""

import time
from collections.abc import Iterator
from functools import partial

import pytest
from conftest import PATIENCE, RunningRouter, endless, listening, next_port, wait_until


@pytest.fixture(params=["ib_write_bw", "ib_read_bw"])
def traffic(router: RunningRouter, request: pytest.FixtureRequest) -> Iterator[str]:
    """Endless traffic of tenant a; gives the counter that grows by its bytes."""
    port = next_port()
    argv = endless(request.param, port, "-s", "65536")
    server = router.run("b", *argv)
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    client = router.run("a", *argv, "127.0.0.1")
    counter = "tx_bytes" if "write" in request.param else "rx_bytes"
    wait_until(lambda: "a" in router.ask("status")["tenants"], "the tenant")
    before = router.status("a")["counters"][counter]
    wait_until(lambda: router.status("a")["counters"][counter] > before, "traffic")
    yield counter
    client.terminate()
    server.terminate()
    client.wait(PATIENCE)
    server.wait(PATIENCE)
    router.ask("policy-set", name="a", policy={"max": "none"})


def rate(router: RunningRouter, counter: str, seconds: float = 1.0) -> float:
    """Bits per second over at least this long."""
    first = router.ask("status")
    deadline = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= deadline, "time")
    second = router.ask("status")
    moved = [status["tenants"]["a"]["counters"][counter] for status in (first, second)]
    return float(8e9 * (moved[1] - moved[0]) / (second["time_ns"] - first["time_ns"]))


def no_less(router: RunningRouter, counter: str) -> float:
    """The same, of the longest time that it can have taken: never more than it was, however busy the machine."""
    first = router.ask("status")
    deadline = time.monotonic() + 1
    wait_until(lambda: time.monotonic() >= deadline, "time")
    second = router.ask("status")
    moved = [status["tenants"]["a"]["counters"][counter] for status in (first, second)]
    return float(8e9 * (moved[1] - moved[0]) / (time.monotonic_ns() - first["time_ns"]))


def near(router: RunningRouter, counter: str, bps: float) -> bool:
    return rate(router, counter) == pytest.approx(bps, rel=0.02)


def test_ceilings(router: RunningRouter, traffic: str) -> None:
    for text, bps in (("2Gbps", 2e9), ("500Mbps", 5e8), ("10Gbps", 1e10), ("50Mbps", 5e7)):
        router.ask("policy-set", name="a", policy={"max": text})
        assert no_less(router, traffic) < 1.05 * bps, text
        # A machine that others keep busy may not reach it at once.
        wait_until(partial(near, router, traffic, bps), text)
    throttled = router.status("a")["counters"]["throttled_ns"]
    assert throttled[traffic == "rx_bytes"] > 0
    router.ask("policy-set", name="a", policy={"max": "none"})
    wait_until(lambda: rate(router, traffic) > 1.1e10, "full speed")


@pytest.fixture
def to_b(router: RunningRouter) -> Iterator[str]:
    """Endless WRITEs of tenant c to tenant b."""
    port = next_port()
    argv = endless("ib_write_bw", port, "-s", "65536")
    server = router.run("b", *argv)
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    client = router.run("c", *argv, "127.0.0.1")
    wait_until(lambda: "c" in router.ask("status")["tenants"], "the tenant")
    wait_until(lambda: router.status("c")["counters"]["tx_bytes"] > 0, "traffic")
    yield "tx_bytes"
    client.terminate()
    server.terminate()
    client.wait(PATIENCE)
    server.wait(PATIENCE)
    router.ask("policy-set", name="b", policy={"max": "none"})


def received(router: RunningRouter, bps: float) -> bool:
    first = router.ask("status")
    deadline = time.monotonic() + 1
    wait_until(lambda: time.monotonic() >= deadline, "time")
    second = router.ask("status")
    moved = [status["tenants"]["b"]["counters"]["rx_bytes"] for status in (first, second)]
    measured = 8e9 * (moved[1] - moved[0]) / (second["time_ns"] - first["time_ns"])
    return bool(measured == pytest.approx(bps, rel=0.02))


def test_the_receivers_ceiling_holds_too(router: RunningRouter, to_b: str) -> None:
    router.ask("policy-set", name="b", policy={"max-ingress": "300Mbps"})
    wait_until(partial(received, router, 3e8), "the receiver's ceiling")
    counters = router.status("c")["counters"]
    assert counters["throttled_ns"][router.ask("status")["limits"].index("peer")] > 0
    assert counters["errors"] == 0
    router.ask("policy-set", name="b", policy={"max-ingress": "none", "scope": "wire", "max": "1Mbps"})
    wait_until(lambda: not received(router, 1e6), "traffic within the node, which no rate of b's is about")
    router.ask("policy-set", name="b", policy={"scope": "none"})


def test_a_groups_ceiling_and_operations(router: RunningRouter, to_b: str) -> None:
    router.ask("group-set", name="team", policy={"max": "400Mbps"})
    router.ask("policy-set", name="c", policy={"group": "team"})
    wait_until(partial(received, router, 4e8), "the group's ceiling")
    router.ask("policy-set", name="c", policy={"group": "none", "max-ops": "1000"})
    router.ask("group-remove", name="team")
    wait_until(partial(received, router, 8 * 65536 * 1000), "1,000 operations a second")
    router.ask("policy-set", name="c", policy={"max-ops": "none", "max-engine": "none"})


def test_objects_beyond_a_limit_are_refused_and_told(router: RunningRouter) -> None:
    router.ask("tenant-add", name="few", policy={"max-qps": "1"})
    port = next_port()
    argv = ["ib_write_bw", "-q", "2", "-p", str(port)]
    server = router.run("b", *argv)
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    client = router.run("few", *argv, "127.0.0.1")
    text, _ = client.communicate(timeout=PATIENCE)
    assert client.returncode != 0, text
    status = router.ask("status")
    counters = status["tenants"]["few"]["counters"]
    last = counters["last_refused"] - 1
    assert status["limits"][last] == "qps" and counters["refused"][last] > 0
    server.kill()
    server.wait(PATIENCE)


@pytest.fixture(scope="module")
def narrow() -> Iterator[RunningRouter]:
    """A router whose device is a wire of 2 Gbit/s."""
    running = RunningRouter("--capacity", "2Gbps")
    running.ask("tenant-add", name="steady", policy={"min": "1500Mbps"})
    running.ask("tenant-add", name="greedy", policy={"min": "100Mbps", "weight": "10000"})
    yield running
    running.stop()


@pytest.mark.parametrize("to", ["steady", "sink"])
def test_a_guarantee_on_a_full_device(narrow: RunningRouter, to: str) -> None:
    """Bytes within a node are on the wire twice, and the guarantee comes before weight both times."""
    children = []
    for sender, receiver in (("greedy", "greedy"), ("steady", to)):
        port = next_port()
        argv = endless("ib_write_bw", port, "-s", "65536")
        server = narrow.run(receiver, *argv)
        wait_until(partial(listening, port), "the server")
        children += [server, narrow.run(sender, *argv, "127.0.0.1")]
        wait_until(partial(sent, narrow, sender), "traffic")

    def shared() -> bool:
        """Three quarters are guaranteed; by weight it would be a hundredth."""
        before = [sent(narrow, name) for name in ("steady", "greedy")]
        wait_until(lambda: sum(sent(narrow, name) for name in ("steady", "greedy")) > sum(before) + 10**8, "traffic")
        steady, greedy = (sent(narrow, name) - was for name, was in zip(("steady", "greedy"), before, strict=True))
        return steady > 2 * greedy

    wait_until(shared, "the guarantee")
    for child in children:
        child.terminate()
    for child in children:
        child.wait(PATIENCE)


def sent(router: RunningRouter, tenant: str) -> int:
    known = router.ask("status")["tenants"]
    return int(known[tenant]["counters"]["tx_bytes"]) if tenant in known else 0
