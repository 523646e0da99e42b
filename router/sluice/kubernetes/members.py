# SPDX-License-Identifier: Apache-2.0
"""The routers of the cluster, as their nodes' ResourceSlices tell: where each is reached, and its public key.

In place of a cluster file (cluster/file.py). Who may write a node's slice is that node's
router: deploy/kubernetes/validation.yaml holds the others off.
"""

import logging
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from sluice.cluster.directory import Directory
from sluice.cluster.file import DEFAULT_PORT, Cluster, Node
from sluice.cluster.keys import KeyPair, check_public_key, generate, load
from sluice.cluster.links import Links
from sluice.kubernetes.api import Object

log = logging.getLogger(__name__)

ADDRESS, PORT, KEY = "routerAddress", "routerPort", "routerKey"
"""Attributes of each device in the slice."""


def attributes(node: Node) -> Object:
    return {
        ADDRESS: {"string": str(node.address)},
        PORT: {"int": node.port},
        KEY: {"string": node.public_key.decode()},
    }


def read_member(found: Object) -> Node | None:
    """The router of a ResourceSlice; None where it tells of none."""
    name = found["spec"].get("nodeName", "")
    for device in found["spec"].get("devices") or []:
        told: dict[str, dict[str, Any]] = device.get("attributes") or {}
        if KEY not in told:
            continue
        try:
            key = check_public_key(str(told[KEY]["string"]))
            port = int(told.get(PORT, {}).get("int", DEFAULT_PORT))
            return Node(name, IPv4Address(told[ADDRESS]["string"]), key, port)
        except (ValueError, KeyError) as error:
            log.warning("the slice of node %s: its router's address or key is wrong: %s", name, error)
    return None


class Members:
    """What cluster.links asks of a cluster file."""

    path = "the ResourceSlices"

    def __init__(self, own: Node) -> None:
        self.own = own
        self.cluster = Cluster({own.name: own})
        self._changed = False

    def changed(self) -> bool:
        """Whether cluster is another one than at the last call."""
        changed, self._changed = self._changed, False
        return changed

    def on_slice(self, old: Node | None, new: Node | None) -> None:
        nodes = dict(self.cluster.nodes)
        if old is not None:
            nodes.pop(old.name, None)
        if new is not None:
            nodes[new.name] = new
        # Whatever the API server says, this router knows its own key.
        nodes[self.own.name] = self.own
        self.cluster = Cluster(nodes)
        self._changed = True


def own_key(path: Path) -> KeyPair:
    """Made at the first start. KeyFileError."""
    return load(path) if path.exists() else generate(path)


class KubernetesMembership:
    """control.router's membership, of the cluster that the API server knows."""

    def __init__(self, node: str, address: IPv4Address, port: int, key_file: Path) -> None:
        key = own_key(key_file)
        self._key = key
        self.members = Members(Node(node, address, key.public, port))

    def join(self) -> tuple[Directory, Links]:
        """Inside a running event loop. OSError: the port can't be had."""
        directory = Directory(self.members.own.name)
        links = Links(self.members, self._key, directory)
        directory.add_source(links)
        return directory, links
