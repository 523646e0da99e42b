# SPDX-License-Identifier: Apache-2.0
"""A tenant: a directory with its sockets. Who can reach the directory is the tenant; nothing else says so."""

import asyncio
import errno
import logging
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import zmq

from sluice.cluster.directory import Directory, gid_of_address
from sluice.control.closer import Closer
from sluice.control.cm.manager import CommunicationManager
from sluice.control.cm.place import CmDevice
from sluice.control.cm.requests import TenantCm
from sluice.control.connections import Connection, Flow, Gate
from sluice.control.control_socket import ControlSocket
from sluice.control.look import Later
from sluice.control.session import Session
from sluice.control.verbs import ProtocolError, Verbs, hello_token, refusal, same_token
from sluice.device.node import NodeDevice
from sluice.device.socket_file import let_all_connect
from sluice.device.sysfs import Sysfs
from sluice.device.virtual import VirtualDevice, device_name
from sluice.engine import Engine, lib
from sluice.engine.counters import Counters
from sluice.policy.policy import Policy, PolicyError

log = logging.getLogger(__name__)

MAX_SESSIONS = 1024
"""Processes of one tenant at a time."""
MAX_SOCKET_PATH = 107
"""sun_path less its terminating zero (man unix)."""


def check_room(path: Path) -> None:
    """ValueError where a tenant's sockets could not be in this directory."""
    longest = path / "descriptors"
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH:
        raise ValueError(
            f"{longest} is longer than the {MAX_SOCKET_PATH} bytes that a socket's path may have: "
            "choose a shorter --state-dir or tenant name"
        )


class TenantDevice:
    """One of a tenant's devices. number: the tenant's; tenant: the engine's number of the tenant on it."""

    def __init__(self, node: NodeDevice, tenant: int) -> None:
        self.node = node
        self.number = 0
        self.tenant = tenant

    @property
    def name(self) -> str:
        """As the tenant sees it."""
        return device_name(self.number)


