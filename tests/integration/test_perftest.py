# SPDX-License-Identifier: Apache-2.0
"""Debian's perftest and rdma-core's own tools, unmodified, between two tenants."""

import signal

import pytest
from conftest import PATIENCE, RunningRouter, endless, listening, next_port, output_of, perftest, wait_until

TOOLS = [f"ib_{kind}_{what}" for kind in ("write", "read", "send", "atomic") for what in ("bw", "lat")]


def options_of(tool: str) -> list[list[str]]:
    """The options that make sense for a tool; perftest refuses the others itself."""
    options = [["-c", "RC"]]
    if "atomic" not in tool:
        options.append(["-a"])
    if tool.endswith("_bw"):
        options += [["-b"], ["-q", "16"], ["-l", "8"]]
    if "write" not in tool:
        options.append(["-e"])
    if "write" in tool or "send" in tool:
        options.append(["-I", "64", "-s", "64"])
    return options


CASES = [(tool, options) for tool in TOOLS for options in options_of(tool)]


@pytest.mark.parametrize(("tool", "options"), CASES, ids=[" ".join([tool, *options]) for tool, options in CASES])
def test_perftest(router: RunningRouter, tool: str, options: list[str]) -> None:
    # Both spin, and on two cores each message of a latency waits for who has none.
    messages = "20" if "-a" in options or tool.endswith("_lat") else "200"
    assert "Device         : sluice0" in perftest(router, [tool, "-n", messages, *options])


def test_run_infinitely_ends_by_sigint(router: RunningRouter) -> None:
    port = next_port()
    argv = endless("ib_write_bw", port)
    server = router.run("b", *argv)
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    client = router.run("a", *argv, "127.0.0.1")
    wait_until(lambda: "a" in router.ask("status")["tenants"], "the tenant")
    before = router.status("a")["counters"]["tx_bytes"]
    wait_until(lambda: router.status("a")["counters"]["tx_bytes"] > before, "traffic")
    client.send_signal(signal.SIGINT)
    server.send_signal(signal.SIGINT)
    client.communicate(timeout=PATIENCE)
    server.communicate(timeout=PATIENCE)
    wait_until(lambda: router.status("a")["counters"]["sessions"] == 0, "the session's end")


@pytest.mark.parametrize("options", [[], ["-e"], ["-c"], ["-n", "300", "-s", "65536"]], ids=str)
def test_rc_pingpong(router: RunningRouter, options: list[str]) -> None:
    port = next_port()
    argv = ["ibv_rc_pingpong", "-g", "0", "-p", str(port), *options]
    server = router.run("b", *argv)
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    assert "usec/iter" in output_of(router.run("a", *argv, "127.0.0.1"))
    output_of(server)


def test_everything_was_given_back(router: RunningRouter) -> None:
    wait_until(
        lambda: not any(router.status(tenant)["counters"]["sessions"] for tenant in ("a", "b")),
        "the sessions' end",
    )
    for tenant in ("a", "b"):
        counters = router.status(tenant)["counters"]
        assert [counters[what] for what in ("qps", "cqs", "mrs", "mr_bytes")] == [0, 0, 0, 0]
