# SPDX-License-Identifier: Apache-2.0
"""Links between routers: requests and answers over zmq with CURVE keys.

Each router serves one ROUTER socket, and has one DEALER to each peer for its own
requests. A request is two frames: a number that the answer repeats (8 bytes,
big-endian; 0 wants no answer) and a message (messages.py). What can't be sent now
is not queued: the request fails, and whoever wants it asks again.
"""

import asyncio
import errno
import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Protocol

import zmq

from sluice.cluster.admission import DOMAIN, Admission
from sluice.cluster.directory import Directory, Place
from sluice.cluster.file import Cluster, ClusterFileError, Node
from sluice.cluster.keys import KeyPair
from sluice.cluster.messages import (
    MAX_FRAME,
    Done,
    ListTenants,
    MessageError,
    Ping,
    Refused,
    Tenants,
    decode,
    encode,
)

log = logging.getLogger(__name__)

HEARTBEAT = 1.0
"""Seconds between two pings."""
PATIENCE = 3.0
"""Seconds without an answer after which a peer counts as down."""
QUEUE = 1000
"""Messages on the way to one peer."""
GONE = 10.0
"""Seconds without an answer after which what a peer knew counts as lost."""
MAX_PENDING = 1024
"""Requests to one peer that wait for an answer, and requests of one peer that are being worked on."""


class Members(Protocol):
    """Who belongs to the cluster: a cluster file, or what the Kubernetes API says. path: its name, for errors."""

    @property
    def path(self) -> Path | str: ...

    @property
    def cluster(self) -> Cluster: ...

    def changed(self) -> bool:
        """Looks again; whether cluster is another one now."""


Handler = Callable[[str, Any], Any | Awaitable[Any]]

_OWN = {"address": "address", "port": "port", "tenant-addresses": "tenant_addresses"}
"""What a router takes from its own entry when it starts: field of the file, attribute of a Node."""


class PeerUnreachable(ConnectionError):
    """No answer in time, no connection, or no such node."""


class PeerRefused(OSError):
    """The peer answered that it can't be done; errno says why, as of the verb that wanted it."""


class Peer:
    """One other router: our requests to it, and what we know of it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], key: KeyPair, node: Node) -> None:
        self.node = node
        self.alive = False
        self.silent_since: float | None = asyncio.get_running_loop().time()
        """Since when it is down, from the start on; None: it isn't, or that was told."""
        self.misunderstood: str | None = None
        """What one of the two routers said that the other doesn't understand: they are of different versions."""
        self.boot = self.revision = -1
        self.pending: dict[int, asyncio.Future[Any]] = {}
        self.working = 0
        self._next = 1
        self._socket = context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.SNDHWM, QUEUE),
            (zmq.RCVHWM, QUEUE),
            (zmq.MAXMSGSIZE, MAX_FRAME),
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 1000),
            (zmq.HANDSHAKE_IVL, 2000),
            (zmq.HEARTBEAT_IVL, 1000),
            (zmq.HEARTBEAT_TIMEOUT, 3000),
        ):
            self._socket.setsockopt(option, value)
        self._socket.curve_serverkey = node.public_key
        self._socket.curve_publickey = key.public
        self._socket.curve_secretkey = key.secret
        self._socket.connect(f"tcp://{node.address}:{node.port}")
        asyncio.get_running_loop().add_reader(self._socket.FD, self._drain)

    def send(self, number: int, body: Any) -> None:
        try:
            self._socket.send_multipart([number.to_bytes(8, "big"), encode(body)], zmq.NOBLOCK)
        except zmq.Again:
            raise PeerUnreachable(f"there is no link to node {self.node.name!r}") from None
        finally:
            # Sending may have taken the notice that something came in, which doesn't come twice.
            asyncio.get_running_loop().call_soon(self._drain)

    async def request(self, body: Any, timeout: float) -> Any:
        if len(self.pending) >= MAX_PENDING:
            raise PeerUnreachable(f"node {self.node.name!r} owes {MAX_PENDING} answers")
        number = self._next
        self._next += 1
        future = self.pending[number] = asyncio.get_running_loop().create_future()
        try:
            self.send(number, body)
            return await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise PeerUnreachable(f"node {self.node.name!r} did not answer in {timeout:g} s") from None
        finally:
            del self.pending[number]

    def _drain(self) -> None:
        with suppress(zmq.Again):
            while not self._socket.closed:
                number, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
                future = self.pending.get(int.from_bytes(number, "big"))
                if future is None or future.done():
                    continue
                try:
                    if len(frames) != 1:
                        raise MessageError(f"{len(frames)} frames")
                    future.set_result(decode(frames[0]))
                except MessageError as error:
                    future.set_result(Refused(errno.EPROTO, f"its answer: {error}"))

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.FD)
        self._socket.close()
        for future in self.pending.values():
            if not future.done():
                future.set_exception(PeerUnreachable(f"node {self.node.name!r} left the cluster"))


