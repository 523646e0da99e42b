# SPDX-License-Identifier: Apache-2.0
"""Routers find each other, and each other's keys, by their nodes' ResourceSlices: no cluster file."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from conftest import wait_until
from control_plane import ControlPlane
from programs import free_port, start, stop
from sluice.control.admin import RouterAbsent, ask
from worker import Worker

pytest_plugins = ["cluster"]


def peers(state_dir: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = ask(state_dir, "status")["cluster"]["peers"]
    except (RouterAbsent, KeyError, TypeError):
        return {}
    return found


def test_routers_find_each_other(plane: ControlPlane, worker: Worker) -> None:
    plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-2"}})
    root = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    settings = root / "settings.yaml"
    settings.write_text(
        yaml.safe_dump(
            {
                "node": "worker-2",
                "kubeconfig": str(plane.kubeconfig),
                "address": worker.address,
                "port": free_port(),
                "nics": {"eth0": "10G"},
                "kubelet-dir": str(root / "k"),
                "cdi-dir": str(root / "cdi"),
                "shim-dir": str(root / "shim"),
            }
        )
    )
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "sluice",
        "router",
        "--state-dir",
        root / "s",
        "--kubernetes",
        settings,
    ]
    second = start(command, root / "router.log")
    try:
        wait_until(lambda: peers(worker.state_dir).get("worker-2", {}).get("alive"), "the link to the second")
        wait_until(lambda: peers(root / "s").get("worker-1", {}).get("alive"), "the link to the first")
        plane.kubectl("delete", "node", "worker-2")
        stop(second)
        plane.kubectl("delete", "resourceslice", "worker-2-rdma.sluice.dev", "--ignore-not-found")
        wait_until(lambda: "worker-2" not in peers(worker.state_dir), "the second to be forgotten")
    finally:
        stop(second)
