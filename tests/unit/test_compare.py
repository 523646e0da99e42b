# SPDX-License-Identifier: Apache-2.0
"""tests/vm/compare.py: what counts as a failure, and what is said of the rest."""

import json
import subprocess
import sys
from pathlib import Path

COMPARE = Path(__file__).parents[1] / "vm" / "compare.py"


def write(path: Path, tries: int = 1, **outcomes: str) -> Path:
    tests = [
        {"name": name, "statement": "s", "source": "IBTA", "outcome": outcome, "tries": tries, "reason": ""}
        for name, outcome in outcomes.items()
    ]
    path.write_text(json.dumps({"tests": tests}))
    return path


def compare(*paths: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, COMPARE, *paths], capture_output=True, text=True, check=False)


def test_who_passes_at_a_later_try_is_named(tmp_path: Path) -> None:
    passed = compare(write(tmp_path / "bare.json", 3, one="ok"), write(tmp_path / "ours.json", one="ok"))
    assert passed.returncode == 0 and "bare: one holds at try 3" in passed.stdout


def test_one_failure_of_any_run_is_one(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.json", one="ok"), write(tmp_path / "bad.json", 3, one="failed")
    for paths in ([good, bad], [bad, good]):
        failed = compare(*paths)
        assert failed.returncode == 1 and "bad: one FAILED: s (IBTA)" in failed.stdout
        assert "try" not in failed.stdout