class Links:
    """This router's links to all others. A Source of the directory: what the others tell of their tenants."""

    def __init__(self, file: Members, key: KeyPair, directory: Directory) -> None:
        """Inside a running event loop. ClusterFileError: this node's key isn't the file's. OSError: the port."""
        self._file = file
        self._key = key
        self._directory = directory
        self.me = own_node(file, directory.node, key)
        self.outdated: str | None = None
        """In what the file says something else of this node than when its router started."""
        self._boot = secrets.randbits(48)
        self._places: dict[IPv4Address, Place] = {}
        self._handlers: dict[type[Any], Handler] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._loss_listeners: list[Callable[[str], None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.peers: dict[str, Peer] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._admission = Admission(self._context, self._node_of)
        self._server = self._serve()
        asyncio.get_running_loop().add_reader(self._server.FD, self._drain)
        self.handle(Ping, self._on_ping)
        self.handle(ListTenants, lambda _node, _body: self._tenants())
        directory.on_change(self._tenants_changed)
        self._renew_peers()
        self._start(self._watch())

    def _serve(self) -> "zmq.Socket[bytes]":
        server = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, QUEUE),
            (zmq.RCVHWM, QUEUE),
            (zmq.MAXMSGSIZE, MAX_FRAME),
            (zmq.HANDSHAKE_IVL, 2000),
            (zmq.HEARTBEAT_IVL, 1000),
            (zmq.HEARTBEAT_TIMEOUT, 3000),
            (zmq.CURVE_SERVER, 1),
        ):
            server.setsockopt(option, value)
        server.curve_publickey = self._key.public
        server.curve_secretkey = self._key.secret
        server.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        try:
            server.bind(f"tcp://{self.me.address}:{self.me.port}")
        except zmq.ZMQError as error:
            self._admission.close()
            self._context.destroy(linger=0)
            raise OSError(error.errno, f"{self.me.address}:{self.me.port}: {error.strerror}") from None
        return server

    # ---- what others use -----------------------------------------------------

    def handle(self, kind: type[Any], handler: Handler) -> None:
        """handler(node, message) answers messages of this kind: a message, or an awaitable of one.

        OSError raised by it becomes the answer Refused; any other exception too (EIO), and is logged.
        """
        self._handlers[kind] = handler

    def on_alive(self, listener: Callable[[str], None]) -> None:
        """listener(node) is called when a peer is there, again or for the first time."""
        self._listeners.append(listener)

    def on_lost(self, listener: Callable[[str], None]) -> None:
        """listener(node) is called when a peer has forgotten all: its router is another one now, or it is gone."""
        self._loss_listeners.append(listener)

    def _lost(self, node: str) -> None:
        for listener in self._loss_listeners:
            listener(node)

    def node_at(self, address: IPv4Address) -> str | None:
        """The peer whose own address this is, or None."""
        return next((name for name, peer in self.peers.items() if peer.node.address == address), None)

    async def request(self, node: str, body: Any, timeout: float = PATIENCE) -> Any:
        """The answer. PeerUnreachable, PeerRefused."""
        peer = self._peer(node)
        answer = await peer.request(body, timeout)
        if isinstance(answer, Refused):
            self._note_refusal(peer, answer)
            raise PeerRefused(answer.errno, answer.reason)
        return answer

    def tell(self, node: str, body: Any) -> None:
        """A message without an answer; it may be lost. PeerUnreachable where that is known at once."""
        self._peer(node).send(0, body)

    def _tenants_changed(self) -> None:
        """This node's tenants are others now: peers hear of it at once."""
        for peer in self.peers.values():
            with suppress(PeerUnreachable):
                peer.send(0, Ping(self._boot, self._directory.revision))

    def find(self, address: IPv4Address) -> Place | None:
        return self._places.get(address)

    def address_of(self, node: str, tenant: str) -> IPv4Address | None:
        return None

    def status(self) -> dict[str, Any]:
        return {
            "node": self.me.name,
            "strangers": self._admission.refused,
            "outdated": self.outdated,
            "peers": {
                name: {
                    "address": f"{peer.node.address}:{peer.node.port}",
                    "alive": peer.alive,
                    "misunderstood": peer.misunderstood,
                    "tenants": sum(place.node == name for place in self._places.values()),
                }
                for name, peer in self.peers.items()
            },
        }

    def node(self, name: str) -> Node:
        """How to reach a peer. PeerUnreachable where the cluster file has none of this name."""
        return self._peer(name).node

    # ---- our requests --------------------------------------------------------

    def _peer(self, node: str) -> Peer:
        try:
            return self.peers[node]
        except KeyError:
            raise PeerUnreachable(f"there is no node {node!r} in the cluster") from None

    def _node_of(self, key: bytes) -> str | None:
        for node in self._file.cluster.nodes.values():
            if node.public_key == key and node.name != self.me.name:
                return node.name
        return None

    def _renew_peers(self) -> None:
        nodes = {name: node for name, node in self._file.cluster.nodes.items() if name != self.me.name}
        for name, peer in list(self.peers.items()):
            if nodes.get(name) != peer.node:
                peer.close()
                del self.peers[name]
                self._learn(name, {})
                self._lost(name)
        for name, node in nodes.items():
            if name not in self.peers:
                self.peers[name] = Peer(self._context, self._key, node)

    def _compare_own(self) -> None:
        """What the file says of this node holds from its router's next start on; the others' routers go by it now."""
        try:
            told = own_node(self._file, self.me.name, self._key)
        except ClusterFileError as error:
            self.outdated = f"{error}; the other nodes refuse this router"
        else:
            changed = [
                f"{name} {getattr(told, attribute)} (was {getattr(self.me, attribute)})"
                for name, attribute in _OWN.items()
                if getattr(told, attribute) != getattr(self.me, attribute)
            ]
            self.outdated = f"{self._file.path}: nodes.{self.me.name}: {', '.join(changed)}" if changed else None
        if self.outdated is not None:
            log.error("%s: restart this router", self.outdated)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a link's work failed", exc_info=task.exception())

    async def _watch(self) -> None:
        while True:
            if self._file.changed():
                log.warning("%s: %d nodes now", self._file.path, len(self._file.cluster.nodes))
                self._compare_own()
                self._renew_peers()
            for peer in list(self.peers.values()):
                self._start(self._ping(peer))
            await asyncio.sleep(HEARTBEAT)

    async def _ping(self, peer: Peer) -> None:
        name = peer.node.name
        try:
            answer = await peer.request(Ping(self._boot, self._directory.revision), PATIENCE)
        except PeerUnreachable as error:
            if self.peers.get(name) is peer:
                self._silent(peer, error)
            return
        if self.peers.get(name) is not peer:
            return
        if not isinstance(answer, Ping):
            refusal = answer if isinstance(answer, Refused) else Refused(errno.EPROTO, type(answer).__name__)
            self._note_refusal(peer, refusal)
            self._silent(peer, PeerUnreachable(f"it answers a ping with {refusal.reason}"))
            return
        returned = not peer.alive
        if returned:
            peer.alive = True
            peer.silent_since = peer.misunderstood = None
            log.warning("node %s is up", name)
        await self._ask_for_tenants(peer, answer)
        if returned:
            for listener in self._listeners:
                listener(name)

    def _note_refusal(self, peer: Peer, refusal: Refused) -> None:
        """Where it is the other's version that was refused, by either of the two: told once."""
        if refusal.errno != errno.EPROTO:
            return
        if peer.misunderstood is None:
            log.error(
                "node %s has a router of another version, its tenants may not be reached: %s; run one version on both",
                *(peer.node.name, refusal.reason),
            )
        peer.misunderstood = refusal.reason

    def _silent(self, peer: Peer, error: PeerUnreachable) -> None:
        name, now = peer.node.name, asyncio.get_running_loop().time()
        if peer.alive:
            peer.alive = False
            peer.silent_since = now
            log.warning("node %s is down: %s", name, error)
        elif peer.silent_since is not None and now - peer.silent_since >= GONE:
            peer.silent_since = None
            if peer.boot >= 0:
                self._lost(name)
            else:
                log.warning("node %s has not answered yet at %s:%d: %s", name, peer.node.address, peer.node.port, error)

    async def _ask_for_tenants(self, peer: Peer, ping: Ping) -> None:
        if (ping.boot, ping.revision) == (peer.boot, peer.revision):
            return
        if ping.boot != peer.boot and peer.boot >= 0:
            log.warning("node %s has a new router", peer.node.name)
            peer.boot, peer.revision, peer.misunderstood = ping.boot, -1, None
            self._lost(peer.node.name)
        with suppress(PeerUnreachable):
            answer = await peer.request(ListTenants(), PATIENCE)
            if isinstance(answer, Tenants) and self.peers.get(peer.node.name) is peer:
                peer.boot, peer.revision = answer.boot, answer.revision
                self._learn(peer.node.name, answer.tenants)

    def _learn(self, node: str, tenants: dict[str, str]) -> None:
        """All that a node has, instead of what was known of it."""
        for address in [address for address, place in self._places.items() if place.node == node]:
            del self._places[address]
        for text, tenant in tenants.items():
            try:
                address = IPv4Address(text)
            except ValueError:
                log.warning("node %s: its tenant %r has no IPv4 address: %r", node, tenant, text)
                continue
            other = self._directory.find(address)
            if other is not None and other.node != node:
                log.error("node %s has a tenant at %s, which is %s of node %s", node, address, other.tenant, other.node)
                continue
            self._places[address] = Place(node, tenant)

    # ---- their requests ------------------------------------------------------

    def _drain(self) -> None:
        with suppress(zmq.Again):
            while not self._server.closed:
                identity, *frames = self._server.recv_multipart(zmq.NOBLOCK, copy=False)
                node = str(frames[-1].get("User-Id")) if frames else ""
                self._answer(node, identity.bytes, [frame.bytes for frame in frames])

    def _answer(self, node: str, identity: bytes, frames: list[bytes]) -> None:
        peer = self.peers.get(node)
        if peer is None or len(frames) != 2 or len(frames[0]) != 8:
            return
        try:
            body = decode(frames[1])
            handler = self._handlers.get(type(body))
            if handler is None:
                raise MessageError(f"{type(body).__name__} is not a request")
        except MessageError as error:
            refusal = Refused(errno.EPROTO, str(error))
            self._note_refusal(peer, refusal)
            self._reply(identity, frames[0], refusal)
            return
        try:
            answer = handler(node, body)
        except Exception as error:
            answer = _refusal(node, body, error)
        if isinstance(answer, Refused):
            self._note_refusal(peer, answer)
        if not inspect.isawaitable(answer):
            self._reply(identity, frames[0], answer)
        elif peer.working >= MAX_PENDING:
            answer.close()  # type: ignore[attr-defined]
            self._reply(identity, frames[0], Refused(errno.EAGAIN, f"{MAX_PENDING} requests are being worked on"))
        else:
            self._start(self._answer_later(peer, identity, frames[0], body, answer))

    async def _answer_later(
        self, peer: Peer, identity: bytes, number: bytes, request: Any, answer: Awaitable[Any]
    ) -> None:
        peer.working += 1
        try:
            body = await answer
        except Exception as error:
            body = _refusal(peer.node.name, request, error)
        finally:
            peer.working -= 1
        self._reply(identity, number, body)
        # Sending may have taken the notice that something came in, which doesn't come twice.
        asyncio.get_running_loop().call_soon(self._drain)

    def _reply(self, identity: bytes, number: bytes, body: Any) -> None:
        if int.from_bytes(number, "big"):
            with suppress(zmq.Again, zmq.ZMQError):
                self._server.send_multipart([identity, number, encode(body or Done())], zmq.NOBLOCK)

    def _on_ping(self, node: str, ping: Ping) -> Ping:
        self._start(self._ask_for_tenants(self.peers[node], ping))
        return Ping(self._boot, self._directory.revision)

    def _tenants(self) -> Tenants:
        tenants = {str(address): name for address, name in self._directory.local().items()}
        return Tenants(self._boot, self._directory.revision, tenants)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for task in list(self._tasks):
            task.cancel()
        for peer in self.peers.values():
            peer.close()
        loop.remove_reader(self._server.FD)
        self._server.close()
        self._admission.close()
        self._context.destroy(linger=0)


def own_node(file: Members, name: str, key: KeyPair) -> Node:
    """This node's entry. ClusterFileError where there is none, or it has another key."""
    node = file.cluster.nodes.get(name)
    if node is None:
        known = ", ".join(sorted(file.cluster.nodes)) or "none"
        raise ClusterFileError(
            f"{file.path}: there is no node {name!r}; there are: {known} (--node says which this is)"
        )
    if node.public_key != key.public:
        raise ClusterFileError(
            f"{file.path}: nodes.{name}.public-key: is not the key of this node, which is {key.public.decode()!r}"
        )
    return node


def _refusal(node: str, request: Any, error: Exception) -> Refused:
    """A mistake in one handler is its message's affair: those behind it are answered."""
    if isinstance(error, OSError):
        return Refused(error.errno or errno.EIO, str(error.strerror or error))
    log.error("node %s: its %s has failed", node, type(request).__name__, exc_info=error)
    return Refused(errno.EIO, f"{type(request).__name__} has failed: the log of the router says why")
