# SPDX-License-Identifier: Apache-2.0
"""A tenant: a directory with its sockets. Who can reach the directory is the tenant; nothing else says so."""

import asyncio
import errno
import logging
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import zmq

from sluice.cluster.directory import Directory, gid_of_address
from sluice.control.cm.manager import CommunicationManager
from sluice.control.cm.requests import TenantCm
from sluice.control.connections import Connection, Flow, Gate
from sluice.control.session import Session
from sluice.control.verbs import ProtocolError, Verbs, hello_token, refusal, same_token
from sluice.device.nic import Nic
from sluice.device.sysfs import Sysfs
from sluice.device.virtual import VirtualDevice
from sluice.engine import Engine, lib
from sluice.engine.counters import Counters
from sluice.policy.hierarchy import Hierarchy
from sluice.policy.policy import Policy

log = logging.getLogger(__name__)

MAX_SESSIONS = 1024
"""Processes of one tenant at a time."""
MAX_SOCKET_PATH = 107
"""sun_path less its terminating zero (man unix)."""
MAX_REQUEST = 4096
"""Bytes; libzmq hangs up on who sends more."""


class Tenant:
    """Its sockets, sessions, policy and address."""

    def __init__(
        self,
        name: str,
        path: Path,
        policy: Policy,
        engine: Engine,
        hierarchy: Hierarchy,
        directory: Directory,
        context: zmq.Context[zmq.Socket[bytes]],
        gate: Gate,
        cm: CommunicationManager,
        counters: Counters,
        address: IPv4Address | None = None,
        late_address: bool = False,
        keep: bool = False,
        nic: Nic | None = None,
    ) -> None:
        """address: None takes a free one. late_address: set_address tells it, sessions wait till then.

        keep: close() leaves the directory.
        """
        longest = path / "descriptors"
        if len(os.fsencode(longest)) > MAX_SOCKET_PATH:
            raise ValueError(
                f"{longest} is longer than the {MAX_SOCKET_PATH} bytes that a socket's path may have: "
                "choose a shorter --state-dir or tenant name"
            )
        self.name = name
        self.path = path
        self._engine = engine
        self._hierarchy = hierarchy
        self._directory = directory
        self.number = hierarchy.add_tenant(name, policy)
        self.address: IPv4Address | None = None
        self._keep = keep
        self._nic = nic
        self._cm = TenantCm(cm, self.number)
        self._verbs = Verbs(engine, directory, gate, self._cm.operations(), cm.flow, nic)
        self.sessions: dict[int, Session] = {}
        self._speakers: dict[bytes, Session] = {}
        self._waiting: list[tuple[bytes, bytes, Session]] = []
        self.path.mkdir(parents=True, exist_ok=True)
        self._sysfs = Sysfs(path, lambda: counters.tenant_total(self.number))
        self._serving = False
        self._closed = False
        if not late_address:
            try:
                self._take(directory.assign(self.number, name, address))
            except ValueError:
                self._sysfs.close()
                hierarchy.remove_tenant(name)
                raise
        self._open_sockets(context)

    def _open_sockets(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        # A directory that containers have mounted stays the same one: only what is in it is renewed.
        for name in ("descriptors", "control"):
            (self.path / name).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._listener.bind(str(self.path / "descriptors"))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._control = context.socket(zmq.ROUTER)
        self._control.setsockopt(zmq.LINGER, 0)
        self._control.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST)
        self._control.bind(f"ipc://{self.path}/control")
        # Containers run as any user; the directory is what keeps strangers out.
        for name in ("descriptors", "control"):
            (self.path / name).chmod(0o666)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener.fileno(), self._accept)
        loop.add_reader(self._control.FD, self._on_control)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self.sessions) >= MAX_SESSIONS:
            log.warning("tenant %s: refused a process: it has %d already", self.name, MAX_SESSIONS)
            connection.close()
            return
        try:
            session = Session(self._engine, self.number, connection, self._on_end)
        except OSError as error:
            log.warning("tenant %s: refused a process: %s", self.name, error.strerror)
            connection.close()
            return
        self.sessions[session.number] = session
        log.info(
            "tenant %s: session %d opened by pid %d, uid %d",
            self.name,
            session.number,
            session.pid,
            session.uid,
        )

    def _on_end(self, session: Session, reason: str) -> None:
        self.sessions.pop(session.number, None)
        self._verbs.end_session(session.number)
        self._cm.end_session(session)
        for identity in [identity for identity, speaker in self._speakers.items() if speaker is session]:
            del self._speakers[identity]
        log.info("tenant %s: session %d closed: %s", self.name, session.number, reason)

    def _on_control(self) -> None:
        """The descriptor of a zmq socket tells only that something is new."""
        if not self._serving:
            self._serving = True
            self._serve()

    def _serve(self) -> None:
        """Answers one request and queues behind the other tenants for the next: a storm delays its own verbs only."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        if self.policy.max_verbs and int(self._control.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            wait = self._engine.take_verb(self.number)
            if wait > 0:
                loop.call_later(wait / 1e9, self._serve)
                return
        try:
            identity, *frames = self._control.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            self._serving = False
            return
        answer = self._answer(identity, frames)
        if answer is not None and not self._closed:
            with suppress(zmq.Again):
                self._control.send_multipart([identity, answer], zmq.NOBLOCK)
        loop.call_soon(self._serve)

    def _answer(self, identity: bytes, frames: list[bytes]) -> bytes | None:
        session = self._speakers.get(identity)
        frame = frames[0] if len(frames) == 1 else b""
        if session is None:
            return self._greet(identity, frame)
        try:
            return self._verbs.dispatch(session, frame)
        except ProtocolError as error:
            session.end(f"it broke the protocol: {error}")
            return refusal(frame, errno.EPROTO)

    def _greet(self, identity: bytes, frame: bytes) -> bytes | None:
        hello = hello_token(frame)
        if hello is None:
            # A session that was ended asks once more, or a stranger does.
            return refusal(frame, errno.EIO)
        abi_version, token = hello
        if abi_version != lib.SLUICE_ABI_VERSION:
            log.warning(
                "tenant %s: a shim of ABI version %d was refused; this router speaks %d",
                self.name,
                abi_version,
                lib.SLUICE_ABI_VERSION,
            )
            return refusal(frame, errno.EPROTO)
        for session in self.sessions.values():
            if not session.greeted and same_token(session.token, token):
                session.greeted = True
                self._speakers[identity] = session
                if self.address is None:
                    self._waiting.append((identity, frame, session))
                    return None
                return self._verbs.hello(frame, session)
        return refusal(frame, errno.EACCES)

    def _take(self, address: IPv4Address) -> None:
        self.address = address
        self._engine.address_tenant(self.number, gid_of_address(address))
        self._verbs.set_address(address)
        self._cm.set_address(address)
        try:
            self._sysfs.write(VirtualDevice(address, self._nic))
        except OSError as error:
            # Its own container may have done that to it.
            log.warning("tenant %s: can't write its sysfs files: %s", self.name, error)

    def set_address(self, address: IPv4Address) -> None:
        """Once, for a tenant made with late_address: greets who waits. ValueError where another tenant has it."""
        self._directory.claim(self.number, address, self.name)
        self._take(address)
        log.info("tenant %s: address %s", self.name, address)
        for identity, frame, session in self._waiting:
            if session.number in self.sessions:
                with suppress(zmq.Again):
                    self._control.send_multipart([identity, self._verbs.hello(frame, session)], zmq.NOBLOCK)
        self._waiting.clear()
        # Sending may have taken the notice that something came in, which doesn't come twice.
        self._on_control()

    def cm_status(self) -> dict[str, Any]:
        """rdma_cm's ids, and what is listened on."""
        return self._cm.status()

    def end_forbidden(self, admits: Callable[[Flow], bool]) -> list[Connection]:
        """Ends the connections that are admitted no longer, and returns them."""
        return self._verbs.end_forbidden(admits) if self.address is not None else []

    def tell(self, event: int, element: int) -> None:
        """An async event (enum ibv_event_type) for all its processes."""
        for session in self.sessions.values():
            self._engine.tell_session(session.number, event, element)

    def renew_device(self) -> None:
        """The NIC is another than before: what its files say follows."""
        if self.address is not None:
            with suppress(OSError):
                self._sysfs.write(VirtualDevice(self.address, self._nic))

    @property
    def policy(self) -> Policy:
        return self._hierarchy.tenants[self.name]

    def set_policy(self, policy: Policy) -> None:
        """PolicyError where its guarantee is more than the device or its group has left."""
        self._hierarchy.set_tenant(self.name, policy)

    def close(self, keep: bool = False) -> None:
        """Ends its sessions and removes its directory, but for one that is kept when the router ends (keep)."""
        self._closed = True
        loop = asyncio.get_running_loop()
        for session in list(self.sessions.values()):
            session.end("the tenant was removed")
        loop.remove_reader(self._listener.fileno())
        loop.remove_reader(self._control.FD)
        self._listener.close()
        self._control.close()
        self._sysfs.close()
        if self.address is not None:
            self._directory.release(self.address)
        self._hierarchy.remove_tenant(self.name)
        if not (keep and self._keep):
            shutil.rmtree(self.path, ignore_errors=True)
