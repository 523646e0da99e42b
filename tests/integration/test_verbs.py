# SPDX-License-Identifier: Apache-2.0
"""Our own applications (tests/integration/verbs): every byte, every error, events, threads, lifetimes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RunningRouter, listening, next_port, output_of, wait_until

Program = Callable[[str], Path]


def test_every_byte(router: RunningRouter, program: Program) -> None:
    port = next_port()
    server = router.run("b", program("bytes"), str(port))
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    client = router.run("a", program("bytes"), str(port), "client")
    assert "every byte right" in output_of(client)
    output_of(server)


def test_errors(router: RunningRouter, program: Program) -> None:
    holder = router.run("c", program("hold"), "key")
    assert holder.stdout is not None
    rkey, address = holder.stdout.readline().split()
    assert "as the specification says" in output_of(router.run("a", program("errors"), rkey, address))
    # It looks at each of its bytes when its input ends.
    output_of(holder)


def test_events_and_threads(router: RunningRouter, program: Program) -> None:
    output_of(router.run("a", program("events")))


def test_who_holds_its_channel_holds_nobody(router: RunningRouter, program: Program) -> None:
    """It reads an event into memory that is never made; the router has another one for it."""
    holder = router.run("c", program("held"))
    assert holder.stdout is not None
    said = holder.stdout.readline()
    if said == "no userfaultfd\n":
        pytest.skip("userfaultfd can't be had")
    assert said == "held\n"
    output_of(router.run("a", program("events")))
    output_of(holder)


def test_without_isolation(router: RunningRouter, program: Program) -> None:
    output_of(router.run("a", program("errors"), options=("--no-isolate",)))


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [grandchild for child in children for grandchild in descendants(child)]


def test_killed_while_it_sends(router: RunningRouter, program: Program) -> None:
    port = next_port()
    server = router.run("b", program("hold"), "write", str(port))
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    client = router.run("a", program("hold"), "write", str(port), "client")
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    before = router.status("a")["counters"]["tx_bytes"]
    wait_until(lambda: router.status("a")["counters"]["tx_bytes"] > before, "traffic")

    os.kill(descendants(client.pid)[-1], signal.SIGKILL)
    output_of(client, expected=137)
    wait_until(lambda: router.status("a")["counters"]["sessions"] == 0, "the killed session's end")
    counters = router.status("a")["counters"]
    assert [counters[what] for what in ("qps", "cqs", "mrs", "mr_bytes")] == [0, 0, 0, 0]
    assert "transport retry counter exceeded" in output_of(server)
    test_every_byte(router, program)
