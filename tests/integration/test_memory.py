# SPDX-License-Identifier: Apache-2.0
"""Memory regions and windows, completion queues: programs of tests/integration/verbs, as tenants."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from conftest import RunningRouter, output_of

Program = Callable[[str], Path]


def test_windows(router: RunningRouter, program: Program) -> None:
    output_of(router.run("a", program("windows")))
    counters = router.status("a")["counters"]
    assert (counters["mrs"], counters["mws"], counters["mr_bytes"]) == (0, 0, 0)


def test_regions(router: RunningRouter, program: Program) -> None:
    output_of(router.run("a", program("regions")))


def test_completion_queues(router: RunningRouter, program: Program) -> None:
    output_of(router.run("a", program("completions")))


def test_places(router: RunningRouter, program: Program) -> None:
    """Memory of every kind. With a router that isn't root some can't be reached."""
    lines = output_of(router.run("a", program("places"))).splitlines()
    found = dict(line.split(maxsplit=1) for line in lines)
    print(found)
    works = {"heap", "memfd"} | ({"memfd-closed", "sysv-shm", "shared-anonymous"} if os.geteuid() == 0 else set())
    assert {kind for kind in works if found[kind] == "works"} == works
    assert set(found.values()) <= {"works", "absent", f"errno {errno.EOPNOTSUPP}"}
