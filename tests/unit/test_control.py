# SPDX-License-Identifier: Apache-2.0
"""The directory, and the counters' types."""

from ipaddress import IPv4Network

import pytest
from sluice.cluster.directory import AddressError, Directory
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
