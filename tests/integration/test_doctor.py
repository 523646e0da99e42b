# SPDX-License-Identifier: Apache-2.0
"""sluice doctor: a healthy node, and what it says of broken ones."""

import json
import signal
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


def failure(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sluice", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done
    return done.stderr


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


def test_a_router_that_died(tmp_path: Path) -> None:
    """Told at once, with the command that started it; sluice run starts none without its options in its place."""
    router = RunningRouter("--capacity", "10Gbps")
    try:
        router.process.kill()
        router.process.wait()
        finding = doctor(router.state_dir, expected=1)["router"]
        assert finding["verdict"] == "wrong"
        command = f"sluice router --verbose --state-dir {router.state_dir} --capacity 10Gbps"
        died = f"the router (pid {router.process.pid}) with the state directory {router.state_dir} died; "
        assert finding["text"] == f"{died}start it again: {command}"
        assert finding["text"] in failure("status", "--state-dir", str(router.state_dir))
        assert finding["text"] in failure("run", "--state-dir", str(router.state_dir), "--", "true")
        router.start()
        assert doctor(router.state_dir)["router"]["verdict"] == "ok"
    finally:
        router.stop()


def test_a_router_that_is_stopped(router: RunningRouter) -> None:
    router.process.send_signal(signal.SIGSTOP)
    try:
        finding = doctor(router.state_dir, expected=1)["router"]
        assert finding["text"].endswith("is stopped by a signal")
        assert finding["advice"] == f"kill -CONT {router.process.pid}"
        for command in (("status",), ("run", "--", "true")):
            told = failure(command[0], "--state-dir", str(router.state_dir), *command[1:])
            assert f"{finding['text']}: {finding['advice']}" in told
    finally:
        router.process.send_signal(signal.SIGCONT)


def test_a_tenants_directory_was_removed(router: RunningRouter) -> None:
    path = Path(router.ask("tenant-add", name="lost", policy={})["path"])
    (path / "descriptors").unlink()
    assert doctor(router.state_dir, expected=1)["tenant lost"]["verdict"] == "wrong"
    router.ask("tenant-remove", name="lost")
