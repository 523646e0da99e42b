# SPDX-License-Identifier: Apache-2.0
"""The data port: where other routers bring the connections that carry tenants' bytes.

Whoever comes says a ticket first: 32 random bytes that this router gave out over a link, good
once and for seconds. Everybody else gets nothing but a close.
"""

import asyncio
import errno
import logging
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

from sluice.cluster.file import Node
from sluice.cluster.links import PeerUnreachable

log = logging.getLogger(__name__)

TICKET = 32
"""Bytes."""
TICKET_SECONDS = 10.0
MAX_TICKETS = 8192
MAX_STRANGERS = 256
"""Connections at a time that haven't said a ticket yet."""
SAY_SECONDS = 3.0
CONNECT_SECONDS = 3.0

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
        self._tickets: dict[bytes, tuple[Attach, float]] = {}
        self._strangers = 0
        self.refused = 0
        self._tasks: set[asyncio.Task[None]] = set()
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

    def expect(self, attach: Attach) -> bytes:
        """A ticket for somebody whose connection attach is to get. OSError EAGAIN: too many are out."""
        now = asyncio.get_running_loop().time()
        # In the order in which they were given: the oldest are first.
        for ticket in [ticket for ticket, (_, until) in self._tickets.items() if until < now]:
            del self._tickets[ticket]
        if len(self._tickets) >= MAX_TICKETS:
            raise OSError(errno.EAGAIN, "too many connections are being made")
        ticket = secrets.token_bytes(TICKET)
        self._tickets[ticket] = (attach, now + TICKET_SECONDS)
        return ticket

    def _accept(self) -> None:
        with suppress(BlockingIOError, OSError):
            while True:
                connection, (address, _) = self._listener.accept()
                if self._strangers >= MAX_STRANGERS:
                    connection.close()
                    continue
                connection.setblocking(False)
                self._strangers += 1
                task = asyncio.get_running_loop().create_task(self._hear(connection, address))
                self._tasks.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a connection to the data port failed", exc_info=task.exception())

    async def _hear(self, connection: socket.socket, address: str) -> None:
        """A ticket, or a close."""
        loop = asyncio.get_running_loop()
        said = b""
        try:
            with connection:
                with suppress(TimeoutError, OSError):
                    async with asyncio.timeout(SAY_SECONDS):
                        while len(said) < TICKET:
                            data = await loop.sock_recv(connection, TICKET - len(said))
                            if not data:
                                break
                            said += data
                attach, until = self._tickets.pop(said, (None, 0.0))
                if attach is None or until < loop.time():
                    self.refused += 1
                    if self.refused & (self.refused - 1) == 0:
                        log.warning("refused a connection from %s to the data port (%d so far)", address, self.refused)
                    return
                with suppress(OSError):
                    attach(connection)
        finally:
            self._strangers -= 1

    def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
