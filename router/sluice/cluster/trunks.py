# SPDX-License-Identifier: Apache-2.0
"""Trunks: the connections that carry datagrams between two nodes, one each way (csrc/transport/trunk.h).

One is made when a tenant first addresses somebody on that node, and made again whenever it breaks.
"""

import asyncio
import errno
import logging
import socket

from sluice.cluster.data_port import DataPort
from sluice.cluster.links import Links, PeerUnreachable
from sluice.cluster.messages import DialTrunk, Refused, Ticket
from sluice.engine import Engine, lib

log = logging.getLogger(__name__)

FIRST_DELAY, LAST_DELAY = 0.02, 1.0
"""Seconds between two tries."""


class Trunks:
    def __init__(self, links: Links, port: DataPort, engine: Engine) -> None:
        self._links = links
        self._port = port
        self._engine = engine
        self._to_all = False
        self._numbers: dict[str, int] = {}
        self._connected: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._alive: dict[str, asyncio.Event] = {}
        links.handle(DialTrunk, self._on_dial)
        links.on_alive(self._on_alive)

    def _number(self, node: str) -> int:
        """OSError."""
        if node not in self._numbers:
            self._numbers[node] = self._engine.open_trunk()
        return self._numbers[node]

    def node_of(self, trunk: int) -> str | None:
        """The node to which a trunk leads."""
        return next((node for node, number in self._numbers.items() if number == trunk), None)

    def to(self, node: str) -> int | None:
        """The trunk to a node; its connection is being made where there is none. None: there are too many."""
        try:
            number = self._number(node)
        except OSError as error:
            log.error("no trunk to node %s: %s", node, error)
            return None
        self._try(node)
        return number

    def to_all(self) -> None:
        """To each node there is, from now on."""
        self._to_all = True
        for node in self._links.peers:
            self.to(node)

    def connected(self) -> int:
        return len(self._connected)

    def disconnected(self, number: int) -> None:
        """The engine has lost the connection on which it sends."""
        for node in [node for node, own in self._numbers.items() if own == number]:
            self._connected.discard(node)
            self._try(node)

    def _try(self, node: str) -> None:
        if node not in self._connected and node not in self._tasks:
            self._tasks[node] = asyncio.get_running_loop().create_task(self._keep_trying(node))

    def _on_alive(self, node: str) -> None:
        if node in self._alive:
            self._alive[node].set()
        elif self._to_all:
            self.to(node)

    async def _keep_trying(self, node: str) -> None:
        delay = FIRST_DELAY
        alive = self._alive[node] = asyncio.Event()
        try:
            while node not in self._connected:
                try:
                    await self._dial(node)
                    return
                except OSError as error:
                    log.info("no connection for datagrams to node %s: %s", node, error)
                if node not in self._links.peers:
                    return
                alive.clear()
                try:
                    await asyncio.wait_for(alive.wait(), delay)
                except TimeoutError:
                    delay = min(2 * delay, LAST_DELAY)
        finally:
            del self._tasks[node], self._alive[node]

    async def _dial(self, node: str) -> None:
        answer = await self._links.request(node, DialTrunk(lib.SLUICE_TRUNK_VERSION))
        if not isinstance(answer, Ticket):
            raise PeerUnreachable(f"node {node!r} answered with {type(answer).__name__}")
        with await self._port.connect(self._links.node(node), answer.ticket) as connection:
            self._engine.connect_trunk(self._numbers[node], connection.fileno())
            connection.detach()
        self._connected.add(node)

    def _on_dial(self, node: str, dial: DialTrunk) -> Ticket | Refused:
        if dial.version != lib.SLUICE_TRUNK_VERSION:
            return Refused(
                errno.EPROTO, f"datagrams of version {dial.version}; this router speaks {lib.SLUICE_TRUNK_VERSION}"
            )

        def attach(connection: socket.socket) -> None:
            self._engine.accept_trunk(self._number(node), connection.fileno())
            connection.detach()

        return Ticket(self._port.expect(node, attach))

    def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
