# SPDX-License-Identifier: Apache-2.0
"""The data port: where other routers bring the connections that carry tenants' bytes.

Whoever comes says a ticket first: 32 random bytes that this router gave out over a link, good
once and for seconds. Everybody else gets nothing but a close.

There are few at a time who haven't said one. Where one more comes, the address that has most of them loses its
oldest: whoever has a ticket says it at once, and is not kept out by who has none and says nothing.
"""

import asyncio
import errno
import logging
import secrets
import socket
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial

from sluice.cluster.file import Node
from sluice.cluster.links import PeerUnreachable

log = logging.getLogger(__name__)

TICKET = 32
"""Bytes."""
TICKET_SECONDS = 10.0
MAX_TICKETS = 8192
MAX_STRANGERS = 256
"""Connections at a time that haven't said a ticket yet."""
ACCEPTS = 64
"""Connections taken at a time, before others of this router have their turn."""
SAY_SECONDS = 3.0
CONNECT_SECONDS = 3.0
SLOW_SECONDS = 0.5
"""Who wanted a connection may give up before: after this long that counts as no answer."""

Attach = Callable[[socket.socket], None]
"""Takes a connection over, or leaves it: then it is closed. May raise OSError, which does the same."""


async def connect(node: Node, ticket: bytes) -> socket.socket:
    """A connection to a node's data port that has said its ticket. OSError."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_SECONDS):
            await loop.sock_connect(connection, (str(node.address), node.data_port))
            await loop.sock_sendall(connection, ticket)
        return connection
    except TimeoutError:
        connection.close()
        raise PeerUnreachable(f"{node.address}:{node.data_port} did not answer") from None
    except BaseException:
        connection.close()
        raise


class DataPort:
    """Inside a running event loop. OSError: the port can't be had."""

    def __init__(self, me: Node) -> None:
        self._tickets: dict[bytes, tuple[Hashable, Attach, float]] = {}
        self._latest: dict[Hashable, bytes] = {}
        self._strangers: dict[str, dict[asyncio.Task[None], None]] = {}
        """By address, the oldest first."""
        self.refused = 0
        self.unreachable: dict[str, str] = {}
        """Nodes whose data port could not be reached when it was last tried, and why."""
        self._listener = self._listen(me)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _listen(self, me: Node) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((str(me.address), me.data_port))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, f"{me.address}:{me.data_port}: {error.strerror}") from None
        listener.setblocking(False)
        return listener

    async def connect(self, node: Node, ticket: bytes) -> socket.socket:
        """As connect(); what becomes of it is remembered, and logged where it is news. OSError."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            connection = await connect(node, ticket)
        except OSError as error:
            self._unreached(node, str(error))
            raise
        except asyncio.CancelledError:
            if loop.time() - start >= SLOW_SECONDS:
                self._unreached(node, f"{node.address}:{node.data_port} did not answer")
            raise
        if self.unreachable.pop(node.name, None) is not None:
            log.warning("node %s: its data port can be reached now", node.name)
        return connection

    def _unreached(self, node: Node, why: str) -> None:
        if node.name not in self.unreachable:
            log.warning(
                "node %s: its data port can't be reached, so tenants can't talk: %s; is TCP port %d of %s open?",
                *(node.name, why, node.data_port, node.address),
            )
        self.unreachable[node.name] = why

    def expect(self, what: Hashable, attach: Attach) -> bytes:
        """A ticket for somebody whose connection attach is to get. An earlier one for the same is void.

        OSError EAGAIN: too many are out.
        """
        now = asyncio.get_running_loop().time()
        self._void(self._latest.get(what, b""))
        # In the order in which they were given: the oldest are first.
        for ticket in [ticket for ticket, (_, _, until) in self._tickets.items() if until < now]:
            self._void(ticket)
        if len(self._tickets) >= MAX_TICKETS:
            raise OSError(errno.EAGAIN, "too many connections are being made")
        ticket = secrets.token_bytes(TICKET)
        self._tickets[ticket] = (what, attach, now + TICKET_SECONDS)
        self._latest[what] = ticket
        return ticket

    def _void(self, ticket: bytes) -> Attach | None:
        """What it is for, where it is good."""
        what, attach, until = self._tickets.pop(ticket, (None, None, 0.0))
        if attach is None:
            return None
        del self._latest[what]
        return attach if until >= asyncio.get_running_loop().time() else None

    def strangers(self) -> int:
        """How many haven't said a ticket yet."""
        return sum(map(len, self._strangers.values()))

    def _accept(self) -> None:
        with suppress(BlockingIOError, OSError):
            for _ in range(ACCEPTS):
                connection, (address, _) = self._listener.accept()
                connection.setblocking(False)
                if self.strangers() >= MAX_STRANGERS:
                    self._make_room()
                task = asyncio.get_running_loop().create_task(self._hear(connection, address))
                self._strangers.setdefault(address, {})[task] = None
                task.add_done_callback(partial(self._done, address, connection))

    def _make_room(self) -> None:
        address = max(self._strangers, key=lambda address: len(self._strangers[address]))
        task = next(iter(self._strangers[address]))
        self._forget(address, task)
        if task.cancel():
            self._refuse(address)

    def _forget(self, address: str, task: "asyncio.Task[None]") -> None:
        tasks = self._strangers.get(address, {})
        tasks.pop(task, None)
        if not tasks:
            self._strangers.pop(address, None)

    def _refuse(self, address: str) -> None:
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:
            log.warning("refused a connection from %s to the data port (%d so far)", address, self.refused)

    def _done(self, address: str, connection: socket.socket, task: "asyncio.Task[None]") -> None:
        self._forget(address, task)
        # Closed here, as a task that is cancelled before it has begun never comes to it.
        connection.close()
        if not task.cancelled() and task.exception() is not None:
            log.error("a connection to the data port failed", exc_info=task.exception())

    async def _hear(self, connection: socket.socket, address: str) -> None:
        """A ticket, or a close."""
        loop = asyncio.get_running_loop()
        said = b""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(SAY_SECONDS):
                while len(said) < TICKET:
                    data = await loop.sock_recv(connection, TICKET - len(said))
                    if not data:
                        break
                    said += data
        attach = self._void(said)
        if attach is None:
            self._refuse(address)
            return
        with suppress(OSError):
            attach(connection)

    def close(self) -> None:
        for task in [task for tasks in self._strangers.values() for task in tasks]:
            task.cancel()
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
