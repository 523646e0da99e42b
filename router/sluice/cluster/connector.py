# SPDX-License-Identifier: Apache-2.0
"""Connections between nodes: each QP whose peer is elsewhere gets a TCP connection of its own.

Who wants one asks the peer's router over the link (Dial). That one looks whether
the QP that is named names this one in turn, and answers with a ticket for its data port
(data_port.py). Both sides try whenever a QP has no connection; where they try at once, the
node whose name sorts first goes on.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from sluice.cluster.data_port import DataPort
from sluice.cluster.directory import Directory
from sluice.cluster.links import Links, PeerRefused, PeerUnreachable
from sluice.cluster.messages import Dial, Refused, Ticket
from sluice.cluster.trunks import Trunks
from sluice.engine import Engine, ffi, lib

log = logging.getLogger(__name__)

FIRST_DELAY, LAST_DELAY = 0.02, 0.5
"""Seconds between two tries."""
DIALS = 64
"""Tries at a time."""
RTR, SQE = 2, 5


@dataclass(eq=False)
class Wanted:
    """A QP of this node whose peer is elsewhere."""

    session: int
    handle: int
    qp: int
    source: IPv4Address
    destination: IPv4Address
    peer_qp: int
    dialing: bool = False
    connected: bool = False
    task: "asyncio.Task[None] | None" = None
    hurry: asyncio.Event = field(default_factory=asyncio.Event)


class Connector:
    """Inside a running event loop. OSError: the data port can't be had."""

    def __init__(self, links: Links, directory: Directory, engine: Engine) -> None:
        self._links = links
        self._directory = directory
        self._engine = engine
        self._wanted: dict[tuple[int, int], Wanted] = {}
        self._by_qp: dict[int, Wanted] = {}
        self._dials = asyncio.Semaphore(DIALS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = DataPort(links.me)
        self.trunks = Trunks(links, self._port, engine)
        links.handle(Dial, self._on_dial)
        links.on_alive(self._on_alive)

    # ---- what QPs want -------------------------------------------------------

    def want(
        self, session: int, handle: int, qp: int, source: IPv4Address, destination: IPv4Address, peer_qp: int
    ) -> None:
        self.forget(session, handle)
        other = self._by_qp.get(qp)
        if other is not None:
            # Another process that shares the QP brought it here before.
            self._drop(other)
        wanted = Wanted(session, handle, qp, source, destination, peer_qp)
        self._wanted[session, handle] = wanted
        self._by_qp[qp] = wanted
        self._try(wanted)

    def forget(self, session: int, handle: int) -> None:
        wanted = self._wanted.pop((session, handle), None)
        if wanted is None:
            return
        holder = self._engine.holder_of_qp(wanted.qp)
        if holder is not None and holder != (session, handle):
            # An XRC_RECV QP whose maker is gone: it stays with who shares it (xrc.h).
            wanted.session, wanted.handle = holder
            self._wanted[holder] = wanted
            return
        self._drop(wanted)

    def _drop(self, wanted: Wanted) -> None:
        self._wanted.pop((wanted.session, wanted.handle), None)
        if self._by_qp.get(wanted.qp) is wanted:
            del self._by_qp[wanted.qp]
        if wanted.task is not None:
            wanted.task.cancel()

    def forget_session(self, session: int) -> None:
        for key in [key for key in self._wanted if key[0] == session]:
            self.forget(*key)

    def disconnected(self, session: int, handle: int) -> None:
        """The engine has lost the QP's connection."""
        wanted = self._wanted.get((session, handle))
        if wanted is not None:
            wanted.connected = False
            self._try(wanted)

    def trunk_to(self, destination: IPv4Address) -> int | None:
        """The trunk of the node where an address is; None where that isn't known."""
        place = self._directory.find(destination)
        if place is None or place.node == self._links.me.name:
            return None
        return self.trunks.to(place.node)

    def is_from(self, source: IPv4Address, trunk: int) -> bool:
        """Whether an address is of the node to which a trunk leads: a router speaks for its own tenants only."""
        place = self._directory.find(source)
        return place is not None and place.node == self.trunks.node_of(trunk)

    def trunks_to_all(self) -> None:
        """Datagrams go to groups, and so to all nodes."""
        self.trunks.to_all()

    def status(self) -> dict[str, Any]:
        return {
            "wanted": len(self._wanted),
            "connected": sum(wanted.connected for wanted in self._wanted.values()),
            "refused": self._port.refused,
            "trunks": self.trunks.connected(),
            "unreachable": {name: why for name, why in self._port.unreachable.items() if name in self._links.peers},
        }

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("connecting failed", exc_info=task.exception())

    def _alive(self, wanted: Wanted) -> bool:
        """Whether the QP is still one that may have a connection; forgets it where it isn't."""
        if self._wanted.get((wanted.session, wanted.handle)) is not wanted:
            return False
        attr = ffi.new("struct sluice_qp_attr *")
        with suppress(OSError):
            self._engine.query_qp(wanted.session, wanted.handle, attr)
            if RTR <= attr.qp_state <= SQE:
                return True
        self.forget(wanted.session, wanted.handle)
        return False

    def _attach(self, wanted: Wanted, connection: socket.socket) -> None:
        """Gives a connection to the engine. OSError."""
        self._engine.connect_qp(wanted.session, wanted.handle, connection.fileno())
        connection.detach()
        wanted.connected = True

    # ---- we connect ----------------------------------------------------------

    def _try(self, wanted: Wanted) -> None:
        if wanted.task is None:
            wanted.task = self._start(self._keep_trying(wanted))
        else:
            wanted.hurry.set()

    def _on_alive(self, node: str) -> None:
        for wanted in self._wanted.values():
            if not wanted.connected:
                wanted.hurry.set()

    async def _keep_trying(self, wanted: Wanted) -> None:
        delay = FIRST_DELAY
        try:
            while not wanted.connected and self._alive(wanted):
                try:
                    async with self._dials:
                        await self._dial(wanted)
                except PeerRefused as error:
                    log.debug("QP %d: %s", wanted.qp, error)
                except OSError as error:
                    log.info("QP %d has no connection to %s: %s", wanted.qp, wanted.destination, error)
                if wanted.connected:
                    return
                wanted.hurry.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(wanted.hurry.wait(), delay)
                delay = min(2 * delay, LAST_DELAY)
        finally:
            wanted.task = None

    async def _dial(self, wanted: Wanted) -> None:
        place = self._directory.find(wanted.destination)
        if place is None or place.node == self._links.me.name:
            raise PeerUnreachable(f"no node is known to have the address {wanted.destination}")
        node = self._links.node(place.node)
        wanted.dialing = True
        try:
            ends = str(wanted.source), wanted.qp, str(wanted.destination), wanted.peer_qp
            request = Dial(*ends, lib.SLUICE_TCP_VERSION)
            answer = await self._links.request(place.node, request)
            if not isinstance(answer, Ticket) or wanted.connected:
                return
            with await self._port.connect(node, answer.ticket) as connection:
                if self._alive(wanted) and not wanted.connected:
                    self._attach(wanted, connection)
        finally:
            wanted.dialing = False

    # ---- others connect ------------------------------------------------------

    def _on_dial(self, node: str, dial: Dial) -> Ticket | Refused:
        if dial.version != lib.SLUICE_TCP_VERSION:
            return Refused(
                errno.EPROTO, f"connections of version {dial.version}; this router speaks {lib.SLUICE_TCP_VERSION}"
            )
        wanted = self._by_qp.get(dial.destination_qp)
        if (
            wanted is None
            or str(wanted.source) != dial.destination
            or str(wanted.destination) != dial.source
            or wanted.peer_qp != dial.source_qp
            or not self._alive(wanted)
        ):
            return Refused(errno.EAGAIN, f"no QP {dial.destination_qp} of {dial.destination} waits for it")
        place = self._directory.find(wanted.destination)
        if place is None or place.node != node:
            return Refused(errno.EACCES, f"{dial.source} is not known to be of node {node}")
        if wanted.dialing and self._links.me.name < node:
            return Refused(errno.EALREADY, "this side is connecting")

        def attach(connection: socket.socket) -> None:
            if self._alive(wanted):
                self._attach(wanted, connection)

        return Ticket(self._port.expect(wanted, attach))

    def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        self.trunks.close()
        self._port.close()
