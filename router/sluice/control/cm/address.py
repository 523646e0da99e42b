# SPDX-License-Identifier: Apache-2.0
"""Socket addresses (struct sluice_cm_addr) and the GIDs made of them."""

import errno
import socket
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from sluice.device.host import IP, interface_of, on_interface
from sluice.engine import ffi

MAPPED = bytes(10) + b"\xff\xff"
"""What stands before an IPv4 address in an IPv4-mapped IPv6 address or GID."""


@dataclass(frozen=True)
class SocketAddress:
    """What the application wrote: its family is kept even where an IPv6 address only wraps an IPv4 one."""

    family: int
    ip: IP
    port: int
    scope_id: int = 0

    @property
    def plain(self) -> IP:
        """The address itself, unwrapped; a link-local one with its interface."""
        if not isinstance(self.ip, IPv6Address):
            return self.ip
        if self.ip.ipv4_mapped is not None:
            return self.ip.ipv4_mapped
        return on_interface(self.ip, self.scope_id)

    @property
    def is_any(self) -> bool:
        return self.plain.is_unspecified

    def with_ip(self, plain: IP) -> "SocketAddress":
        """The same port and family with another address; IPv4 is wrapped where the family is AF_INET6."""
        wrap = self.family == socket.AF_INET6 and isinstance(plain, IPv4Address)
        address = socket_address(IPv6Address(MAPPED + plain.packed) if wrap else plain, self.port)
        return replace(address, family=self.family)

    def with_port(self, port: int) -> "SocketAddress":
        return SocketAddress(self.family, self.ip, port, self.scope_id)


def socket_address(ip: IP, port: int) -> SocketAddress:
    """ip: a link-local one with its interface."""
    if isinstance(ip, IPv4Address):
        return SocketAddress(socket.AF_INET, ip, port)
    return SocketAddress(socket.AF_INET6, IPv6Address(ip.packed), port, interface_of(ip))


def any_address(family: int) -> SocketAddress:
    return SocketAddress(family, IPv4Address(0) if family == socket.AF_INET else IPv6Address(0), 0)


def loopback(family: int) -> SocketAddress:
    return SocketAddress(family, IPv4Address("127.0.0.1") if family == socket.AF_INET else IPv6Address("::1"), 0)


def read_address(raw: Any) -> SocketAddress | None:
    """From a struct sluice_cm_addr; None for family 0. OSError EAFNOSUPPORT."""
    if raw.family == 0:
        return None
    packed = bytes(ffi.buffer(raw.addr))
    port = socket.ntohs(raw.port)
    if raw.family == socket.AF_INET:
        return SocketAddress(socket.AF_INET, IPv4Address(packed[:4]), port)
    if raw.family == socket.AF_INET6:
        return SocketAddress(socket.AF_INET6, IPv6Address(packed), port, raw.scope_id)
    raise OSError(errno.EAFNOSUPPORT, "neither IPv4 nor IPv6")


def write_address(raw: Any, address: SocketAddress | None) -> None:
    if address is None:
        return
    raw.family = address.family
    raw.port = socket.htons(address.port)
    raw.scope_id = address.scope_id
    ffi.memmove(raw.addr, address.ip.packed, len(address.ip.packed))


def gid_of(ip: IP) -> bytes:
    """The RoCE v2 GID of an address."""
    return ip.packed if isinstance(ip, IPv6Address) else MAPPED + ip.packed
