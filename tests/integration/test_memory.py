# SPDX-License-Identifier: Apache-2.0
"""Memory regions and windows, completion queues: programs of tests/integration/verbs, as tenants."""

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
