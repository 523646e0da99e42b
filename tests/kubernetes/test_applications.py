# SPDX-License-Identifier: Apache-2.0
"""Applications that find the libraries in their own ways."""

import shutil
from typing import Any

import pytest
from cluster import UCX, pod, start_ucx_server, template
from control_plane import ControlPlane
from worker import Worker

pytest_plugins = ["cluster"]


def two_pods(plane: ControlPlane, **parameters: Any) -> str:
    """Address of the server."""
    plane.apply(template("any", "1G", **parameters), pod("server", "any"), pod("client", "any"))
    for name in ("server", "client"):
        plane.wait_for(f"pod/{name}", "condition=Ready")
    address: str = plane.pod("server")["status"]["podIP"]
    return address


@pytest.mark.skipif(shutil.which("ucx_perftest") is None, reason="ucx-utils is not installed")
@pytest.mark.parametrize("preload", ["environment", "file"])
def test_ucx_loads_its_modules(plane: ControlPlane, worker: Worker, preload: str) -> None:
    """UCX opens a module by dlopen, which needs libibverbs.so.1: that is there already."""
    address = two_pods(plane, preload=preload)
    start_ucx_server(worker, "server")
    text = worker.output("client", *UCX, "-t", "tag_bw", "-s", "65536", "-n", "200", address)
    assert "Final:" in text and "ERROR" not in text, text


def test_all_names_of_the_libraries(plane: ControlPlane, worker: Worker) -> None:
    plane.apply(template("any", "1G"), pod("lister", "any"))
    plane.wait_for("pod/lister", "condition=Ready")
    names = worker.output("lister", "ls", "/usr/lib/sluice").split()
    libraries = {"libibverbs.so", "libibverbs.so.1", "librdmacm.so", "librdmacm.so.1", "libsluice.so"}
    assert set(names) == libraries | {"ld.so.preload"}
    # The loader finds them where a pod says so, before the image's own.
    text = worker.output("lister", "env", "-u", "LD_PRELOAD", "LD_LIBRARY_PATH=/usr/lib/sluice", "ibv_devinfo")
    assert "sluice0" in text
    assert worker.execute("lister", "touch", "/usr/lib/sluice/mine").returncode != 0, "read-only"


@pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="musl-tools is not installed")
def test_an_image_of_musl(plane: ControlPlane, worker: Worker) -> None:
    """As Alpine's: the shim that is preloaded there needs no glibc."""
    plane.apply(template("any", "1G", libc="musl"), pod("alpine", "any"))
    plane.wait_for("pod/alpine", "condition=Ready")
    assert worker.output("alpine", "linked-musl") == "sluice0 SLUICE0000000001\n"
