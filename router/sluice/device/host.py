# SPDX-License-Identifier: Apache-2.0
"""The host's own addresses, as its routes know them."""

import socket
from ipaddress import IPv4Address


def source_to(address: IPv4Address) -> IPv4Address | None:
    """From which of the host's addresses its routes lead to this one; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 1))
            return IPv4Address(probe.getsockname()[0])
    except OSError:
        return None


def is_of_host(address: IPv4Address) -> bool:
    """Whether it is one of the host's: what goes there comes from there."""
    return address.is_loopback or source_to(address) == address
