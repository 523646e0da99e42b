# SPDX-License-Identifier: Apache-2.0
"""The communication manager without sockets: states, ports, events, two nodes."""

import asyncio
import errno
import os
import select
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from typing import Any, cast

import pytest
from sluice.cluster.directory import Directory, Source
from sluice.cluster.directory import Place as DirectoryPlace
from sluice.cluster.links import Links
from sluice.cluster.messages import decode, encode
from sluice.control.cm.address import SocketAddress, gid_of
from sluice.control.cm.channel import Channel
from sluice.control.cm.connection import Phase
from sluice.control.cm.event import EventType
from sluice.control.cm.identifier import (
    OPTION_AFONLY,
    OPTION_REUSEADDR,
    PS_TCP,
    PS_UDP,
    QPT_RC,
    QPT_UD,
    Identifier,
    Queued,
)
from sluice.control.cm.link import MAX_ON_THE_WAY, Link, fits
from sluice.control.cm.manager import CommunicationManager, Timeouts
from sluice.control.cm.message import (
    ConnectReply,
    ConnectRequest,
    DisconnectRequest,
    LookupReply,
    LookupRequest,
    Message,
    Reject,
    Service,
)
from sluice.control.cm.owner import Owner
from sluice.control.cm.parameters import REJECT_DATA, REPLY_DATA, REQUEST_DATA, Parameters
from sluice.control.cm.place import ClusterLocator, Party, Scope
from sluice.control.cm.qp_attributes import fill_qp_attributes
from sluice.control.cm.realm import PeerRealm
from sluice.control.connections import Flow, Gate, OpenGate
from sluice.control.qp_state import Attr, State
from sluice.device.host import IP
from sluice.engine import ffi


class Clock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self._soon: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._later: dict[int, tuple[float, Callable[..., Any], tuple[Any, ...]]] = {}
        self._next = 0

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self._soon.append((callback, args))

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> "Handle":
        self._next += 1
        self._later[self._next] = (self.now + delay, callback, args)
        return Handle(self, self._next)

    def cancel(self, number: int) -> None:
        self._later.pop(number, None)

    def settle(self) -> None:
        while self._soon:
            callback, args = self._soon.popleft()
            callback(*args)

    def advance(self, seconds: float) -> None:
        self.settle()
        self.now += seconds
        for number, (when, callback, args) in sorted(self._later.items()):
            if when <= self.now and number in self._later:
                del self._later[number]
                callback(*args)
                self.settle()


class Handle:
    def __init__(self, clock: Clock, number: int) -> None:
        self._clock, self._number = clock, number

    def cancel(self) -> None:
        self._clock.cancel(self._number)


class FixedRealm:
    def __init__(self, key: int, *addresses: str) -> None:
        self.key = key
        self._addresses = {ip_address(address) for address in addresses}

    def has(self, ip: IP) -> bool:
        return ip.is_loopback or ip in self._addresses


HOST = FixedRealm(1, "192.0.2.1")


class End:
    """A session of a tenant, with one channel; ids are made and events read as an application would."""

    def __init__(self, node: "Node", address: IPv4Address, tenant: int, realm: FixedRealm) -> None:
        self.node = node
        self.owner = Owner(node.cm, Party(tenant, address, realm))
        self.channel, fd = self.owner.create_channel()
        self._fd = fd
        self._uids = 0

    def create(self, port_space: int = PS_TCP, qp_type: int = QPT_RC) -> Identifier:
        self._uids += 1
        return self.owner.create_id(self._uids, self.channel, port_space, qp_type)

    def readable(self) -> bool:
        """Bytes whose events are no more are taken out first, as the shim does it."""
        surplus = self.owner.channel(self.channel).take_surplus()
        if surplus:
            with socket.socket(fileno=os.dup(self._fd)) as end:
                assert len(end.recv(surplus, socket.MSG_DONTWAIT)) == surplus
        return bool(select.select([self._fd], [], [], 0)[0])

    def event(self) -> Queued:
        self.node.clock.settle()
        assert self.readable()
        assert len(os.read(self._fd, 1)) == 1
        return self.owner.next_event(self.channel)

    def events(self) -> list[tuple[EventType, int]]:
        self.node.clock.settle()
        found = []
        while self.readable():
            event = self.event().event
            found.append((event.type, event.status))
        return found

    def close(self) -> None:
        self.owner.close()
        os.close(self._fd)


class Node:
    def __init__(self, clock: Clock, name: str = "", gate: Gate | None = None) -> None:
        self.clock = clock
        self.directory = Directory(name)
        self.cm = CommunicationManager(
            ClusterLocator(self.directory, HOST), HOST, gate or OpenGate(), clock, Timeouts(grace=())
        )
        self._tenants = 0
        self.ends: list[End] = []

    def end(self, realm: FixedRealm = HOST) -> End:
        self._tenants += 1
        address = self.directory.assign(self._tenants, f"t{self._tenants}")
        self.ends.append(End(self, address, self._tenants, realm))
        return self.ends[-1]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(clock: Clock) -> Iterator[Node]:
    made = Node(clock)
    yield made
    for end in made.ends:
        end.close()


def at(address: str | IPv4Address, port: int = 0) -> SocketAddress:
    ip = ip_address(address)
    return SocketAddress(socket.AF_INET if ip.version == 4 else socket.AF_INET6, ip, port)


