# SPDX-License-Identifier: Apache-2.0
"""Memory regions and windows, completion queues: programs of tests/integration/verbs, as tenants."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RunningRouter, output_of, wait_until

Program = Callable[[str], Path]


def test_windows(router: RunningRouter, program: Program) -> None:
    output_of(router.run("a", program("windows")))
    wait_until(lambda: router.status("a")["counters"]["sessions"] == 0, "the session's end")
    counters = router.status("a")["counters"]
    assert (counters["mrs"], counters["mws"], counters["mr_bytes"]) == (0, 0, 0)


def test_regions(router: RunningRouter, program: Program) -> None:
    output_of(router.run("a", program("regions")))


def test_memory_that_moves(router: RunningRouter, program: Program) -> None:
    """mremap, realloc and madvise of memory that was registered."""
    assert output_of(router.run("a", program("moves"))) == "as any other\n"


def test_completion_queues(router: RunningRouter, program: Program) -> None:
    output_of(router.run("a", program("completions")))


def test_places(router: RunningRouter, program: Program) -> None:
    """Memory of every kind. With a router that isn't root some can't be reached."""
    lines = output_of(router.run("a", program("places"))).splitlines()
    found = dict(line.split(maxsplit=1) for line in lines)
    print(found)
    works = {"heap", "memfd"}
    if os.geteuid() == 0:
        works |= {
            "memfd-closed",
            "posix-shm",
            "sysv-shm",
            "shared-anonymous",
            "stack",
            "thread-stack",
            "file",
            "several",
        }
    assert {kind for kind in works if found[kind] == "works"} == works
    assert set(found.values()) <= {"works", "absent", f"errno {errno.EOPNOTSUPP}"}


def relay_threads(router: RunningRouter) -> int:
    tasks = Path(f"/proc/{router.process.pid}/task").iterdir()
    return sum((task / "comm").read_text() == "sluice-relay\n" for task in tasks)


@pytest.mark.parametrize("what", [[], ["atomic"]], ids=["READ", "atomic"])
def test_memory_that_never_comes(router: RunningRouter, program: Program, what: list[str]) -> None:
    """Who makes the router wait for a page waits alone, and leaves nothing behind."""
    hanging = router.run("a", program("places"), "hang", *what)
    assert hanging.stdout is not None
    line = hanging.stdout.readline().strip()
    if line == "absent":
        pytest.skip("the router is not root, or userfaultfd can't be had")
    # Some kernels make the thread wait, others refuse it the page.
    assert line in ("transport retry counter exceeded", "remote operation error")
    assert relay_threads(router) == 1
    output_of(router.run("b", program("windows")))
    output_of(router.run("a", program("windows")))
    output_of(hanging)
    wait_until(lambda: relay_threads(router) == 0, "the thread's end")
    wait_until(lambda: router.status("a")["counters"]["sessions"] == 0, "the session's end")
    counters = router.status("a")["counters"]
    assert [counters[what] for what in ("qps", "cqs", "mrs", "mr_bytes")] == [0, 0, 0, 0]
