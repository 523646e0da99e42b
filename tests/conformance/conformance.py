# SPDX-License-Identifier: Apache-2.0
"""The conformance suite's program, and what its output means."""

import json
import os
from pathlib import Path
from typing import Any

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