def listen(end: End, address: str | IPv4Address = "0.0.0.0", port: int = 7000, backlog: int = 0) -> Identifier:
    made = end.create()
    made.bind(at(address, port))
    made.listen(backlog)
    return made


def resolve(end: End, address: str | IPv4Address, port: int = 7000) -> Identifier:
    made = end.create()
    made.resolve_address(None, at(address, port))
    assert end.event().event.type == EventType.ADDR_RESOLVED
    made.resolve_route()
    assert end.event().event.type == EventType.ROUTE_RESOLVED
    return made


def connect(
    client: End, server: End, listener: Identifier, address: str = "127.0.0.1"
) -> tuple[Identifier, Identifier]:
    """An established connection: the client's id and the server's."""
    active = resolve(client, address)
    active.connect(Parameters(qp_num=17, initiator_depth=3, responder_resources=5, private_data=b"hello"))
    request = server.event()
    assert request.event.type == EventType.CONNECT_REQUEST and request.about is listener
    passive = request.child
    assert passive is not None
    passive.accept(99, Parameters(qp_num=23, initiator_depth=5, responder_resources=3))
    assert client.event().event.type == EventType.CONNECT_RESPONSE
    active.ready()
    assert server.event().event.type == EventType.ESTABLISHED
    return active, passive


