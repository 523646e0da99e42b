# SPDX-License-Identifier: Apache-2.0
"""The directory, the counters' types, and what commands ask a router."""

import socket
import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from conftest import PATIENCE
from sluice.cluster.directory import AddressError, Directory
from sluice.device.socket_file import let_all_connect
from sluice.device.virtual import VirtualDevice
from sluice.engine import ffi
from sluice.engine.counters import QP, TENANT


def test_the_directory_knows_who_has_a_gid() -> None:
    directory = Directory(pool=IPv4Network("10.0.0.0/29"))
    addresses = [directory.assign(tenant) for tenant in range(6)]
    assert len(set(addresses)) == 6
    assert directory.tenant_of(VirtualDevice(addresses[3]).gid) == 3
    with pytest.raises(AddressError, match="in use"):
        directory.assign(7)
    directory.release(addresses[3])
    assert directory.tenant_of(VirtualDevice(addresses[3]).gid) is None
    assert directory.assign(8) == addresses[3]
    assert directory.tenant_of(bytes(16)) is None


def test_counters_have_the_layout_of_the_header_file() -> None:
    assert ffi.sizeof("struct sluice_tenant_counters") == TENANT.itemsize
    assert ffi.sizeof("struct sluice_qp_counters") == QP.itemsize
    assert TENANT.names is not None and "tx_bytes" in TENANT.names


def test_a_link_in_a_sockets_place_leads_nowhere(tmp_path: Path) -> None:
    """A container that may write to its tenant's directory makes nothing of the host's everybody's."""
    secret, link = tmp_path / "secret", tmp_path / "control"
    secret.touch(0o600)
    link.symlink_to(secret)
    with pytest.raises(OSError, match="no socket"):
        let_all_connect(link)
    assert secret.stat().st_mode & 0o777 == 0o600
    link.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(link))
        let_all_connect(link)
    assert link.stat().st_mode & 0o777 == 0o666


INTERRUPTED = """
import socket, sys
from pathlib import Path
import zmq
from sluice.control.operator import ask

place = Path(sys.argv[1])
door = socket.socket(socket.AF_UNIX)
door.bind(str(place / "admin"))
door.listen()
made = []

def half_made(context, kind):
    # As a signal's handler raises: the socket is there, and the context doesn't know it.
    made.append(zmq.Socket(context, kind))
    raise SystemExit(7)

zmq.Context.socket = half_made
ask(place, "ping")
"""


def test_a_signal_in_the_middle_of_a_question_ends_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(tmp_path)], timeout=PATIENCE, check=False)
    assert done.returncode == 7
