# SPDX-License-Identifier: Apache-2.0
"""sluice doctor: a healthy node, and what it says of broken ones."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import RunningRouter, output_of


def doctor(state_dir: Path, expected: int = 0) -> dict[str, dict[str, Any]]:
    argv = [sys.executable, "-m", "sluice", "doctor", "--json", "--state-dir", str(state_dir)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == expected, result.stdout + result.stderr
    return {finding["check"]: finding for finding in json.loads(result.stdout)}


def test_a_healthy_node(router: RunningRouter) -> None:
    output_of(router.run("a", "true"))
    findings = doctor(router.state_dir)
    for check in ("kernel", "shim", "state directory", "router", "counters", "a tenant's device"):
        assert findings[check]["verdict"] == "ok", findings
    assert not any(name.startswith("doctor") for name in router.ask("status")["tenants"])


def test_no_router(tmp_path: Path) -> None:
    assert "start it" in doctor(tmp_path)["router"]["advice"]
    assert doctor(tmp_path / "absent")["state directory"]["verdict"] == "note"


def test_a_dead_routers_socket(tmp_path: Path) -> None:
    (tmp_path / "admin").touch()
    (tmp_path / "counters").write_bytes(bytes(8192))
    findings = doctor(tmp_path, expected=1)
    assert findings["router"]["verdict"] == "wrong"
    assert findings["counters"]["verdict"] == "wrong"


def test_a_tenants_directory_was_removed(router: RunningRouter) -> None:
    path = Path(router.ask("tenant-add", name="lost", policy={})["path"])
    (path / "descriptors").unlink()
    assert doctor(router.state_dir, expected=1)["tenant lost"]["verdict"] == "wrong"
    router.ask("tenant-remove", name="lost")
