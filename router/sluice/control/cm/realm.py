# SPDX-License-Identifier: Apache-2.0
"""A network namespace: ports and loopback addresses of its own.

The kernel says which one a process is in, not the process: the socket that a connection makes on the listener's side
belongs to the namespace of who connected. That holds even when the process is gone, and takes no look into /proc.
"""

import array
import fcntl
import socket
import struct
from ipaddress import IPv4Address
from typing import Protocol

from sluice.device.host import IP, ipv6_addresses

SO_NETNS_COOKIE = 71  # asm-generic/socket.h; Linux 5.14
SIOCGIFCONF = 0x8912  # linux/sockios.h
IFREQ = 40  # bytes of a struct ifreq where pointers have 64 bits
MAX_INTERFACES = 4096


class Realm(Protocol):
    """key: two sessions are in one namespace exactly if their keys are equal."""

    key: int

    def has(self, ip: IP) -> bool:
        """Whether the address belongs to this namespace."""


def _cookie(of: socket.socket) -> int:
    """OSError ENOPROTOOPT before Linux 5.14."""
    (cookie,) = struct.unpack("Q", of.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))
    return int(cookie)


def _interface_addresses(of: socket.socket) -> set[IPv4Address]:
    room = array.array("B", bytes(IFREQ * MAX_INTERFACES))
    address, _ = room.buffer_info()
    answer = fcntl.ioctl(of, SIOCGIFCONF, struct.pack("iP", len(room), address))
    length, _ = struct.unpack("iP", answer)
    entries = room.tobytes()[:length]
    # struct ifreq: the name, then a struct sockaddr_in with the address at its offset 4.
    return {IPv4Address(entries[at + 20 : at + 24]) for at in range(0, length, IFREQ)}


class HostRealm:
    """The router's own namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self.key = _cookie(self._socket)
        except OSError:
            self.key = 0

    def has(self, ip: IP) -> bool:
        if ip.is_loopback:
            return True
        if isinstance(ip, IPv4Address):
            return ip in _interface_addresses(self._socket)
        return ip in ipv6_addresses()


class PeerRealm:
    """The namespace of the process at the other end of a connected AF_UNIX socket.

    Where the kernel can't tell, the tenant gets a namespace for itself. IPv6 addresses other than ::1 are known of the
    router's own namespace only.
    """

    def __init__(self, connection: socket.socket, tenant: int, host: Realm) -> None:
        self._connection = connection
        self._host = host
        try:
            self.key = _cookie(connection)
        except OSError:
            self.key = -1 - tenant

    def has(self, ip: IP) -> bool:
        if ip.is_loopback:
            return True
        try:
            if isinstance(ip, IPv4Address):
                return ip in _interface_addresses(self._connection)
            return self.key == self._host.key and self._host.has(ip)
        except (OSError, ValueError):
            # The session has ended, and its socket with it: closed, it has no descriptor.
            return False
