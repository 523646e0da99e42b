# SPDX-License-Identifier: Apache-2.0
"""What a tenant sees of its device, of several devices, and what an application sees without a router."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, RunningRouter, endless, listening, next_port, output_of, wait_until
from sluice import shim_path
from sluice.control.operator import RouterError


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
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


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


# ---- several devices -------------------------------------------------------

BOTH = ("--device", "left", "--device", "right")
HTTP = next_port()


@pytest.fixture(scope="module")
def rails() -> Iterator[RunningRouter]:
    """A router with two devices, left and right; right is a wire of 2 Gbit/s."""
    running = RunningRouter(
        *("--device", "software:left", "--device", "software:right", "--capacity", "right=2Gbps"),
        *("--http", str(HTTP)),
    )
    yield running
    running.stop()


def counters(router: RunningRouter, tenant: str, device: str) -> dict[str, Any]:
    found: dict[str, Any] = router.status(tenant)["devices"][device]["counters"]
    return found


def rate(router: RunningRouter, device: str, *tenants: str, seconds: float = 0.5) -> float:
    """What they send on a device together, bits per second over at least this long."""

    def moved(status: Any) -> int:
        return sum(status["tenants"][name]["devices"][device]["counters"]["tx_bytes"] for name in tenants)

    first = router.ask("status")
    deadline = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= deadline, "time")
    second = router.ask("status")
    return float(8e9 * (moved(second) - moved(first)) / (second["time_ns"] - first["time_ns"]))


def test_a_tenant_sees_what_it_was_given(rails: RunningRouter) -> None:
    def seen(tenant: str, *options: str) -> list[list[str]]:
        lines = output_of(rails.run(tenant, "ibv_devices", options=options)).splitlines()[2:]
        return [line.split() for line in lines]

    assert [name for name, _ in seen("first")] == ["sluice0"]
    assert [name for name, _ in seen("second", "--device", "right")] == ["sluice0"]
    both = seen("both", *BOTH)
    assert [name for name, _ in both] == ["sluice0", "sluice1"]
    assert len({guid for _, guid in both}) == 2
    assert rails.status("second")["devices"]["sluice0"]["device"] == "right"
    for device in ("sluice0", "sluice1"):
        text = output_of(rails.run("both", "ibv_devinfo", "-v", "-d", device))
        assert f"::ffff:{rails.status('both')['address']}, RoCE v2" in text, text


def test_files_of_each_device(rails: RunningRouter) -> None:
    rails.ask("tenant-add", name="both", policy={}, devices=["left", "right"])
    assert output_of(rails.run("both", "ls", "/sys/class/infiniband")).split() == ["sluice0", "sluice1"]
    files = [f"/sys/class/infiniband_verbs/uverbs{number}/{name}" for number in (0, 1) for name in ("ibdev", "dev")]
    assert output_of(rails.run("both", "cat", *files)).split() == ["sluice0", "231:192", "sluice1", "231:193"]


def test_one_process_with_both(rails: RunningRouter, program: Callable[[str], Path]) -> None:
    assert "both devices" in output_of(rails.run("both", program("rails"), options=BOTH))
    for device in ("sluice0", "sluice1"):
        assert counters(rails, "both", device)["tx_bytes"] >= 2 << 20
        assert [counters(rails, "both", device)[what] for what in ("qps", "cqs", "mrs", "mr_bytes")] == [0, 0, 0, 0]
        file = f"/sys/class/infiniband/{device}/ports/1/counters/port_xmit_data"
        read = int(output_of(rails.run("both", "cat", file)))
        assert read == counters(rails, "both", device)["tx_bytes"] // 4


@pytest.fixture
def streams(rails: RunningRouter) -> Iterator[Callable[[str, str, str, int], None]]:
    """Starts endless WRITEs from one tenant to another on a device, as the tenants name it."""
    running = []

    def start(sender: str, receiver: str, device: str, qps: int) -> None:
        port = next_port()
        argv = endless("ib_write_bw", port, "-d", device, "-q", str(qps))
        server = rails.run(receiver, *argv, options=BOTH)
        running.append(server)
        wait_until(lambda: listening(port) or server.poll() is not None, "the server")
        running.append(rails.run(sender, *argv, "127.0.0.1", options=BOTH))
        wait_until(lambda: sender in rails.ask("status")["tenants"], "the tenant")
        before = counters(rails, sender, device)["tx_bytes"]
        wait_until(lambda: counters(rails, sender, device)["tx_bytes"] > before, f"traffic on {device}")

    yield start
    for child in reversed(running):
        child.terminate()
        child.wait(PATIENCE)


def test_each_device_has_its_own_rates(rails: RunningRouter, streams: Callable[..., None]) -> None:
    """Ceilings and guarantees on one device say nothing of the other."""
    for tenant in ("a", "b", "flood"):
        rails.ask("tenant-add", name=tenant, policy={}, devices=["left", "right"])
    rails.ask("policy-set", name="a", policy={"max": "500Mbps"}, device="left")
    rails.ask("policy-set", name="a", policy={"min": "600Mbps"}, device="right")
    rails.ask("policy-set", name="flood", policy={"weight": "10000"}, device="right")
    streams("a", "b", "sluice0", 1)
    streams("a", "b", "sluice1", 1)
    streams("flood", "b", "sluice1", 4)

    def near(tenant: str, device: str, bps: float) -> bool:
        return rate(rails, device, tenant) == pytest.approx(bps, rel=0.03)

    wait_until(partial(near, "a", "sluice0", 5e8), "the ceiling on left")
    wait_until(lambda: rate(rails, "sluice1", "a") >= 0.97 * 6e8, "the guarantee on right")
    wait_until(lambda: rate(rails, "sluice1", "a", "flood") == pytest.approx(2e9, rel=0.03), "right's wire")
    rails.ask("policy-set", name="flood", policy={"weight": "none"}, device="right")
    rails.ask("policy-set", name="a", policy={"min": "none", "max": "200Mbps"}, device="right")
    wait_until(partial(near, "a", "sluice1", 2e8), "the ceiling on right")
    wait_until(partial(near, "flood", "sluice1", 18e8), "what that leaves of right's wire")
    wait_until(partial(near, "a", "sluice0", 5e8), "the ceiling on left, as before")


def test_promises_are_checked_on_their_device(rails: RunningRouter) -> None:
    rails.ask("tenant-add", name="both", policy={}, devices=["left", "right"])
    rails.ask("policy-set", name="both", policy={"min": "3Gbps"}, device="left")
    with pytest.raises(
        RouterError, match=r"device right: guarantees are more than the device's capacity, egress: .*> 2Gbps"
    ):
        rails.ask("policy-set", name="both", policy={"min": "3Gbps"}, device="right")
    with pytest.raises(RouterError, match="there is no device 'middle'; there are: left, right"):
        rails.ask("policy-set", name="both", policy={"min": "3Gbps"}, device="middle")
    with pytest.raises(RouterError, match="tenant 'one' has no device 'right'; it has: left"):
        rails.ask("tenant-add", name="one", policy={})
        rails.ask("policy-set", name="one", policy={"max": "3Gbps"}, device="right")
    rails.ask("policy-set", name="both", policy={"min": "none"}, device="left")


def test_a_file_for_both(rails: RunningRouter, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "groups:\n  team: {max: 3Gbps, devices: {right: {max: 1Gbps}}}\n"
        "tenants:\n"
        "  wide: {min: 1Gbps, devices: {right: {max: 100Mbps, group: team}}}\n"
        "  narrow: {devices: {right: {max: 200Mbps}}}\n"
    )
    assert rails.ask("policy-load", path=str(file))["tenants"] == ["narrow", "wide"]
    devices = rails.ask("policy-show")["devices"]
    assert devices["left"]["tenants"]["wide"] == {"min": "1Gbps"} and "narrow" not in devices["left"]["tenants"]
    assert devices["right"]["tenants"]["wide"] == {"max": "100Mbps", "group": "team"}
    assert devices["right"]["groups"] == {"team": {"max": "1Gbps"}}
    assert list(rails.status("narrow")["devices"]) == ["sluice0"]
    file.write_text("tenants:\n  wide: {devices: {right: {min: 3Gbps}}}\n")
    with pytest.raises(RouterError, match=r"policy.yaml: device right: guarantees are more"):
        rails.ask("policy-load", path=str(file))
    assert rails.ask("policy-show")["devices"]["right"]["tenants"]["wide"] == {"max": "100Mbps", "group": "team"}


def test_what_the_operator_sees(rails: RunningRouter) -> None:
    """A line for each device of each tenant."""
    rails.ask("tenant-add", name="seen", policy={}, devices=["left", "right"])
    rails.ask("policy-set", name="seen", policy={"max": "123Mbps"}, device="right")
    rails.ask("group-set", name="club", policy={"max": "1Gbps"}, device="right")

    def told(*argv: str) -> list[list[str]]:
        command = [sys.executable, "-m", "sluice", *argv, "--state-dir", str(rails.state_dir)]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
        return [line.split() for line in text.splitlines()]

    for argv in (("status",), ("top", "--count", "1", "--interval", "0.1")):
        lines = told(*argv)
        head = next(line for line in lines if line[:2] == ["TENANT", "DEVICE"])
        ceilings = {line[1]: line[head.index("CEILING")] for line in lines if line[:1] == ["seen"]}
        assert ceilings == {"left": "none", "right": "123Mbps"}
        assert ["club", "right"] in [line[:2] for line in lines]
    (line,) = told("top", "--count", "1", "--interval", "0.1", "--json")
    devices = json.loads(" ".join(line))["tenants"]["seen"]["devices"]
    assert devices["right"]["max_bps"] == [123_000_000] * 2 and devices["left"]["max_bps"] == [0, 0]
    shown = told("policy", "show")
    assert ["device", "right"] in shown and ["tenant", "seen", "max", "123Mbps"] in shown
    with urllib.request.urlopen(f"http://127.0.0.1:{HTTP}/metrics", timeout=PATIENCE) as answer:
        metrics = answer.read().decode()
    assert 'sluice_tenant_max_bits_per_second{device="right",tenant="seen"} 1.23e+08' in metrics
    assert 'sluice_tenant_max_bits_per_second{device="left",tenant="seen"} 0.0' in metrics
    assert 'sluice_device_capacity_bits_per_second{device="right"} 2e+09' in metrics
    rails.ask("group-remove", name="club", device="right")


def test_a_device_that_comes_later(rails: RunningRouter) -> None:
    """A running process sees it in its next list."""
    script = (
        "while [ $(ibv_devices | tail -n +3 | wc -l) != 2 ]; do :; done; "
        "test $(ibv_devices | tail -n +3 | wc -l) = 2 && echo both"
    )
    child = rails.run("later", "sh", "-c", script)
    wait_until(lambda: "later" in rails.ask("status")["tenants"], "the tenant")
    rails.ask("tenant-add", name="later", policy={}, devices=["right"])
    assert output_of(child) == "both\n"


@pytest.mark.skipif(shutil.which("ucx_perftest") is None, reason="ucx-utils is not installed")
def test_ucx_uses_both(rails: RunningRouter) -> None:
    port = str(next_port())
    settings = ["UCX_TLS=rc_verbs,ud_verbs,self", "UCX_NET_DEVICES=sluice0:1,sluice1:1", "UCX_MAX_RNDV_RAILS=2"]
    argv = ["env", *settings, "ucx_perftest", "-p", port]
    server = rails.run("ucx-b", *argv, options=BOTH)
    wait_until(lambda: listening(int(port)) or server.poll() is not None, "the server")
    before = {device: counters(rails, "ucx-b", device)["rx_bytes"] for device in ("sluice0", "sluice1")}
    output_of(
        rails.run("ucx-a", *argv, "-t", "tag_bw", "-s", "4194304", "-n", "50", "-w", "5", "127.0.0.1", options=BOTH)
    )
    output_of(server)
    for device, bytes_before in before.items():
        assert counters(rails, "ucx-b", device)["rx_bytes"] - bytes_before > 4 << 20, device
