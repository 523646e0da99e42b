# SPDX-License-Identifier: Apache-2.0
"""The conformance suite (tests/conformance) over the local transport: in one tenant, and between two."""

import pytest
from conformance import LIMIT, SUITE, judge
from conftest import RunningRouter, next_port, wait_until


@pytest.mark.parametrize("how", [[], ["--processes"]], ids=["one process", "two processes"])
def test_in_one_tenant(router: RunningRouter, how: list[str]) -> None:
    child = router.run("a", SUITE, "--json", *how)
    output, _ = child.communicate(timeout=LIMIT)
    judge(output)


def between(router: RunningRouter, one: str, another: str) -> None:
    port = next_port()
    first = router.run(one, SUITE, "--json", "--listen", str(port))
    other = router.run(another, SUITE, "--connect", f"127.0.0.1:{port}", "--patience", "30")
    output, _ = first.communicate(timeout=LIMIT)
    wait_until(lambda: other.poll() is not None, "the other end's exit")
    judge(output)


def test_between_tenants(router: RunningRouter) -> None:
    between(router, "a", "b")


def test_who_is_throttled_sees_only_time(router: RunningRouter) -> None:
    """No error, nothing dropped, nothing out of order: the whole suite, between tenants that wait much of the time."""
    names = ("slow", "slower")
    for name in names:
        router.ask("tenant-add", name=name, policy={"max": "100Mbps", "max-ops": "2000", "max-engine": "5%"})
    between(router, *names)
    for name in names:
        assert sum(router.status(name)["counters"]["throttled_ns"]) > 0
