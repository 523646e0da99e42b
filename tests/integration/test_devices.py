# SPDX-License-Identifier: Apache-2.0
"""What a tenant sees of its device, and what an application sees without a router."""

import os
import subprocess
from pathlib import Path

from conftest import RunningRouter, output_of
from sluice import shim_path


def test_one_device(router: RunningRouter) -> None:
    lines = output_of(router.run("a", "ibv_devices")).splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["sluice0"]


def test_devinfo_is_complete(router: RunningRouter) -> None:
    text = output_of(router.run("a", "ibv_devinfo", "-v"))
    address = router.status("a")["address"]
    for expected in ("PORT_ACTIVE", "link_layer:\t\tEthernet", "ATOMIC_HCA", f"::ffff:{address}, RoCE v2"):
        assert expected in text, text
    assert "Failed" not in text


def test_tenants_differ(router: RunningRouter) -> None:
    guids = {output_of(router.run(tenant, "ibv_devices")).split()[-1] for tenant in ("a", "b")}
    assert len(guids) == 2


def without_router(*argv: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "LD_PRELOAD": str(shim_path()), "SLUICE_TENANT_DIR": "/nonexistent"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_no_router_no_device() -> None:
    assert len(without_router("ibv_devices").stdout.splitlines()) == 2
    perftest = without_router("ib_write_bw")
    assert perftest.returncode != 0
    assert "Did not detect devices" in perftest.stdout + perftest.stderr


def test_the_shim_is_silent_and_light() -> None:
    """Preloaded into something else: nothing printed, nothing but libc behind it."""
    assert without_router("true").stderr == ""
    needed = subprocess.run(["readelf", "-d", shim_path()], capture_output=True, text=True, check=True).stdout
    libraries = [line for line in needed.splitlines() if "NEEDED" in line]
    assert all("libc.so" in line or "ld-linux" in line for line in libraries), libraries


def test_a_tenant_sees_no_other_tenant(router: RunningRouter) -> None:
    output_of(router.run("b", "true"))
    if os.geteuid() != 0:
        return
    listing = output_of(router.run("a", "find", str(router.state_dir)))
    assert "descriptors" in listing and "tenants" not in listing and "admin" not in listing
    assert Path(router.state_dir / "tenants/b").exists()


def test_exit_codes(router: RunningRouter) -> None:
    output_of(router.run("a", "sh", "-c", "exit 7"), expected=7)
    output_of(router.run("a", "sh", "-c", "kill -9 $$"), expected=137)
    output_of(router.run("a", "no-such-command"), expected=127)
