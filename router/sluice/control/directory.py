# SPDX-License-Identifier: Apache-2.0
"""The directory: who has which virtual address. On one node: this router's own tenants."""

from ipaddress import IPv4Address, IPv4Network

POOL = IPv4Network("100.64.0.0/10")
"""Addresses for tenants that bring none: the shared space of RFC 6598, which no host on the wire uses."""


class Directory:
    """Maps addresses, and the GIDs made of them, to tenant numbers."""

    def __init__(self, pool: IPv4Network = POOL) -> None:
        self._pool = pool
        self._next = 1
        self._tenants: dict[IPv4Address, int] = {}

    def assign(self, tenant: int) -> IPv4Address:
        """A free address for a tenant. RuntimeError where the pool is used up."""
        for _ in range(self._pool.num_addresses):
            address = self._pool[self._next]
            self._next = self._next % (self._pool.num_addresses - 2) + 1
            if address not in self._tenants:
                self._tenants[address] = tenant
                return address
        raise RuntimeError(f"all addresses of {self._pool} are in use")

    def claim(self, tenant: int, address: IPv4Address) -> None:
        """This address for a tenant. ValueError where another has it."""
        if self._tenants.setdefault(address, tenant) != tenant:
            raise ValueError(f"{address} belongs to another tenant")

    def release(self, address: IPv4Address) -> None:
        del self._tenants[address]

    def tenant_of(self, gid: bytes) -> int | None:
        """The tenant behind a GID (16 bytes), or None."""
        address = address_of(gid)
        return None if address is None else self._tenants.get(address)


def address_of(gid: bytes) -> IPv4Address | None:
    """The address in a GID (16 bytes) that maps one (::ffff:0:0/96)."""
    return IPv4Address(gid[12:]) if gid[:12] == bytes(10) + b"\xff\xff" else None
