# SPDX-License-Identifier: Apache-2.0
"""The host's own addresses, as its routes and interfaces know them.

A link-local address (RFC 4291, 2.5.6) is one only together with an interface, which it has here as its scope, by its
index: fe80::1%2.
"""

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

IP = IPv4Address | IPv6Address

IF_INET6 = Path("/proc/self/net/if_inet6")
"""A line for each address: 32 hex digits, the interface's index in hex, and what isn't read here (proc_net(5))."""


def on_interface(ip: IPv6Address, interface: int) -> IPv6Address:
    """A link-local address on this interface, if one is named; any other as it is."""
    return IPv6Address(f"{IPv6Address(ip.packed)}%{interface}") if ip.is_link_local and interface else ip


def interface_of(ip: IPv6Address) -> int:
    """Of a link-local address; 0: none is named."""
    return int(ip.scope_id) if ip.scope_id is not None and ip.scope_id.isdecimal() else 0


def ipv6_addresses() -> set[IPv6Address]:
    """Those of the host's interfaces."""
    found = set()
    with suppress(OSError):  # a kernel without IPv6
        for line in IF_INET6.read_text().splitlines():
            digits, interface, *_ = line.split()
            found.add(on_interface(IPv6Address(bytes.fromhex(digits)), int(interface, 16)))
    return found


def source_to(address: IP) -> IP | None:
    """From which of the host's addresses its routes lead to this one; nothing is sent."""
    family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if isinstance(address, IPv6Address):
                probe.connect((str(IPv6Address(address.packed)), 1, 0, interface_of(address)))
                name, _, _, interface = probe.getsockname()
                return on_interface(IPv6Address(name), interface)
            probe.connect((str(address), 1))
            return IPv4Address(probe.getsockname()[0])
    except OSError:
        return None


def is_of_host(address: IP) -> bool:
    """Whether it is one of the host's: what goes there comes from there. A link-local one may lack its interface."""
    if isinstance(address, IPv6Address):
        return address.is_loopback or any(own.packed == address.packed for own in ipv6_addresses())
    return address.is_loopback or source_to(address) == address
