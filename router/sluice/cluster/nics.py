# SPDX-License-Identifier: Apache-2.0
"""At which addresses other nodes have RDMA NICs.

A node's own address may be its NIC's too: whoever connects there means the NIC where there is one, and its router where
there is none.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any

from sluice.cluster.links import Links, PeerRefused, PeerUnreachable
from sluice.cluster.messages import Done, ListNics, Nics

log = logging.getLogger(__name__)


class PeerNics:
    """own: this node's, by address, with the device's name. Make it inside a running event loop; close it there too."""

    def __init__(self, links: Links, own: Callable[[], Mapping[IPv4Address, str]]) -> None:
        self._links = links
        self._own = own
        self._of: dict[str, frozenset[IPv4Address]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        links.handle(ListNics, lambda _node, _body: self._answer())
        links.handle(Nics, self._learn)
        links.on_alive(self._ask)
        links.on_lost(self._forget)

    def has(self, address: IPv4Address) -> bool:
        """Whether a NIC of another node is there, as far as that node has told."""
        return any(address in addresses for addresses in self._of.values())

    def changed(self) -> None:
        """This node's are others now: peers hear of it. Who doesn't, since it has no link now, asks when it has."""
        for node in self._links.peers:
            with suppress(PeerUnreachable):
                self._links.tell(node, self._answer())

    def _answer(self) -> Nics:
        return Nics({str(address): name for address, name in self._own().items()})

    def _learn(self, node: str, told: Nics) -> Done:
        found = set()
        for text in told.addresses:
            try:
                found.add(IPv4Address(text))
            except ValueError:
                log.warning("node %s: %r is not a NIC's address", node, text)
        self._of[node] = frozenset(found)
        return Done()

    def _forget(self, node: str) -> None:
        self._of.pop(node, None)
        if node in self._links.peers:
            self._ask(node)

    def _ask(self, node: str) -> None:
        task = asyncio.get_running_loop().create_task(self._request(node))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(self, node: str) -> None:
        # A router of an earlier version knows no such question, and one that is gone is asked when it is back.
        with suppress(PeerUnreachable, PeerRefused):
            answer: Any = await self._links.request(node, ListNics())
            if isinstance(answer, Nics):
                self._learn(node, answer)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
