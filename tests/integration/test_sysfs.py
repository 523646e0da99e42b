# SPDX-License-Identifier: Apache-2.0
"""What applications read below /sys/class/infiniband and /dev/infiniband."""

import asyncio
import os
import shutil
import socket
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from conftest import RunningRouter, output_of, perftest
from sluice import shim_path
from sluice.device.sysfs import Sysfs
from sluice.device.virtual import VirtualDevice

BUILD = Path(os.environ.get("SLUICE_BUILD", "build")).absolute()
FILES = BUILD / "tests/integration/ways/ways-files"
DEVICE = "/sys/class/infiniband/sluice0"
PORT = f"{DEVICE}/ports/1"


def read(router: RunningRouter, tenant: str, *paths: str) -> list[str]:
    return output_of(router.run(tenant, "cat", *paths)).splitlines()


def test_the_device_as_sysfs_shows_it(router: RunningRouter) -> None:
    names = ("state", "phys_state", "rate", "link_layer", "lid", "gid_attrs/types/0", "pkeys/0")
    assert read(router, "a", *(f"{PORT}/{name}" for name in names)) == [
        "4: ACTIVE",
        "5: LinkUp",
        "100 Gb/sec (4X EDR)",
        "Ethernet",
        "0x0",
        "RoCE v2",
        "0xffff",
    ]
    packed = [int(part) for part in router.status("a")["address"].split(".")]
    gid = f"0000:0000:0000:0000:0000:ffff:{bytes(packed[:2]).hex()}:{bytes(packed[2:]).hex()}"
    assert read(router, "a", f"{PORT}/gids/0", f"{DEVICE}/node_type") == [gid, "1: CA"]
    assert read(router, "a", "/sys/class/infiniband_verbs/uverbs0/ibdev") == ["sluice0"]
    assert read(router, "a", f"{DEVICE}/parent", f"{DEVICE}/uevent") == ["lo", "NAME=sluice0"]


def test_directories(router: RunningRouter) -> None:
    assert output_of(router.run("a", "ls", "/sys/class/infiniband")).split() == ["sluice0"]
    assert output_of(router.run("a", "ls", "/dev/infiniband")).split() == ["rdma_cm", "uverbs0"]
    # With its access lists; nothing that ls could not read.
    assert "cannot" not in (text := output_of(router.run("a", "ls", "-lR", DEVICE, "/dev/infiniband"))), text
    assert "No such file" not in text, text
    script = f"import os; print(os.listdir('{PORT}/gids'), os.path.realpath('{DEVICE}/device'))"
    assert output_of(router.run("a", "/usr/bin/python3", "-c", script)).strip() == f"['0'] {DEVICE}/device"


@pytest.mark.parametrize(
    ("path", "text"),
    [(f"{DEVICE}/board_id", "SLUICE0000000001"), (f"{PORT}/counters/symbol_error", "0")],
    ids=["file", "counter"],
)
def test_every_way_to_name_a_file(router: RunningRouter, path: str, text: str) -> None:
    assert output_of(router.run("a", FILES, path, text)) == "same\n"


def test_counters_are_live(router: RunningRouter) -> None:
    paths = [f"{PORT}/counters/port_xmit_data", f"{PORT}/counters/port_xmit_packets"]
    before = [int(line) for line in read(router, "a", *paths)]
    perftest(router, ["ib_write_bw", "-n", "100", "-s", "65536"])
    after = [int(line) for line in read(router, "a", *paths)]
    assert after[0] - before[0] >= 100 * 65536 // 4
    assert after[1] - before[1] >= 100
    assert int(read(router, "b", f"{PORT}/counters/port_rcv_data")[0]) >= after[0] - before[0]
    # The same, named from a directory that is open, and from the one that a process is in.
    script = (
        f"import os; d = os.open('{PORT}', os.O_RDONLY); "
        "print(os.read(os.open('counters/port_xmit_data', os.O_RDONLY, dir_fd=d), 99).decode())"
    )
    assert int(output_of(router.run("a", "/usr/bin/python3", "-c", script))) >= after[0]
    shell = f"cd {PORT}/counters && cat port_xmit_data"
    assert int(output_of(router.run("a", "sh", "-c", shell))) >= after[0]


def test_perftest_reports_counters(router: RunningRouter) -> None:
    text = perftest(router, ["ib_write_bw", "-n", "100", "-s", "65536", "-W", "counters/port_xmit_data"])
    assert "port_xmit_data" in text, text


def test_without_a_router_there_is_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"LD_PRELOAD": str(shim_path()), "SLUICE_TENANT_DIR": str(tmp_path)}
    done = subprocess.run(["ls", "/sys/class/infiniband"], env=environment, capture_output=True, text=True, check=False)
    assert "No such file or directory" in done.stderr


def test_a_link_that_a_tenant_made_is_not_followed(tmp_path: Path) -> None:
    """A container's root may do what it likes to its directory: that must not reach out of it."""
    victim = tmp_path / "victim"
    victim.mkdir()
    tenant = tmp_path / "tenant"
    tenant.mkdir()

    async def attempt() -> None:
        sysfs = Sysfs(tenant, lambda _number: {})
        sysfs.write([VirtualDevice(IPv4Address("100.64.0.9"))])
        shutil.rmtree(tenant / "sys/class")
        (tenant / "sys/class").symlink_to(victim)
        with pytest.raises(OSError):
            sysfs.write([VirtualDevice(IPv4Address("100.64.0.9"))])
        sysfs.close()

    asyncio.run(attempt())
    assert list(victim.iterdir()) == []


def test_who_connects_and_never_reads_holds_nobody_up(router: RunningRouter) -> None:
    path = Path(router.ask("tenant-add", name="a", policy={})["path"]) / "counters0"
    idle = []
    for _ in range(50):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(str(path))
        idle.append(connection)
    assert read(router, "a", f"{PORT}/counters/symbol_error") == ["0"]
    for connection in idle:
        connection.close()
