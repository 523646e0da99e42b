# SPDX-License-Identifier: Apache-2.0
"""The host's own addresses."""

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from sluice.control.cm.address import SocketAddress, socket_address
from sluice.device import host
from sluice.device.host import is_of_host, source_to


@pytest.fixture
def interfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "if_inet6"
    listed.write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe80000000000000505400fffe770001 0c 40 20 80     eth0\n"
        "20010db8000000000000000000000001 0c 40 00 80     eth0\n"
    )
    monkeypatch.setattr(host, "IF_INET6", listed)


def test_addresses_of_interfaces(interfaces: None) -> None:
    expected = ("::1", "fe80::5054:ff:fe77:1%12", "2001:db8::1")
    assert host.ipv6_addresses() == {IPv6Address(text) for text in expected}
    for text in (*expected, "fe80::5054:ff:fe77:1"):
        assert is_of_host(IPv6Address(text))
    assert not is_of_host(IPv6Address("2001:db8::2"))


def test_a_kernel_without_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "IF_INET6", tmp_path / "none")
    assert host.ipv6_addresses() == set()


def test_a_way_starts_from_an_address() -> None:
    assert source_to(IPv4Address("127.0.0.1")) == IPv4Address("127.0.0.1")
    assert source_to(IPv6Address("fe80::1")) is None  # on which link?


def test_a_link_local_address_has_its_interface() -> None:
    address = socket_address(IPv6Address("fe80::1%12"), 7)
    assert (str(address.ip), address.scope_id, address.plain) == ("fe80::1", 12, IPv6Address("fe80::1%12"))
    assert address.with_port(8).plain == address.plain
    assert address.with_ip(IPv6Address("2001:db8::1")) == socket_address(IPv6Address("2001:db8::1"), 7)
    assert address.with_ip(IPv4Address("192.0.2.1")).plain == IPv4Address("192.0.2.1")
    # An interface says nothing of an address that is the same on all.
    assert SocketAddress(address.family, IPv6Address("2001:db8::1"), 7, 12).plain == IPv6Address("2001:db8::1")