class Tenant:
    """Its sockets, sessions, devices with their policies, and address."""

    def __init__(
        self,
        name: str,
        path: Path,
        policies: Mapping[NodeDevice, Policy],
        engine: Engine,
        directory: Directory,
        context: zmq.Context[zmq.Socket[bytes]],
        gate: Gate,
        cm: CommunicationManager,
        counters: Counters,
        address: IPv4Address | None = None,
        late_address: bool = False,
        keep: bool = False,
    ) -> None:
        """policies: of each device that it is given, one at least. address: None takes a free one.

        late_address: set_address tells it, sessions wait till then. keep: close() leaves the directory.
        """
        check_room(path)
        self.name = name
        self.path = path
        self._engine = engine
        self._directory = directory
        self.devices: list[TenantDevice] = []
        self._first: TenantDevice | None = None
        self.address: IPv4Address | None = None
        self._keep = keep
        self._serving = False
        self._closed = False
        self.sessions: dict[int, Session] = {}
        self._speakers: dict[bytes, Session] = {}
        self._waiting: list[tuple[bytes, bytes, Session]] = []
        self.path.mkdir(parents=True, exist_ok=True)
        self._closer = Closer()
        self._sysfs = Sysfs(path, counters.tenant_total)
        self.number: int
        self._cm: TenantCm
        self._verbs: Verbs
        try:
            for device, policy in policies.items():
                self.add_device(device, policy)
            assert self._first is not None
            self.number = self._first.tenant
            self._cm = TenantCm(cm, self.number)
            self._verbs = Verbs(engine, directory, gate, self._cm.operations(), cm.flow)
            if not late_address:
                self._take(directory.assign(self.number, name, address))
        except (ValueError, OSError):
            self._give_up_devices()
            raise
        self._open_sockets(context)

    # ---- devices -------------------------------------------------------------

    def add_device(self, node: NodeDevice, policy: Policy) -> None:
        """Gives it a device, which its processes see from their next ibv_get_device_list on. PolicyError, OSError."""
        if self._first is not None and self._first.node is node:
            # It was taken away, and stands for the tenant nevertheless.
            node.hierarchy.set_tenant(self.name, policy)
            device = self._first
        else:
            of = None if self._first is None else self._first.tenant
            device = TenantDevice(node, node.hierarchy.add_tenant(self.name, policy, of))
            self._first = self._first or device
        taken = {one.number for one in self.devices}
        device.number = next(number for number in range(lib.SLUICE_MAX_DEVICES) if number not in taken)
        self.devices.append(device)
        if not self.sessions:
            # In the node's order, whatever was given first: after a restart it is the same.
            self.devices.sort(key=lambda one: one.node.number)
            for number, one in enumerate(self.devices):
                one.number = number
        self._tell_devices()

    def remove_device(self, node: NodeDevice) -> None:
        """Takes one away; its processes end with it."""
        device = self.device(node)
        for session in list(self.sessions.values()):
            session.end(f"its device {device.name} was taken away")
        self.devices.remove(device)
        if device is self._first:
            node.hierarchy.set_tenant(self.name, Policy())
        else:
            node.hierarchy.remove_tenant(self.name)
        self._sysfs.remove_files()
        self._tell_devices()

    def device(self, node: NodeDevice) -> TenantDevice:
        """PolicyError where it hasn't that device."""
        for device in self.devices:
            if device.node is node:
                return device
        has = ", ".join(device.node.name for device in self.devices)
        raise PolicyError(f"tenant {self.name!r} has no device {node.name!r}; it has: {has}")

    def _give_up_devices(self) -> None:
        self._sysfs.close()
        # The first stands for the tenant until the others are gone.
        for device in self.devices:
            if device is not self._first:
                device.node.hierarchy.remove_tenant(self.name)
        if self._first is not None:
            self._first.node.hierarchy.remove_tenant(self.name)

    def _tell_devices(self) -> None:
        devices: list[VirtualDevice] = []
        if self.address is not None:
            for one in self.devices:
                devices.append(VirtualDevice(self.address, one.node.nic, one.number, one.node.number))
            self._verbs.set_devices(self.address, devices)
            self._cm.set_devices(self.address, [CmDevice(one.number, one.nic_gids) for one in devices])
        try:
            self._sysfs.count({one.number: one.tenant for one in self.devices})
            self._sysfs.write(devices)
        except OSError as error:
            # Its own container may have done that to it.
            log.warning("tenant %s: can't write its sysfs files: %s", self.name, error)

    def tell(self, node: NodeDevice, event: int, element: int) -> None:
        """An async event (enum ibv_event_type) of a device for all its processes that have it open."""
        for session in self.sessions.values():
            self._engine.tell_session(session.number, node.number, event, element)

    def renew_devices(self) -> None:
        """A NIC is another than before: what the files say follows."""
        self._tell_devices()

    # ---- processes -----------------------------------------------------------

    def _open_sockets(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        # A directory that containers have mounted stays the same one: only what is in it is renewed.
        (self.path / "descriptors").unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._listener.bind(str(self.path / "descriptors"))
        self._listener.listen(128)
        self._listener.setblocking(False)
        # Containers run as any user; the directory is what keeps strangers out.
        let_all_connect(self.path / "descriptors")
        self._control_socket = ControlSocket(self.path / "control", context)
        self._control = self._control_socket.socket
        loop = asyncio.get_running_loop()
        self._listen()
        loop.add_reader(self._control.FD, self._on_control)

    def _listen(self) -> None:
        if not self._closed:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        if self._closer.is_behind:
            # What waits to be closed is the router's as long: nobody brings more.
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener.fileno())
            loop.call_later(1, self._listen)
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self.sessions) >= MAX_SESSIONS:
            log.warning("tenant %s: refused a process: it has %d already", self.name, MAX_SESSIONS)
            self._closer.close(connection.detach())
            return
        try:
            session = Session(self._engine, self.number, connection, self._on_end, self._closer)
        except OSError as error:
            log.warning("tenant %s: refused a process: %s", self.name, error.strerror)
            if connection.fileno() >= 0:
                self._closer.close(connection.detach())
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
        self._carry_out(identity, frames)

    def _carry_out(self, identity: bytes, frames: list[bytes]) -> None:
        """Answers; what can't be carried out yet, all else of this tenant waits for."""
        if self._closed:
            return
        try:
            answer = self._answer(identity, frames)
        except Later as later:
            later.when.add_done_callback(lambda _: self._carry_out(identity, frames))
            return
        if answer is not None and not self._closed:
            with suppress(zmq.Again):
                self._control.send_multipart([identity, answer], zmq.NOBLOCK)
        asyncio.get_running_loop().call_soon(self._serve)

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
        self._tell_devices()

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
        return self._verbs.end_forbidden(self.number, admits) if self.address is not None else []

    def admit_neighbour(self, peer: int) -> None:
        """Answers the engine's question whether this tenant may send datagrams to that one (its number)."""
        if self.address is not None:
            self._verbs.admit_neighbour(self.number, peer)

    def resolve_ah(self, session: int, handle: int, gid: bytes) -> None:
        """An AH that leads nowhere is used: its destination may be known by now."""
        if self.address is not None:
            self._verbs.resolve_ah(session, handle, gid)

    @property
    def policy(self) -> Policy:
        """Of its first device, sluice0."""
        return self.policy_on(self.devices[0].node)

    def policy_on(self, node: NodeDevice) -> Policy:
        return node.hierarchy.tenants[self.name]

    def set_policy(self, policy: Policy, node: NodeDevice | None = None) -> None:
        """node: one of its devices, None for the first.

        PolicyError where its guarantee is more than the device or its group has left.
        """
        device = self.devices[0] if node is None else self.device(node)
        device.node.hierarchy.set_tenant(self.name, policy)

    def close(self, keep: bool = False) -> None:
        """Ends its sessions and removes its directory, but for one that is kept when the router ends (keep)."""
        self._closed = True
        loop = asyncio.get_running_loop()
        for session in list(self.sessions.values()):
            session.end("the tenant was removed")
        loop.remove_reader(self._listener.fileno())
        loop.remove_reader(self._control.FD)
        self._listener.close()
        self._control_socket.close()
        if self.address is not None:
            self._directory.release(self.address)
        self._give_up_devices()
        if not (keep and self._keep):
            shutil.rmtree(self.path, ignore_errors=True)
