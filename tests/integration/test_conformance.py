# SPDX-License-Identifier: Apache-2.0
"""The conformance suite (tests/conformance) over the local transport: in one tenant, and between two."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import RunningRouter, next_port, wait_until

SUITE = Path(os.environ.get("SLUICE_BUILD", "build")).absolute() / "tests/conformance/conformance"
LIMIT = 300
"""Seconds for one run of the suite, which takes a tenth of that on an idle machine."""


def judge(output: str) -> None:
    """Fails with every statement that doesn't hold, and with each known deviation that isn't one any more."""
    tests: list[dict[str, Any]] = json.loads(output)["tests"]
    for test in tests:
        if test["outcome"] == "skip":
            print(f"skipped: {test['name']}: {test['reason']}")
    failed = [
        f"{test['name']}: {test['statement']} ({test['source']}): {test['reason']}"
        for test in tests
        if test["outcome"] == "failed"
    ]
    assert not failed, "\n".join(failed)
    for test in tests:
        assert test["outcome"] != "ok" or "deviation" not in test, (
            f"{test['name']} holds now: deviations.c can go on without"
        )
    assert any(test["outcome"] == "ok" for test in tests)


@pytest.mark.parametrize("how", [[], ["--processes"]], ids=["one process", "two processes"])
def test_in_one_tenant(router: RunningRouter, how: list[str]) -> None:
    child = router.run("a", SUITE, "--json", *how)
    output, _ = child.communicate(timeout=LIMIT)
    judge(output)


def test_between_tenants(router: RunningRouter) -> None:
    port = next_port()
    first = router.run("a", SUITE, "--json", "--listen", str(port))
    other = router.run("b", SUITE, "--connect", f"127.0.0.1:{port}", "--patience", "30")
    output, _ = first.communicate(timeout=LIMIT)
    wait_until(lambda: other.poll() is not None, "the other end's exit")
    judge(output)
