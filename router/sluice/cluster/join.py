# SPDX-License-Identifier: Apache-2.0
"""A router's part in a cluster, as its command line asks for it."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sluice.cluster.directory import POOL, Directory
from sluice.cluster.file import WatchedFile
from sluice.cluster.keys import load
from sluice.cluster.links import Links, own_node


def host_name() -> str:
    """The host's name up to its first dot: what a node is called where nobody says otherwise."""
    return socket.gethostname().partition(".")[0].lower()


class Joins(Protocol):
    """How a router gets its directory and its links."""

    def join(self) -> tuple[Directory, Links]: ...


@dataclass(frozen=True)
class Membership:
    """file: the cluster file. node: which of its nodes this is. key: the key file."""

    file: Path
    node: str
    key: Path

    def join(self) -> tuple[Directory, Links]:
        """Inside a running event loop. ClusterFileError, KeyFileError; OSError: a port can't be had."""
        file, key = WatchedFile(self.file), load(self.key)
        node = own_node(file, self.node, key)
        directory = Directory(node.name, node.tenant_addresses or POOL)
        directory.add_source(file)
        links = Links(file, key, directory)
        directory.add_source(links)
        return directory, links
