# SPDX-License-Identifier: Apache-2.0
"""A session: one process of a tenant. It lives as long as the process and its descriptor socket do."""

import asyncio
import errno
import logging
import os
import secrets
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from sluice.control.closer import Closer
from sluice.control.look import Later, Look
from sluice.control.mapping import open_mapping, open_process
from sluice.engine import Engine, ffi, lib

log = logging.getLogger(__name__)

T = TypeVar("T")
Question = tuple[Any, ...]
"""What is looked for, and where."""

USERFAULTFD = "/dev/userfaultfd"
SO_PEERPIDFD = 77
"""Linux 6.5, asm-generic/socket.h: a descriptor of the process that connected, which no later one can be taken for."""
MAX_FILES = 253
"""That one packet may carry (SCM_MAX_FD in unix(7)): what is cut off is closed by whoever receives."""
MAX_PENDING = 4
"""Descriptors that came before the requests that speak of them."""


def _open_userfaultfd() -> int | None:
    """The device with which an unprivileged process gets a userfaultfd (Linux 6.1), where it can be had."""
    try:
        return os.open(USERFAULTFD, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None


class Session:
    """on_end is called once, when the session is over for whatever reason."""

    def __init__(
        self,
        engine: Engine,
        tenant: int,
        connection: socket.socket,
        on_end: Callable[["Session", str], None],
        closer: Closer,
    ) -> None:
        """Takes the connection over. OSError: the engine has no room, or the process is gone already."""
        self._engine = engine
        self._connection = connection
        self._on_end = on_end
        self._closer = closer
        self._ended = False
        self._pidfd: int | None = None
        self._is_proved = False
        self._received: dict[int, int] = {}
        self._look: tuple[Question, Look[Any]] | None = None
        """What the request that is being carried out waits for; they come one after the other."""
        self._underway: asyncio.Future[None] | None = None
        self.greeted = False
        self.token = secrets.token_bytes(lib.SLUICE_TOKEN)
        connection.setblocking(False)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid, self.uid, _ = struct.unpack("3i", credentials)
        self.number, files = engine.open_session(tenant)
        owned = [files.segment, files.arena]
        try:
            self._welcome([files.engine_page, *owned])
            self._watch()
        except OSError:
            self._forget()
            raise
        finally:
            for fd in owned:
                os.close(fd)

    def _welcome(self, files: list[int]) -> None:
        userfaultfd = _open_userfaultfd()
        welcome = ffi.new(
            "struct sluice_welcome *",
            {
                "abi_version": lib.SLUICE_ABI_VERSION,
                "session": self.number,
                "token": self.token,
                "has_userfaultfd": int(userfaultfd is not None),
            },
        )
        try:
            extra = [] if userfaultfd is None else [userfaultfd]
            socket.send_fds(self._connection, [bytes(ffi.buffer(welcome))], files + extra)
        finally:
            if userfaultfd is not None:
                os.close(userfaultfd)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._connection.fileno(), self._on_connection)
        # A child that outlives its parent may hold the socket open: the process itself counts.
        with suppress(OSError):
            if self.pid > 0:
                self._pidfd = self._open_pidfd()
                loop.add_reader(self._pidfd, self.end, "its process ended")

    def _open_pidfd(self) -> int:
        try:
            pidfd = self._connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        except OSError:
            return os.pidfd_open(self.pid)
        self._is_proved = True
        return pidfd

    def _on_connection(self) -> None:
        reason = self._receive()
        if reason:
            self.end(reason)

    def _receive(self) -> str | None:
        """Takes what came on the descriptor socket; a reason why the session must end."""
        try:
            data, files, _, _ = socket.recv_fds(self._connection, 64, MAX_FILES)
        except BlockingIOError:
            return None
        except OSError:
            data, files = b"", []
        if (
            len(data) == ffi.sizeof("struct sluice_descriptor")
            and len(files) == 1
            and len(self._received) < MAX_PENDING
            and not self._closer.is_behind
        ):
            cookie = ffi.from_buffer("struct sluice_descriptor *", data).cookie
            if cookie not in self._received:
                self._received[cookie] = files[0]
                return None
        self._closer.close(*files)
        return "it sent garbage on the descriptor socket" if data else "it closed its connection"

    def take_descriptor(self, cookie: int) -> int | None:
        """What the process has sent for the request with this cookie; the caller's to close, by close_descriptor."""
        if cookie not in self._received and not self._ended:
            self._receive()
        return self._received.pop(cookie, None)

    def close_descriptor(self, fd: int) -> None:
        """Closes what the process has sent."""
        self._closer.close(fd)

    def _find(self, question: Question, ask: Callable[[], T], unwanted: Callable[[T], None]) -> T:
        """What a thread has found. Later: the same question is to come again; ask's OSError."""
        asked, self._look = self._look, None
        if asked is None or asked[0] != question:
            self._abandon(asked)
            asked = question, Look(ask, unwanted)
        answer: T
        try:
            answer = asked[1].answer()
        except Later:
            self._look = asked
            raise
        return answer

    def _abandon(self, asked: tuple[Question, Look[Any]] | None) -> None:
        if asked is not None:
            asked[1].abandon()

    def open_mapping(self, start: int, end: int, writable: bool) -> int:
        """mapping.open_mapping of this session's process. Later."""
        pidfd = self._proved_pidfd()
        return self._find(
            ("mapping", start, end, writable),
            lambda: open_mapping(self.pid, pidfd, self.uid, start, end, writable),
            self.close_descriptor,
        )

    def open_process(self) -> int:
        """mapping.open_process of this session's process. Later."""
        pidfd = self._proved_pidfd()
        return self._find(("process",), lambda: open_process(self.pid, pidfd, self.uid), self.close_descriptor)

    def later(self) -> Later:
        """For a request that the engine has begun: until go_on()."""
        self._underway = asyncio.get_running_loop().create_future()
        return Later(self._underway)

    def go_on(self) -> None:
        """What the engine has begun is done, or never will be."""
        if self._underway is not None and not self._underway.done():
            self._underway.set_result(None)

    def _proved_pidfd(self) -> int:
        if self._pidfd is None or not self._is_proved:
            raise OSError(errno.EOPNOTSUPP, "who has connected is not known for certain (needs Linux 6.5)")
        return self._pidfd

    @property
    def connection(self) -> socket.socket:
        """The descriptor socket."""
        return self._connection

    def send_descriptor(self, cookie: int, fd: int) -> None:
        """Passes one descriptor. OSError where the process doesn't take what it is sent."""
        packet = ffi.new("struct sluice_descriptor *", {"cookie": cookie})
        socket.send_fds(self._connection, [bytes(ffi.buffer(packet))], [fd])

    def inode_of(self, fd: int) -> tuple[int, int] | None:
        """Device and inode behind a descriptor of the process; None where the router may not look.

        OSError EBADF: it has no such descriptor. Later.
        """
        return self._find(("inode", fd), lambda: self._inode_of(fd), lambda _: None)

    def _inode_of(self, fd: int) -> tuple[int, int] | None:
        descriptors = Path(f"/proc/{self.pid}/fd")
        try:
            found = (descriptors / str(fd)).stat()
        except FileNotFoundError:
            if self.pid > 0 and descriptors.is_dir():
                raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
            return None
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def end(self, reason: str) -> None:
        """Frees everything the process had; it sees the end of its descriptor socket."""
        if self._ended:
            return
        self._forget()
        self._on_end(self, reason)

    def _forget(self) -> None:
        self._ended = True
        self._abandon(self._look)
        self.go_on()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._connection.fileno())
        # With whatever lies in it unread.
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._closer.close(self._connection.detach(), *self._received.values())
        self._received.clear()
        if self._pidfd is not None:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._engine.close_session(self.number)
