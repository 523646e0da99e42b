# SPDX-License-Identifier: Apache-2.0
"""The directory: who has which virtual address, and on which node.

A tenant's GID is its address, IPv4-mapped. This node's tenants are known at
first hand; everybody else comes from sources: the cluster file, what other
routers tell (peers.py), the Kubernetes API.
"""

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Protocol

POOL = IPv4Network("100.64.0.0/10")
"""Addresses for tenants that bring none: the shared space of RFC 6598, which no host on the wire uses."""

GID_PREFIX = bytes(10) + b"\xff\xff"


class AddressError(ValueError):
    """An address that can't be had; the text says why."""


@dataclass(frozen=True)
class Place:
    """Where an address is: the node's and the tenant's name."""

    node: str
    tenant: str


class Source(Protocol):
    """Somebody who knows tenants of this and other nodes. Asked often: answers from memory."""

    def find(self, address: IPv4Address) -> Place | None:
        """Who has this address, or None where this source doesn't know."""

    def address_of(self, node: str, tenant: str) -> IPv4Address | None:
        """The address that a tenant must have, or None where this source doesn't say."""


def address_of(gid: bytes) -> IPv4Address | None:
    """The address behind a GID (16 bytes), or None for a GID that isn't IPv4-mapped."""
    return IPv4Address(gid[12:]) if gid[:12] == GID_PREFIX else None


def ip_of(gid: bytes) -> IPv4Address | IPv6Address:
    """The address that a GID of RoCE v2 is. Of a link-local one it doesn't say on which link."""
    return address_of(gid) or IPv6Address(gid)


def gid_of_address(address: IPv4Address) -> bytes:
    return GID_PREFIX + address.packed


class Remote(Protocol):
    """Connects QPs to peers on other nodes (connector.py)."""

    def want(
        self, session: int, handle: int, qp: int, source: IPv4Address, destination: IPv4Address, peer_qp: int
    ) -> None:
        """The QP is in RTR; qp and peer_qp are the numbers of the two ends."""

    def trunk_to(self, destination: IPv4Address) -> int | None:
        """The trunk for datagrams to an address; None where it isn't known to be on another node."""

    def trunks_to_all(self) -> None:
        """Datagrams go to a multicast group, whose members may be anywhere."""

    def forget(self, session: int, handle: int) -> None:
        """It is connected no longer, and needn't be."""

    def forget_session(self, session: int) -> None:
        """The same for all QPs of a session."""


class Directory:
    """Maps addresses, and the GIDs made of them, to this node's tenants and to other nodes.

    node: this node's name; empty where there is no cluster. pool: where addresses
    come from for tenants that bring none.
    """

    def __init__(self, node: str = "", pool: IPv4Network = POOL) -> None:
        self.node = node
        self._pool = pool
        # Two nodes that share a pool start at different places.
        self._next = zlib.crc32(node.encode()) % (pool.num_addresses - 2) + 1 if node else 1
        self._tenants: dict[IPv4Address, tuple[int, str]] = {}
        self._sources: list[Source] = []
        self._listeners: list[Callable[[], None]] = []
        self.remote: Remote | None = None
        """How QPs reach other nodes; None where there are none."""
        self.revision = 0
        """Changes whenever this node's tenants do."""

    def on_change(self, listener: Callable[[], None]) -> None:
        """listener() is called when this node's tenants are others."""
        self._listeners.append(listener)

    def add_source(self, source: Source) -> None:
        """Sources are asked in the order in which they came."""
        self._sources.append(source)

    def remove_source(self, source: Source) -> None:
        self._sources.remove(source)

    def assign(self, tenant: int, name: str = "", wanted: IPv4Address | None = None) -> IPv4Address:
        """The address that a tenant wants, or is said to have, or a free one.

        AddressError where somebody else has it, or the pool is used up.
        """
        wanted = wanted or self._prescribed(name)
        if wanted is not None:
            self.check(name, wanted)
            self._take(wanted, tenant, name)
            return wanted
        for _ in range(self._pool.num_addresses - 2):
            address = self._pool[self._next]
            self._next = self._next % (self._pool.num_addresses - 2) + 1
            if address not in self._tenants and self._elsewhere(address) is None:
                self._take(address, tenant, name)
                return address
        raise AddressError(f"all addresses of {self._pool} are in use")

    def _prescribed(self, name: str) -> IPv4Address | None:
        for source in self._sources:
            address = source.address_of(self.node, name)
            if address is not None:
                return address
        return None

    def _elsewhere(self, address: IPv4Address) -> Place | None:
        for source in self._sources:
            place = source.find(address)
            if place is not None:
                return place
        return None

    def check(self, name: str, wanted: IPv4Address, leaving: Collection[IPv4Address] = ()) -> None:
        """AddressError where a tenant of this name can't have an address. leaving: those given up before."""
        if wanted in self._tenants and wanted not in leaving:
            raise AddressError(f"tenant {self._tenants[wanted][1]!r} has the address {wanted} already")
        if wanted.is_multicast or wanted.is_unspecified or wanted.is_loopback or wanted == IPv4Address(2**32 - 1):
            raise AddressError(f"{wanted} is not an address for a tenant: it is multicast, loopback or reserved")
        place = self._elsewhere(wanted)
        if place is not None and place != Place(self.node, name):
            raise AddressError(f"the address {wanted} belongs to tenant {place.tenant!r} of node {place.node!r}")

    def claim(self, tenant: int, address: IPv4Address, name: str = "") -> None:
        """This address for a tenant that may have it already. AddressError where another has it."""
        if self._tenants.get(address, (None,))[0] != tenant:
            self.assign(tenant, name, address)

    def release(self, address: IPv4Address) -> None:
        del self._tenants[address]
        self._changed()

    def _take(self, address: IPv4Address, tenant: int, name: str) -> None:
        self._tenants[address] = (tenant, name)
        self._changed()

    def _changed(self) -> None:
        self.revision += 1
        for listener in self._listeners:
            listener()

    def local(self) -> Mapping[IPv4Address, str]:
        """This node's tenants: address and name."""
        return {address: name for address, (_, name) in self._tenants.items()}

    def tenant_of(self, gid: bytes) -> int | None:
        """The number of this node's tenant behind a GID (16 bytes), or None."""
        address = address_of(gid)
        found = None if address is None else self._tenants.get(address)
        return found[0] if found is not None else None

    def tenant_at(self, address: IPv4Address) -> int | None:
        """The number of this node's tenant with an address, or None."""
        found = self._tenants.get(address)
        return None if found is None else found[0]

    def address_of_tenant(self, number: int) -> IPv4Address | None:
        """The address of this node's tenant with this number."""
        return next((address for address, (tenant, _) in self._tenants.items() if tenant == number), None)

    def find(self, address: IPv4Address) -> Place | None:
        """Who has an address, here or on another node, or None."""
        if address in self._tenants:
            return Place(self.node, self._tenants[address][1])
        return self._elsewhere(address)
