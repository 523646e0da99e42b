# SPDX-License-Identifier: Apache-2.0
"""tests/vm/compare.py: who gets a second try, and who doesn't."""

import json
import subprocess
import sys
from pathlib import Path

COMPARE = Path(__file__).parents[1] / "vm" / "compare.py"


def write(path: Path, **outcomes: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    tests = [
        {"name": name, "statement": "s", "source": "IBTA", "outcome": outcome, "reason": "late" * (outcome == "failed")}
        for name, outcome in outcomes.items()
    ]
    path.write_text(json.dumps({"tests": tests}))
    return path


def compare(*paths: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, COMPARE, *paths], capture_output=True, text=True, check=False)


def test_reference_may_pass_at_a_later_attempt(tmp_path: Path) -> None:
    reference = write(tmp_path / "bare.json", one="ok", two="failed")
    ours = write(tmp_path / "ours.json", one="ok", two="ok")
    assert compare(reference, ours).returncode == 1
    write(tmp_path / "bare-again" / "two.1.json", two="failed")
    failed = compare(reference, ours)
    assert failed.returncode == 1 and "two failed in 1 more runs" in failed.stdout
    write(tmp_path / "bare-again" / "two.2.json", two="ok")
    passed = compare(reference, ours)
    assert passed.returncode == 0, passed.stdout
    assert "bare: two failed (late), and passed alone at attempt 2" in passed.stdout
    assert "bare: 2 ok" in passed.stdout


def test_no_other_run_has_a_second_try(tmp_path: Path) -> None:
    reference = write(tmp_path / "bare.json", one="ok")
    ours = write(tmp_path / "ours.json", one="failed")
    write(tmp_path / "ours-again" / "one.1.json", one="ok")
    assert compare(reference, ours).returncode == 1
