# SPDX-License-Identifier: Apache-2.0
"""Who is at an address: the ports of a tenant, the ports of a network namespace, another node, or nobody."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from sluice.cluster.directory import Directory
from sluice.control.cm.address import gid_of
from sluice.control.cm.realm import Realm
from sluice.device.host import IP


@dataclass(frozen=True)
class Scope:
    """Whose ports: a tenant's own address ("tenant", its number), or a network namespace ("realm", its key)."""

    kind: str
    number: int


@dataclass(frozen=True)
class Place:
    """node: None is this one; then scope says whose ports are meant."""

    node: str | None
    scope: Scope | None = None


@dataclass(frozen=True)
class CmDevice:
    """A device of a tenant, by the number that its processes know. nic_gids: those of its table that are a NIC's, which
    come first."""

    number: int = 0
    nic_gids: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Party:
    """Whom ids belong to: a session, seen from outside. devices: one at least, the first for what asks for no NIC."""

    tenant: int
    address: IPv4Address
    realm: Realm
    devices: tuple[CmDevice, ...] = (CmDevice(),)

    def device_of(self, gid: bytes) -> CmDevice | None:
        """The one whose NIC has this GID."""
        return next((device for device in self.devices if gid in device.nic_gids), None)

    @property
    def gid(self) -> bytes:
        return gid_of(self.address)

    @property
    def own_scope(self) -> Scope:
        return Scope("tenant", self.tenant)

    @property
    def realm_scope(self) -> Scope:
        return Scope("realm", self.realm.key)

    def scopes(self, ip: IP) -> Iterator[Scope]:
        """Whose ports a socket bound to this address takes; none where the address isn't local."""
        if ip.is_unspecified or ip == self.address:
            yield self.own_scope
        if ip.is_unspecified or self.realm.has(ip):
            yield self.realm_scope


class Locator(Protocol):
    """The directory's answers to the communication manager."""

    def locate(self, ip: IP, party: Party | None) -> Place | None:
        """Who is at an address as this party sees it; None as party: as other nodes see it."""


class ClusterLocator:
    """The directory's tenants, here and on other nodes; then this node's network namespaces, and other nodes' own.

    node_at: the other node whose own address this is, or None. outside: the name of the node that hosts are which
    nobody knows, by the NIC that leads to this address; None where none does. has_nic: whether another node's NIC is at
    this address, which is outside then, whatever else is there.
    """

    def __init__(
        self,
        directory: Directory,
        host: Realm,
        node_at: Callable[[IPv4Address], str | None] | None = None,
        outside: Callable[[IP], str | None] = lambda _address: None,
        has_nic: Callable[[IPv4Address], bool] = lambda _address: False,
    ) -> None:
        self._outside = outside
        self._has_nic = has_nic
        self._directory = directory
        self._host = host
        self._node_at = node_at

    def locate(self, ip: IP, party: Party | None) -> Place | None:
        if ip.is_link_local and isinstance(ip, IPv6Address) and party is not None and party.realm.key != self._host.key:
            # Interfaces of another namespace have nothing to do with those of the same index here.
            return None
        tenant = self._directory.tenant_of(gid_of(ip))
        if tenant is not None:
            return Place(None, Scope("tenant", tenant))
        if party is not None and party.realm.has(ip):
            return Place(None, party.realm_scope)
        if not ip.is_loopback and self._host.has(ip):
            return Place(None, Scope("realm", self._host.key))
        if not isinstance(ip, IPv4Address):
            # No node's and no tenant's: a host behind a NIC, or nobody.
            node = None if ip.is_loopback or ip.is_multicast else self._outside(ip)
            return None if node is None else Place(node)
        elsewhere = self._directory.find(ip)
        if elsewhere is not None:
            return Place(elsewhere.node)
        node = self._node_at(ip) if self._node_at is not None else None
        if (node is None or self._has_nic(ip)) and not ip.is_loopback and not ip.is_multicast:
            node = self._outside(ip) or node
        return None if node is None else Place(node)