class Doorman:
    """Lets nobody through but to one port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[Flow] = []

    def admits(self, source: IP, destination: IP, port: int | None = None) -> bool:
        self.asked.append(Flow(source, destination, port))
        return port == self.port

    def delivers(self, sender: IP, member: IP) -> bool:
        return False


def test_a_gate_is_told_the_port(clock: Clock) -> None:
    doorman = Doorman(7000)
    node = Node(clock, gate=doorman)
    client, server = node.end(), node.end()
    for port in (7000, 7001):
        listen(server, port=port)
    there = server.owner.party.address
    assert there is not None
    shut = resolve(client, there, 7001)
    shut.connect(Parameters(qp_num=17))
    assert client.events() == [(EventType.UNREACHABLE, -errno.ETIMEDOUT)]

    active = resolve(client, there)
    active.connect(Parameters(qp_num=17))
    passive = server.event().child
    assert passive is not None
    here = client.owner.party.address
    assert here is not None
    # What the queue pairs' gate is asked on either side: the client asked for the server's port.
    assert node.cm.flow(there, here, 17) == Flow(here, there, 7000)
    passive.accept(99, Parameters(qp_num=23))
    assert client.event().event.type == EventType.CONNECT_RESPONSE
    assert node.cm.flow(here, there, 23) == Flow(here, there, 7000)
    # Another queue pair of the same two came by itself.
    assert node.cm.flow(here, there, 24) == Flow(here, there)
    active.destroy()
    assert node.cm.flow(here, there, 23) == Flow(here, there)
    for end in node.ends:
        end.close()


# ---- a connection's life -----------------------------------------------------


def test_connect_and_disconnect(node: Node, clock: Clock) -> None:
    client, server = node.end(), node.end()
    active, passive = connect(client, server, listen(server))
    active.disconnect()
    assert server.events() == [(EventType.DISCONNECTED, 0)]
    assert client.events() == []  # until the other side answers
    passive.disconnect()
    assert client.events() == [(EventType.DISCONNECTED, 0)]
    clock.advance(1)
    assert client.events() == server.events() == [(EventType.TIMEWAIT_EXIT, 0)]


@pytest.mark.parametrize("how", ["read", "never read", "answered", "destroyed"])
def test_the_end_comes_after_what_was_sent_before(node: Node, clock: Clock, how: str) -> None:
    client, server = node.end(), node.end()
    active, passive = connect(client, server, listen(server))
    waiting: list[int | None] = [7]
    asked: list[int | None] = []

    def unread(tenant: int, qp_num: int, mark: int | None) -> int | None:
        assert tenant == server.owner.party.tenant
        asked.append(mark)
        return waiting[0]

    node.cm.unread = unread
    active.disconnect()
    assert server.events() == [] and asked == [None]
    clock.advance(0.001)
    assert server.events() == [] and asked == [None, 7]
    if how == "read":
        waiting[0] = None
        clock.advance(0.002)
    elif how == "never read":
        for _ in range(10):
            clock.advance(0.512)
    elif how == "answered":
        passive.disconnect()
    else:
        server.owner.remove(passive)
        clock.advance(2)
        assert server.events() == []
        return
    assert server.events()[:1] == [(EventType.DISCONNECTED, 0)]
    clock.advance(2)
    assert (EventType.DISCONNECTED, 0) not in server.events()


def test_both_disconnect_at_once(node: Node, clock: Clock) -> None:
    client, server = node.end(), node.end()
    active, passive = connect(client, server, listen(server))
    active.disconnect()
    passive.disconnect()
    assert client.events() == server.events() == [(EventType.DISCONNECTED, 0)]


def test_what_each_side_sees_of_the_other(node: Node) -> None:
    client, server = node.end(), node.end()
    listen(server)
    active = resolve(client, "127.0.0.1")
    active.connect(
        Parameters(qp_num=17, initiator_depth=3, responder_resources=5, private_data=b"hello", rnr_retry_count=6)
    )
    queued = server.event()
    seen, passive = queued.event.parameters, queued.child
    assert passive is not None
    assert (seen.qp_num, seen.responder_resources, seen.initiator_depth) == (17, 3, 5)
    assert seen.private_data == b"hello".ljust(REQUEST_DATA, b"\0")
    assert passive.source == at("127.0.0.1", 7000)
    assert active.source is not None and passive.destination == active.source
    passive.accept(99, Parameters(qp_num=23, private_data=b"x" * REPLY_DATA))
    assert client.event().event.parameters.private_data == b"x" * REPLY_DATA


def test_attributes_fit_together(node: Node) -> None:
    client, server = node.end(), node.end()
    active, passive = connect(client, server, listen(server))
    attr = {}
    for identifier in (active, passive):
        for state in (State.INIT, State.RTR, State.RTS):
            made = ffi.new("struct sluice_qp_attr *")
            mask = fill_qp_attributes(identifier, state, made)
            assert mask & Attr.STATE and made.qp_state == state
            attr[identifier, state] = made
    a, b = attr[active, State.RTR], attr[passive, State.RTR]
    assert (a.dest_qp_num, b.dest_qp_num) == (23, 17)
    assert bytes(ffi.buffer(a.ah.dgid)) == server.owner.party.gid
    assert bytes(ffi.buffer(b.ah.dgid)) == client.owner.party.gid
    assert a.rq_psn == attr[passive, State.RTS].sq_psn
    assert b.rq_psn == attr[active, State.RTS].sq_psn
    assert (a.max_dest_rd_atomic, b.max_dest_rd_atomic) == (5, 3)
    assert (attr[active, State.RTS].max_rd_atomic, attr[passive, State.RTS].max_rd_atomic) == (3, 5)


def test_reject_with_private_data(node: Node) -> None:
    client, server = node.end(), node.end()
    listen(server)
    active = resolve(client, "127.0.0.1")
    active.connect(Parameters())
    passive = server.event().child
    assert passive is not None
    passive.reject(28, b"no")
    event = client.event().event
    assert (event.type, event.status) == (EventType.REJECTED, 28)
    assert event.parameters.private_data == b"no".ljust(REJECT_DATA, b"\0")
    with pytest.raises(OSError):
        passive.accept(99, Parameters())
    with pytest.raises(OSError):
        active.ready()


def test_nobody_listens(node: Node) -> None:
    client, server = node.end(), node.end()
    for address in ("127.0.0.1", "192.0.2.1", server.owner.party.address):
        active = resolve(client, address)
        active.connect(Parameters())
        assert client.events() == [(EventType.REJECTED, 8)]


def test_a_listener_that_comes_a_moment_late(node: Node, clock: Clock) -> None:
    node.cm.timeouts = Timeouts()
    client, server = node.end(), node.end()
    resolve(client, "127.0.0.1").connect(Parameters())
    clock.settle()
    assert client.events() == []
    listen(server)
    for step in node.cm.timeouts.grace:
        clock.advance(step)
    assert server.event().event.type == EventType.CONNECT_REQUEST
    resolve(client, "127.0.0.1", 7001).connect(Parameters())
    for step in node.cm.timeouts.grace:
        clock.advance(step)
    assert client.events() == [(EventType.REJECTED, 8)]


def test_nobody_is_there(node: Node) -> None:
    client = node.end()
    identifier = client.create()
    identifier.resolve_address(None, at("203.0.113.9", 1))
    assert client.events() == [(EventType.ADDR_ERROR, -errno.EHOSTUNREACH)]
    # As in the kernel it is bound, and may try another address.
    identifier.resolve_address(None, at("127.0.0.1", 1))
    assert client.events() == [(EventType.ADDR_RESOLVED, 0)]


def test_who_was_there_has_left(node: Node) -> None:
    client, server = node.end(), node.end()
    active = resolve(client, server.owner.party.address)
    node.directory.release(server.owner.party.address)
    active.connect(Parameters())
    assert client.events() == [(EventType.UNREACHABLE, -errno.ETIMEDOUT)]


def test_a_request_without_an_answer(node: Node, clock: Clock) -> None:
    client, server = node.end(), node.end()
    listen(server)
    active = resolve(client, "127.0.0.1")
    active.connect(Parameters())
    passive = server.event().child
    assert passive is not None
    clock.advance(node.cm.timeouts.response)
    assert client.events() == [(EventType.UNREACHABLE, -errno.ETIMEDOUT)]
    with pytest.raises(OSError):
        passive.accept(99, Parameters())
    assert server.events() == []


def test_a_reply_without_an_answer(node: Node, clock: Clock) -> None:
    client, server = node.end(), node.end()
    listen(server)
    active = resolve(client, "127.0.0.1")
    active.connect(Parameters())
    passive = server.event().child
    assert passive is not None
    passive.accept(99, Parameters())
    clock.settle()
    clock.advance(node.cm.timeouts.response)
    assert server.events() == [(EventType.UNREACHABLE, -errno.ETIMEDOUT)]
    assert client.events() == [(EventType.CONNECT_RESPONSE, 0), (EventType.REJECTED, 4)]


def test_a_notice_that_data_came_first(node: Node) -> None:
    client, server = node.end(), node.end()
    listen(server)
    active = resolve(client, "127.0.0.1")
    active.connect(Parameters())
    passive = server.event().child
    assert passive is not None
    with pytest.raises(OSError):
        passive.notify(4)
    passive.accept(99, Parameters())
    passive.notify(4)
    assert server.events() == [(EventType.ESTABLISHED, 0)]
    with pytest.raises(OSError) as failure:
        passive.notify(4)
    assert failure.value.errno == errno.EISCONN
    assert client.event().event.type == EventType.CONNECT_RESPONSE
    active.ready()
    assert server.events() == []


@pytest.mark.parametrize("phase", ["requested", "accepted", "established"])
def test_a_process_that_dies(node: Node, phase: str) -> None:
    client, server = node.end(), node.end()
    listen(server)
    active = resolve(client, "127.0.0.1")
    active.connect(Parameters())
    passive = server.event().child
    assert passive is not None
    if phase != "requested":
        passive.accept(99, Parameters())
        assert client.event().event.type == EventType.CONNECT_RESPONSE
    if phase == "established":
        active.ready()
        assert server.event().event.type == EventType.ESTABLISHED
    server.owner.close()
    expected = (EventType.DISCONNECTED, 0) if phase == "established" else (EventType.REJECTED, 28)
    assert client.events() == [expected]
    # Its answer finds nobody, and that is no error.
    active.disconnect()
    node.clock.settle()


def test_operations_in_the_wrong_state(node: Node) -> None:
    end = node.end()
    identifier = end.create()
    for wrong in (
        lambda: identifier.resolve_route(),
        lambda: identifier.connect(Parameters()),
        lambda: identifier.accept(1, Parameters()),
        lambda: identifier.ready(),
        lambda: identifier.reject(28, b""),
        lambda: identifier.disconnect(),
        lambda: identifier.notify(4),
        lambda: identifier.join(1, at("224.0.0.5"), 0),
        lambda: fill_qp_attributes(identifier, State.INIT, ffi.new("struct sluice_qp_attr *")),
    ):
        with pytest.raises(OSError) as failure:
            wrong()
        assert failure.value.errno == errno.EINVAL
    identifier.bind(at("127.0.0.1"))
    with pytest.raises(OSError):
        identifier.bind(at("127.0.0.1"))
    with pytest.raises(OSError):
        listen(end, "127.0.0.1", 0).connect(Parameters())


def test_an_id_that_is_bound_knows_only_the_first_step(node: Node) -> None:
    end = node.end()
    identifier = resolve(end, "127.0.0.1")
    attr = ffi.new("struct sluice_qp_attr *")
    assert fill_qp_attributes(identifier, State.INIT, attr) == (
        Attr.STATE | Attr.PKEY_INDEX | Attr.PORT | Attr.ACCESS_FLAGS
    )
    identifier.connect(Parameters())
    for state in (State.RTR, State.RTS, State.ERR, 77):
        with pytest.raises(OSError):
            fill_qp_attributes(identifier, state, attr)


# ---- ports -------------------------------------------------------------------


def bind_error(end: End, address: str | IPv4Address, port: int, reuse: bool = False) -> int:
    identifier = end.create()
    if reuse:
        identifier.set_option(OPTION_REUSEADDR, 1)
    try:
        identifier.bind(at(address, port))
    except OSError as error:
        return error.errno or -1
    return 0


def test_one_namespace_shares_ports(node: Node) -> None:
    a, b = node.end(), node.end()
    listen(a, "127.0.0.1", 7000)
    assert bind_error(b, "127.0.0.1", 7000) == errno.EADDRINUSE
    assert bind_error(b, "0.0.0.0", 7000) == errno.EADDRNOTAVAIL
    assert bind_error(b, "192.0.2.1", 7000) == 0
    assert bind_error(b, b.owner.party.address, 7000) == 0
    assert bind_error(b, a.owner.party.address, 7000) == errno.EADDRNOTAVAIL
    assert bind_error(b, "203.0.113.9", 7000) == errno.EADDRNOTAVAIL


def test_namespaces_have_ports_of_their_own(node: Node) -> None:
    a, b = node.end(FixedRealm(2, "10.0.0.1")), node.end(FixedRealm(3, "10.0.0.1"))
    first, second = listen(a), listen(b)
    active = resolve(a, "127.0.0.1")
    active.connect(Parameters())
    assert a.event().about is first
    active = resolve(a, b.owner.party.address)
    active.connect(Parameters())
    assert b.event().about is second
    assert bind_error(a, "192.0.2.1", 1) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    ("realm", "source", "destination", "shown"),
    [
        # Within a namespace its addresses are what they are.
        (HOST, "127.0.0.1", "127.0.0.1", "127.0.0.1"),
        (HOST, "192.0.2.1", "192.0.2.1", "192.0.2.1"),
        (HOST, "192.0.2.1", None, "192.0.2.1"),
        # Beyond it they aren't, unless it is the host's.
        (HOST, "127.0.0.1", None, None),
        (FixedRealm(2, "10.9.9.9"), "10.9.9.9", None, None),
        (FixedRealm(2, "10.9.9.9"), "10.9.9.9", "192.0.2.1", None),
        (FixedRealm(2, "192.0.2.1"), "192.0.2.1", None, None),
        (FixedRealm(2), "127.0.0.1", None, None),
    ],
)
@pytest.mark.parametrize("port_space", [PS_TCP, PS_UDP])
def test_a_source_is_shown_where_it_is_known(
    node: Node, realm: FixedRealm, source: str, destination: str | None, shown: str | None, port_space: int
) -> None:
    client, server = node.end(realm), node.end()
    qp_type = QPT_RC if port_space == PS_TCP else QPT_UD
    listener = server.create(port_space, qp_type)
    listener.bind(at("0.0.0.0", 7000))
    listener.listen(0)
    active = client.create(port_space, qp_type)
    active.resolve_address(at(source, 40000), at(destination or server.owner.party.address, 7000))
    active.resolve_route()
    active.connect(Parameters())
    child = server.event().child
    assert child is not None and child.destination == at(shown or client.owner.party.address, 40000)
    # To the application it is what it said.
    assert active.source == at(source, 40000)


def test_a_session_that_has_ended_is_nowhere() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        realm = PeerRealm(ours, 1, HOST)
        ours.close()
        assert not realm.has(IPv4Address("192.0.2.1"))


def test_a_namespace_reaches_the_hosts_address(node: Node) -> None:
    host, container = node.end(), node.end(FixedRealm(2))
    listener = listen(host, "192.0.2.1")
    active = resolve(container, "192.0.2.1")
    assert active.source is not None and active.source.ip == container.owner.party.address
    active.connect(Parameters())
    assert host.event().about is listener


def test_each_tenants_own_address_is_its_own(node: Node) -> None:
    a, b = node.end(), node.end()
    first = listen(a, a.owner.party.address)
    second = listen(b, b.owner.party.address)
    for end, listener in ((a, first), (b, second)):
        resolve(a, end.owner.party.address).connect(Parameters())
        assert end.event().about is listener
    resolve(a, "127.0.0.1").connect(Parameters())
    assert a.events() == [(EventType.REJECTED, 8)]


def test_reuse_of_addresses(node: Node) -> None:
    a = node.end()
    identifiers = [a.create(), a.create()]
    for identifier in identifiers:
        identifier.set_option(OPTION_REUSEADDR, 1)
        identifier.bind(at("127.0.0.1", 7000))
    assert bind_error(a, "127.0.0.1", 7000) == errno.EADDRINUSE
    with pytest.raises(OSError) as failure:
        identifiers[0].listen(0)
    assert failure.value.errno == errno.EADDRINUSE
    a.owner.remove(identifiers[1])
    identifiers[0].listen(0)


def test_who_shares_a_port_is_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice.control.cm.port_space.MAX_SHARERS", 3)
    a, b = node.end(), node.end(FixedRealm(2))
    made = [a.create() for _ in range(3)]
    for identifier in made:
        identifier.set_option(OPTION_REUSEADDR, 1)
        identifier.bind(at("127.0.0.1", 7000))
    assert bind_error(a, "127.0.0.1", 7000, reuse=True) == errno.EADDRINUSE
    assert bind_error(a, "127.0.0.1", 7001, reuse=True) == bind_error(b, "127.0.0.1", 7000) == 0
    a.owner.remove(made[1])
    assert bind_error(a, "127.0.0.1", 7000, reuse=True) == 0


def test_ephemeral_ports_differ(node: Node) -> None:
    a = node.end()
    ports = set()
    for _ in range(100):
        identifier = a.create()
        identifier.bind(at("127.0.0.1"))
        assert identifier.source is not None
        ports.add(identifier.source.port)
    assert len(ports) == 100 and min(ports) >= 32768


def test_ports_are_free_again(node: Node) -> None:
    a = node.end()
    identifier = listen(a)
    a.owner.remove(identifier)
    assert bind_error(a, "127.0.0.1", 7000) == 0


def test_both_families(node: Node) -> None:
    a, b = node.end(), node.end()
    listener = a.create()
    listener.bind(at("::", 7000))
    listener.listen(0)
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        active = resolve(b, address)
        active.connect(Parameters())
        queued = a.event()
        assert queued.about is listener
        assert queued.child is not None and queued.child.source == at(address, 7000)
    only_v6 = a.create()
    only_v6.set_option(OPTION_AFONLY, 1)
    only_v6.bind(at("::", 7001))
    only_v6.listen(0)
    assert bind_error(b, "0.0.0.0", 7001) == 0
    resolve(b, "127.0.0.1", 7001).connect(Parameters())
    assert b.events() == [(EventType.REJECTED, 8)]


# ---- events and channels -----------------------------------------------------


def test_backlog(node: Node) -> None:
    client, server = node.end(), node.end()
    listen(server, backlog=2)
    for _ in range(3):
        resolve(client, "127.0.0.1").connect(Parameters())
        node.clock.settle()
    assert client.events() == [(EventType.REJECTED, 28)]
    first = server.event()
    resolve(client, "127.0.0.1").connect(Parameters())
    assert server.event().event.type == server.event().event.type == EventType.CONNECT_REQUEST
    assert first.about.reported == 3
    assert client.events() == []


def test_a_listener_that_goes_rejects_what_it_has_not_shown(node: Node) -> None:
    client, server = node.end(), node.end()
    listener = listen(server)
    seen = resolve(client, "127.0.0.1")
    seen.connect(Parameters())
    child = server.event().child
    assert child is not None
    resolve(client, "127.0.0.1").connect(Parameters())
    node.clock.settle()
    server.owner.remove(listener)
    assert client.events() == [(EventType.REJECTED, 28)]
    assert not server.readable()
    child.accept(1, Parameters())
    assert client.event().event.type == EventType.CONNECT_RESPONSE


def test_migration_takes_events_along(node: Node) -> None:
    end = node.end()
    moved, stays = end.create(), end.create()
    for identifier in (
        moved,
        stays,
    ):
        identifier.resolve_address(None, at("127.0.0.1", 1))
    moved.resolve_route()
    other, fd = end.owner.create_channel()
    moved.move_to(end.owner.channel(other))
    assert [end.event().about] == [stays]
    assert not end.readable()
    assert os.read(fd, 100) == b"\0\0"
    assert end.owner.next_event(other).event.type == EventType.ADDR_RESOLVED
    assert end.owner.next_event(other).event.type == EventType.ROUTE_RESOLVED
    assert moved.reported == 2
    os.close(fd)


def test_destroying_drops_events(node: Node) -> None:
    end = node.end()
    identifier = end.create()
    identifier.resolve_address(None, at("127.0.0.1", 1))
    assert end.readable()
    end.owner.remove(identifier)
    assert not end.readable()
    with pytest.raises(OSError) as failure:
        end.owner.next_event(end.channel)
    assert failure.value.errno == errno.EAGAIN


def test_a_channel_outlives_a_full_socket() -> None:
    channel: Channel[int] = Channel()
    count = 70000
    for number in range(count):
        channel.put(number)
    for number in range(count):
        assert select.select([channel.read_fd], [], [], 0)[0]
        os.read(channel.read_fd, 1)
        found = channel.get()
        assert found is not None and found[1] == number
    assert channel.get() is None and not select.select([channel.read_fd], [], [], 0)[0]
    numbers = [channel.put(number) for number in range(count)]
    assert len(channel.take_back(numbers)) == count
    surplus = channel.take_surplus()
    assert 0 < surplus < count
    while surplus:
        surplus -= len(os.read(channel.read_fd, surplus))
    assert not select.select([channel.read_fd], [], [], 0)[0]
    channel.close()
    assert os.read(channel.read_fd, 1) == b""
    os.close(channel.read_fd)


def refused_a_channel(end: End, fds: list[int]) -> bool:
    try:
        fds.append(end.owner.create_channel()[1])
    except OSError as error:
        assert error.errno == errno.EMFILE
        return True
    return False


def test_surplus_of_a_channel() -> None:
    """Bytes of events that are no more serve the next ones; who reads one meanwhile finds no event."""
    channel: Channel[int] = Channel()
    first, second = channel.put(1), channel.put(2)
    assert channel.take_back([first, second]) == [1, 2]
    assert os.read(channel.read_fd, 1) == b"\0" and channel.get() is None
    channel.put(3)
    assert channel.take_surplus() == 0
    assert os.read(channel.read_fd, 9) == b"\0"
    found = channel.get()
    assert found is not None and found[1] == 3
    channel.close()
    os.close(channel.read_fd)


def test_limits(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice.control.cm.owner.MAX_IDS", 50)
    end, other = node.end(), node.end()
    made = [end.create() for _ in range(50)]
    with pytest.raises(OSError) as failure:
        end.create()
    assert failure.value.errno == errno.ENOMEM
    other.create()
    end.owner.remove(made.pop())
    end.create()
    monkeypatch.setattr("sluice.control.cm.owner.MAX_CHANNELS", 3)
    fds = [end.owner.create_channel()[1] for _ in range(2)]
    with pytest.raises(OSError) as failure:
        end.owner.create_channel()
    assert failure.value.errno == errno.EMFILE
    # Files are shared with all tenants.
    monkeypatch.setattr("resource.getrlimit", lambda _which: (47, 1 << 20))
    assert [refused_a_channel(other, fds) for _ in range(3)] == [False, True, True]
    for fd in fds:
        os.close(fd)


def test_events_that_nobody_reads_are_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice.control.cm.identifier.MAX_UNREAD", 10)
    monkeypatch.setattr("sluice.control.cm.identifier.MAX_EVENTS", 25)
    end, other = node.end(), node.end()
    nowhere = at("203.0.113.9", 1)

    def refused(ask: Callable[[], None]) -> bool:
        try:
            ask()
        except OSError as error:
            assert error.errno == errno.ENOMEM
            return True
        return False

    def written(identifier: Identifier) -> Callable[[], None]:
        return lambda: identifier.write_event(EventType.USER, 0, 1)

    def asked(identifier: Identifier) -> Callable[[], None]:
        return lambda: identifier.resolve_address(None, nowhere)

    first, second, third = end.create(), end.create(), end.create()
    assert [refused(asked(first)) for _ in range(12)] == [False] * 10 + [True] * 2
    assert refused(written(first))
    channel, fd = end.owner.create_channel()
    first.move_to(end.owner.channel(channel))
    assert refused(written(first))
    assert [refused(written(second)) for _ in range(11)] == [False] * 10 + [True]
    assert [refused(written(third)) for _ in range(6)] == [False] * 5 + [True]
    assert not refused(asked(other.create()))
    # Read, or gone with their id, they make room.
    end.event()
    assert [refused(asked(third)) for _ in range(2)] == [False, True]
    end.owner.remove(first)
    assert node.cm.events_of_tenant[end.owner.party.tenant] == 15
    assert [refused(asked(third)) for _ in range(5)] == [False] * 4 + [True]
    os.close(fd)


def test_nothing_is_left(node: Node, clock: Clock) -> None:
    client, server = node.end(), node.end()
    connect(client, server, listen(server))
    resolve(client, "127.0.0.1").connect(Parameters())
    for end in (client, server):
        end.close()
    node.ends.clear()
    clock.advance(100)
    assert not node.cm._ends and not node.cm._requested and not node.cm._timers and not node.cm.ports._taken
    assert not +node.cm.ids_of_tenant and not +node.cm.channels_of_tenant
    assert not any(node.cm.events_of_tenant.values())


@pytest.mark.parametrize("what", ["session", "channel"])
def test_many_ids_end_in_turns(node: Node, clock: Clock, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice.control.cm.owner.SLICE", 4)
    client, server = node.end(), node.end()
    active, _ = connect(client, server, listen(server))
    for _ in range(10):
        server.create()
    seen: list[int] = []

    def end_all() -> None:
        node.ends.remove(server)
        server.close() if what == "session" else server.owner.destroy_channel(server.channel)
        clock.call_soon(lambda: seen.append(server.owner.count()[0]))

    # Who asks meanwhile is answered.
    asks = resolve(client, "127.0.0.1")
    asks.connect(Parameters())
    end_all()
    assert server.owner.count()[0] == 8
    if what == "channel":
        with pytest.raises(OSError):
            server.create()
    assert client.event().event.type == EventType.DISCONNECTED
    assert client.events() == [(EventType.REJECTED, 8)]
    assert seen and server.owner.count()[0] == 0
    assert not +node.cm.ids_of_tenant - Counter({client.owner.party.tenant: 2})
    assert node.cm.channels_of_tenant[server.owner.party.tenant] == 0
    if what == "channel":
        # The socket has no other end any more.
        assert os.read(server._fd, 1) == b""
        server.close()
    active.destroy()


# ---- datagrams ---------------------------------------------------------------


def lookup(client: End, server: End) -> tuple[Identifier, Identifier]:
    listener = server.create(PS_UDP, QPT_UD)
    listener.bind(at("0.0.0.0", 7000))
    listener.listen(0)
    active = client.create(PS_UDP, QPT_UD)
    active.resolve_address(None, at("127.0.0.1", 7000))
    active.resolve_route()
    assert [kind for kind, _ in client.events()] == [EventType.ADDR_RESOLVED, EventType.ROUTE_RESOLVED]
    active.connect(Parameters(private_data=b"u"))
    queued = server.event()
    assert queued.child is not None
    assert queued.event.parameters.private_data == b"u".ljust(180, b"\0")
    return active, queued.child


def test_lookup_of_a_datagram_service(node: Node) -> None:
    client, server = node.end(), node.end()
    _, passive = lookup(client, server)
    passive.accept(1, Parameters(qp_num=77, private_data=b"y"))
    event = client.event().event
    assert event.type == EventType.ESTABLISHED
    assert (event.parameters.qp_num, event.parameters.qkey, event.gid) == (77, 0x01234567, server.owner.party.gid)
    assert event.parameters.private_data == b"y".ljust(136, b"\0")
    with pytest.raises(OSError):
        passive.accept(1, Parameters())


def test_lookups_that_fail(node: Node, clock: Clock) -> None:
    client, server = node.end(), node.end()
    _, passive = lookup(client, server)
    passive.reject(28, b"no")
    event = client.event().event
    assert (event.type, event.status) == (EventType.UNREACHABLE, 2)
    assert event.parameters.private_data.startswith(b"no\0")
    active = client.create(PS_UDP, QPT_UD)
    active.resolve_address(None, at("127.0.0.1", 7001))
    active.resolve_route()
    client.events()
    active.connect(Parameters())
    assert client.events() == [(EventType.UNREACHABLE, 1)]


def test_multicast(node: Node) -> None:
    end = node.end()
    identifier = end.create(PS_UDP, QPT_UD)
    identifier.resolve_address(None, at("224.0.1.2", 5))
    assert end.events() == [(EventType.ADDR_RESOLVED, 0)]
    assert identifier.source is not None and identifier.source.ip == end.owner.party.address
    membership = identifier.join(42, at("224.0.1.2"), 0)
    queued = end.event()
    assert queued.membership is membership and membership.reported == 1
    assert queued.event.gid == bytes(10) + b"\xff\xff\xe0\0\1\2" == gid_of(ip_address("224.0.1.2"))
    assert (queued.event.parameters.qp_num, queued.event.parameters.qkey) == (0xFFFFFF, 0x01234567)
    unseen = identifier.join(43, at("224.0.1.3"), 1)
    end.owner.remove_membership(unseen)
    assert not end.readable() and unseen.reported == 0
    for wrong in (at("10.0.0.1"), at("0.0.0.0")):
        with pytest.raises(OSError):
            identifier.join(44, wrong, 0)


# ---- two nodes ---------------------------------------------------------------


class Elsewhere(Source):
    def __init__(self, place: DirectoryPlace, address: IPv4Address) -> None:
        self._place, self._address = place, address

    def find(self, address: IPv4Address) -> DirectoryPlace | None:
        return self._place if address == self._address else None

    def address_of(self, node: str, tenant: str) -> IPv4Address | None:
        return None


FIRST = ConnectRequest(
    sender=2**62,
    service=Service(PS_TCP, at("192.0.2.1", 7000), Scope("tenant", 3)),
    source=at("::1", 5),
    gid=bytes(10) + b"\xff\xff\x0a\0\0\1",
    qp_type=QPT_RC,
    psn=77,
    parameters=Parameters(qp_num=17, private_data=b"hello", ece=(1, 2)),
)


@pytest.mark.parametrize(
    "message",
    [
        FIRST,
        replace(FIRST, service=replace(FIRST.service, scope=None)),
        ConnectReply(1, 2, FIRST.gid, 3, FIRST.parameters),
        Reject(0, 5, 8, b"no"),
        DisconnectRequest(1, 2),
        LookupRequest(1, FIRST.service, FIRST.source, FIRST.gid, b"x"),
        LookupReply(1, 2, 0, FIRST.gid, FIRST.parameters),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_travel_between_nodes(message: Message) -> None:
    assert decode(encode(message)) == message
    assert fits(message)


@pytest.mark.parametrize(
    "message",
    [
        replace(FIRST, gid=b"short"),
        replace(FIRST, psn=1 << 24),
        replace(FIRST, source=replace(FIRST.source, port=65536)),
        replace(FIRST, source=replace(FIRST.source, family=socket.AF_INET)),
        replace(FIRST, source=replace(FIRST.source, ip=ip_address("fe80::1%" + 5000 * "1"))),
        replace(FIRST, service=replace(FIRST.service, destination=at("fe80::1%eth0", 1))),
        replace(FIRST, parameters=Parameters(qp_num=1 << 24)),
        replace(FIRST, parameters=Parameters(private_data=bytes(57))),
        replace(FIRST, parameters=Parameters(initiator_depth=256)),
        replace(FIRST, parameters=Parameters(ece=(-1, 0))),
        Reject(0, 5, 8, bytes(149)),
        LookupReply(1, 2, -1, FIRST.gid, Parameters()),
    ],
    ids=lambda message: str(message)[:200],
)
def test_what_no_communication_manager_sends_is_refused(message: Message) -> None:
    assert not fits(message)


class Wire:
    """Links of which each carries when a test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, asyncio.Future[None]]] = []
        self.arrived: Counter[str] = Counter()
        self.most = 0

    async def request(self, node: str, _message: Message, _timeout: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((node, future))
        self.most = max(self.most, Counter(node for node, _ in self.waiting)[node])
        await future
        self.arrived[node] += 1

    def carry(self, node: str) -> None:
        for waiting in [one for one in self.waiting if one[0] == node]:
            self.waiting.remove(waiting)
            waiting[1].set_result(None)


class Undelivered:
    def __init__(self) -> None:
        self.messages: list[Message] = []

    def undelivered(self, message: Message) -> None:
        self.messages.append(message)


def test_thousands_of_messages_to_a_node_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        wire, lost = Wire(), Undelivered()
        link = Link(cast(Links, wire), Directory("one"))
        link._cm = cast(CommunicationManager, lost)
        for number in range(3000):
            link.send("two", DisconnectRequest(number, 1))
        link.send("three", DisconnectRequest(1, 1))
        while wire.arrived["two"] < 3000:
            await asyncio.sleep(0)
            wire.carry("two")
        assert wire.most == MAX_ON_THE_WAY and not lost.messages
        # Another node's are on their way meanwhile.
        assert [node for node, _ in wire.waiting] == ["three"]

        # Who doesn't answer keeps none for ever.
        monkeypatch.setattr("sluice.control.cm.link.PATIENCE", 0.01)
        for number in range(1000):
            link.send("four", DisconnectRequest(number, 1))
        while len(lost.messages) < 1000:
            await asyncio.sleep(0.001)
        wire.carry("three")
        while link._tasks:
            await asyncio.sleep(0)
        assert wire.arrived["three"] == 1

    asyncio.run(run())


def test_between_two_nodes(clock: Clock) -> None:
    one, two = Node(clock, "one"), Node(clock, "two")
    sent: list[Message] = []

    def link(source: str, target: Node) -> Callable[[str, Message], None]:
        def carry(node: str, message: Message) -> None:
            assert node == target.directory.node
            sent.append(message)
            clock.call_soon(target.cm.receive, source, message)

        return carry

    one.cm._link, two.cm._link = link("one", two), link("two", one)
    client, server = one.end(), two.end()
    there = server.owner.party.address
    one.directory.add_source(Elsewhere(DirectoryPlace("two", "t1"), there))
    active, passive = connect(client, server, listen(server), str(there))
    assert passive.destination_gid == client.owner.party.gid

    # A message that names the connection's ends but comes from elsewhere changes nothing.
    assert active.end is not None and isinstance(active.end.number, int)
    two.cm.receive("three", type(sent[-1])(sender=active.end.number, to=passive.end.number))  # type: ignore[call-arg, union-attr]
    assert server.events() == []

    one.cm.node_lost("two")
    assert client.events() == [(EventType.DISCONNECTED, -errno.ETIMEDOUT)]
    assert passive.end is not None and getattr(passive.end, "phase", None) is Phase.ESTABLISHED
    for end in (client, server):
        end.close()
