# SPDX-License-Identifier: Apache-2.0
"""Kinds of QPs other than RC, and receives that many share: perftest and rdma-core's pingpongs, unmodified."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PATIENCE, RunningRouter, listening, next_port, output_of, perftest, wait_until

PERFTEST = [
    ["ib_send_bw", "-c", "UC"],
    ["ib_send_bw", "-c", "UC", "-a"],
    ["ib_send_bw", "-c", "UC", "-b", "-e"],
    ["ib_send_lat", "-c", "UC"],
    ["ib_write_bw", "-c", "UC"],
    ["ib_write_bw", "-c", "UC", "-q", "8"],
    ["ib_write_lat", "-c", "UC"],
    ["ib_send_bw", "-c", "UD"],
    ["ib_send_bw", "-c", "UD", "-s", "4096", "-q", "4"],
    ["ib_send_bw", "-c", "UD", "-b", "-e"],
    ["ib_send_lat", "-c", "UD"],
    ["ib_send_lat", "-c", "UD", "-s", "64", "-I", "64"],
    ["ib_send_bw", "-c", "XRC"],
    ["ib_send_bw", "-c", "XRC", "-q", "4"],
    ["ib_send_bw", "-c", "XRC", "-b"],
    ["ib_send_lat", "-c", "XRC"],
    ["ib_write_bw", "-c", "XRC"],
    ["ib_write_lat", "-c", "XRC"],
    ["ib_read_bw", "-c", "XRC"],
    ["ib_read_lat", "-c", "XRC"],
    ["ib_atomic_bw", "-c", "XRC"],
    ["ib_atomic_lat", "-c", "XRC"],
    ["ib_send_bw", "--use-srq"],
    ["ib_send_bw", "--use-srq", "-q", "8", "-b"],
    ["ib_send_lat", "--use-srq"],
    ["ib_send_bw", "-c", "UC", "--use-srq"],
    ["ib_send_lat", "-c", "UC", "--use-srq"],
    ["ib_send_bw", "-c", "UD", "--use-srq"],
]

PINGPONG = [
    [name, *options]
    for name, variants in (
        ("ibv_uc_pingpong", [[], ["-e"], ["-c"]]),
        ("ibv_ud_pingpong", [[], ["-e"], ["-c"]]),
        ("ibv_srq_pingpong", [[], ["-e"], ["-c"], ["-q", "32"]]),
        ("ibv_xsrq_pingpong", [[], ["-e"]]),
        ("ibv_rc_pingpong", [["-t"], ["-N"], ["-t", "-N"]]),
    )
    for options in variants
]


def both(router: RunningRouter, argv: list[str]) -> "subprocess.Popen[str]":
    """Runs server and client; returns the client, ended, after the server has ended well."""
    port = next_port()
    server = router.run("b", *argv, "-p", str(port))
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    client = router.run("a", *argv, "-p", str(port), "127.0.0.1")
    client.wait(timeout=PATIENCE)
    output_of(server)
    return client


@pytest.mark.parametrize("argv", PERFTEST, ids=" ".join)
def test_perftest(router: RunningRouter, argv: list[str]) -> None:
    # Datagrams that find no receive are lost, as everywhere: so few that all receives are posted before.
    perftest(router, [*argv, "-n", "100" if argv[0].endswith("_bw") and "-a" not in argv else "20"])


@pytest.mark.parametrize("argv", PINGPONG, ids=" ".join)
def test_pingpong(router: RunningRouter, argv: list[str]) -> None:
    text = output_of(both(router, [*argv, "-g", "0", "-n", "200"]))
    assert "usec/iter" in text or "success" in text


def test_on_demand_paging_is_refused(router: RunningRouter) -> None:
    """As by every device without it."""
    text = output_of(router.run("a", "ibv_rc_pingpong", "-g", "0", "-o"), expected=1)
    assert "isn't ODP capable" in text, text


def test_several_clients_share_an_xrc_domain(router: RunningRouter) -> None:
    port = next_port()
    argv = ["ibv_xsrq_pingpong", "-g", "0", "-p", str(port)]
    server = router.run("b", *argv, "-c", "3")
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    clients = [router.run("a", *argv, "127.0.0.1") for _ in range(3)]
    for client in clients:
        output_of(client)
    output_of(server)


def test_our_own(router: RunningRouter, program: Callable[[str], Path]) -> None:
    assert "as they should" in output_of(router.run("a", program("kinds")))


def test_everything_was_given_back(router: RunningRouter) -> None:
    wait_until(
        lambda: not any(router.status(tenant)["counters"]["sessions"] for tenant in ("a", "b")),
        "the sessions' end",
    )
    for tenant in ("a", "b"):
        counters = router.status(tenant)["counters"]
        assert [counters[what] for what in ("qps", "cqs", "mrs", "mr_bytes")] == [0, 0, 0, 0]
