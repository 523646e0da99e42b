# SPDX-License-Identifier: Apache-2.0
"""Ceilings hold while perftest runs, and change under it. Measured by the counters over the exact time."""

import time
from collections.abc import Iterator
from functools import partial

import pytest
from conftest import RunningRouter, listening, next_port, wait_until


@pytest.fixture(params=["ib_write_bw", "ib_read_bw"])
def traffic(router: RunningRouter, request: pytest.FixtureRequest) -> Iterator[str]:
    """Endless traffic of tenant a; gives the counter that grows by its bytes."""
    port = next_port()
    argv = [request.param, "-p", str(port), "--run_infinitely", "-D", "1", "-s", "65536"]
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
    client.wait(60)
    server.wait(60)
    router.ask("policy-set", name="a", policy={"max": "none"})


def rate(router: RunningRouter, counter: str, seconds: float = 1.0) -> float:
    """Bits per second over at least this long."""
    first = router.ask("status")
    deadline = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= deadline, "time")
    second = router.ask("status")
    moved = [status["tenants"]["a"]["counters"][counter] for status in (first, second)]
    return float(8e9 * (moved[1] - moved[0]) / (second["time_ns"] - first["time_ns"]))


def near(router: RunningRouter, counter: str, bps: float) -> bool:
    return rate(router, counter) == pytest.approx(bps, rel=0.02)


def test_ceilings(router: RunningRouter, traffic: str) -> None:
    for text, bps in (("2Gbps", 2e9), ("500Mbps", 5e8), ("10Gbps", 1e10), ("50Mbps", 5e7)):
        router.ask("policy-set", name="a", policy={"max": text})
        assert rate(router, traffic) < 1.05 * bps, text
        # A machine that others keep busy may not reach it at once.
        wait_until(partial(near, router, traffic, bps), text)
    throttled = router.status("a")["counters"]["throttled_ns"]
    assert throttled[traffic == "rx_bytes"] > 0
    router.ask("policy-set", name="a", policy={"max": "none"})
    wait_until(lambda: rate(router, traffic) > 1.1e10, "full speed")
