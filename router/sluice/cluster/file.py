# SPDX-License-Identifier: Apache-2.0
"""The cluster file of a static cluster, the same on all nodes:

nodes:
  alpha:
    address: 192.0.2.1            # where the other routers reach it
    public-key: "…"               # sluice keys generate
    port: 7471                    # links between routers; port + 1 carries the tenants' data
    tenant-addresses: 10.1.0.0/24 # for tenants that bring none (default: 100.64.0.0/10 for all nodes together)
  beta: …
tenants:                          # those whose address is fixed; others tell theirs when they start
  training-0: {node: alpha, address: 10.1.0.5}

The file is watched: a change takes effect within seconds, a mistake in it is
logged and the earlier contents stay.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from pathlib import Path
from typing import Any

import yaml

from sluice.cluster.directory import Place
from sluice.cluster.keys import check_public_key
from sluice.document import DocumentError, compose, entries, mistake
from sluice.policy.policy import PolicyError, check_name

log = logging.getLogger(__name__)

DEFAULT_PORT = 7471


class ClusterFileError(ValueError):
    """What is wrong, as file:line: field: text."""


@dataclass(frozen=True)
class Node:
    """How to reach a node's router. data_port carries the tenants' bytes."""

    name: str
    address: IPv4Address
    public_key: bytes
    port: int = DEFAULT_PORT
    tenant_addresses: IPv4Network | None = None

    @property
    def data_port(self) -> int:
        return self.port + 1


@dataclass(frozen=True)
class Cluster:
    """What a cluster file says; a Source of the directory."""

    nodes: dict[str, Node] = field(default_factory=dict)
    places: dict[IPv4Address, Place] = field(default_factory=dict)

    def find(self, address: IPv4Address) -> Place | None:
        return self.places.get(address)

    def address_of(self, node: str, tenant: str) -> IPv4Address | None:
        wanted = Place(node, tenant)
        return next((address for address, place in self.places.items() if place == wanted), None)


class _Reader:
    """Walks a YAML document; every complaint has its file, line and field."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, node: yaml.Node, where: str, text: str) -> DocumentError:
        return mistake(self.path, node, where, text)

    def entries(self, node: yaml.Node, where: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        return entries(self.path, node, where)

    def fields(
        self, node: yaml.Node, where: str, parsers: dict[str, Callable[[str], Any]], required: set[str]
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, (key, value) in self.entries(node, where).items():
            if name not in parsers:
                raise self.fail(key, f"{where}.{name}", f"no such field; there are {', '.join(parsers)}")
            if not isinstance(value, yaml.ScalarNode):
                raise self.fail(value, f"{where}.{name}", "one value belongs here")
            try:
                values[name] = parsers[name](str(value.value))
            except ValueError as error:
                raise self.fail(value, f"{where}.{name}", str(error)) from None
        for name in sorted(required - values.keys()):
            raise self.fail(node, where, f"{name} is missing")
        return values


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise ValueError(f"{text!r} is not an IPv4 address: write one as 192.0.2.1") from None


def _network(text: str) -> IPv4Network:
    try:
        network = IPv4Network(text)
    except (AddressValueError, NetmaskValueError, ValueError):
        raise ValueError(f"{text!r} is not an IPv4 network: write one as 10.1.0.0/24, host bits 0") from None
    if network.prefixlen > 30:
        raise ValueError(f"{text!r} has no room for tenants: a network of /30 or larger belongs here")
    return network


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65535:
        raise ValueError(f"{text!r} is not a port: write a number from 1 to 65534 (the next one carries data)")
    return int(text)


def _name(text: str) -> str:
    try:
        return check_name(text)
    except PolicyError as error:
        raise ValueError(str(error).replace("tenant name", "name")) from None


_NODE: dict[str, Callable[[str], Any]] = {
    "address": _address,
    "public-key": check_public_key,
    "port": _port,
    "tenant-addresses": _network,
}
_TENANT: dict[str, Callable[[str], Any]] = {"node": _name, "address": _address}


def _nodes(reader: _Reader, root: yaml.Node) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    keys: dict[bytes, str] = {}
    for name, (key, value) in reader.entries(root, "nodes").items():
        where = f"nodes.{name}"
        try:
            _name(name)
        except ValueError as error:
            raise reader.fail(key, where, str(error)) from None
        fields = reader.fields(value, where, _NODE, {"address", "public-key"})
        node = Node(
            name,
            fields["address"],
            fields["public-key"],
            fields.get("port", DEFAULT_PORT),
            fields.get("tenant-addresses"),
        )
        if node.public_key in keys:
            raise reader.fail(key, f"{where}.public-key", f"is that of {keys[node.public_key]!r}: each has its own")
        for other in nodes.values():
            # The second port of each carries data.
            if node.address == other.address and abs(node.port - other.port) <= 1:
                raise reader.fail(
                    key,
                    f"{where}.{'port' if 'port' in fields else 'address'}",
                    f"{node.address} with ports {node.port} and {node.data_port} meet those of {other.name!r}",
                )
            pools = (node.tenant_addresses, other.tenant_addresses)
            if pools[0] is not None and pools[1] is not None and pools[0].overlaps(pools[1]):
                raise reader.fail(key, f"{where}.tenant-addresses", f"overlaps with that of {other.name!r}")
        keys[node.public_key] = name
        nodes[name] = node
    return nodes


def _places(reader: _Reader, root: yaml.Node, nodes: dict[str, Node]) -> dict[IPv4Address, Place]:
    places: dict[IPv4Address, Place] = {}
    for name, (key, value) in reader.entries(root, "tenants").items():
        where = f"tenants.{name}"
        try:
            _name(name)
        except ValueError as error:
            raise reader.fail(key, where, str(error)) from None
        fields = reader.fields(value, where, _TENANT, {"node", "address"})
        if fields["node"] not in nodes:
            raise reader.fail(value, f"{where}.node", f"there is no node {fields['node']!r}")
        if fields["address"] in places:
            other = places[fields["address"]].tenant
            raise reader.fail(value, f"{where}.address", f"{fields['address']} is that of tenant {other!r}")
        places[fields["address"]] = Place(fields["node"], name)
    return places


def load_cluster(path: Path) -> Cluster:
    """Reads a cluster file. ClusterFileError for the first mistake."""
    try:
        return _read(path)
    except DocumentError as error:
        raise ClusterFileError(str(error)) from None


def _read(path: Path) -> Cluster:
    root = compose(path)
    if root is None:
        raise DocumentError(f"{path}:1: the file is empty; 'nodes:' belongs here")
    reader = _Reader(path)
    top = reader.entries(root, "")
    for name, (key, _) in top.items():
        if name not in ("nodes", "tenants"):
            raise reader.fail(key, name, "no such field; there are nodes, tenants")
    if "nodes" not in top:
        raise reader.fail(root, "nodes", "is missing")
    nodes = _nodes(reader, top["nodes"][1])
    places = _places(reader, top["tenants"][1], nodes) if "tenants" in top else {}
    return Cluster(nodes, places)


class WatchedFile:
    """A cluster file whose changes are noticed when it is looked at again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = self._look()
        self.cluster = load_cluster(path)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def changed(self) -> bool:
        """Reads the file again where it is another one. True: cluster is new. Mistakes are logged, once."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.cluster = load_cluster(self.path)
        except ClusterFileError as error:
            log.error("the cluster file is left as it was: %s", error)
            return False
        return True

    def find(self, address: IPv4Address) -> Place | None:
        return self.cluster.find(address)

    def address_of(self, node: str, tenant: str) -> IPv4Address | None:
        return self.cluster.address_of(node, tenant)
