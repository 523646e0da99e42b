# SPDX-License-Identifier: Apache-2.0
"""What an operator gets to read who starts a router that can't run: what is wrong, where, and no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--http", "203.0.113.1:1"], "sluice: --http 203.0.113.1:1: Cannot assign requested address"),
        (["--http", "99999"], "sluice: '99999' is not an address: write [ADDRESS:]PORT"),
        (["--config", "{root}/none.yaml"], "sluice: {root}/none.yaml: No such file or directory"),
        (["--config", "{root}/bad.yaml"], "sluice: {root}/bad.yaml:2: tenants.a.max: 'fast' is not a rate"),
        (["--kubernetes", "{root}/settings.yaml"], "sluice: {root}/kubeconfig: No such file or directory"),
        (
            ["--kubernetes", "{root}/outside.yaml"],
            "sluice: no kubeconfig in the settings, and no service account of a pod",
        ),
        (["--device", "mlx5_9"], "sluice: --device mlx5_9: there is no such RDMA device"),
    ],
)
def test_it_says_why(tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "bad.yaml").write_text("tenants:\n  a: {max: fast}\n")
    settings = f"node: here\nnics: {{eth0: 1G}}\nshim-dir: {tmp_path}/shim\ncdi-dir: {tmp_path}/cdi\n"
    (tmp_path / "outside.yaml").write_text(settings)
    (tmp_path / "settings.yaml").write_text(f"{settings}kubeconfig: {tmp_path}/kubeconfig\n")
    command = [sys.executable, "-m", "sluice", "router", f"--state-dir={tmp_path}/state"]
    done = subprocess.run(
        command + [option.format(root=tmp_path) for option in options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 1, done.stderr
    assert message.format(root=tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_an_option_that_there_is_none_of_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sluice", "router", f"--state-dir={tmp_path}", "--policy", "limits.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "[--config FILE]" in done.stderr and "unrecognized arguments: --policy limits.yaml" in done.stderr
