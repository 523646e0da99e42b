# SPDX-License-Identifier: Apache-2.0
"""rdma_cm with hosts behind the NIC: what tenants' ends say to the host's librdmacm, and what comes from there."""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from types import SimpleNamespace
from typing import Any

import pytest
from sluice.cluster.directory import Directory, ip_of
from sluice.control.cm import outside
from sluice.control.cm.address import SocketAddress, any_address, gid_of, socket_address
from sluice.control.cm.event import EventType
from sluice.control.cm.identifier import PS_TCP, PS_UDP, QPT_RC, QPT_UD, Identifier
from sluice.control.cm.manager import CommunicationManager
from sluice.control.cm.message import ConnectRequest, Service
from sluice.control.cm.outside import NODE, Outside
from sluice.control.cm.owner import Owner
from sluice.control.cm.parameters import Parameters
from sluice.control.cm.place import ClusterLocator, CmDevice, Party
from sluice.control.cm.qp_attributes import fill_qp_attributes
from sluice.control.connections import OpenGate
from sluice.control.qp_state import State
from sluice.device import rdmacm
from sluice.device.host import IP
from sluice.device.rdmacm import CmEvent, ConnParam
from sluice.engine import ffi

NIC, PEER, OWN = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.77"), IPv4Address("100.64.0.1")
SECOND_NIC, SECOND_PEER = IPv4Address("198.51.100.1"), IPv4Address("198.51.100.77")
NOTHING = ConnParam(b"", 0, 0, 0, 0, 0, False, 0)


NIC6, PEER6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::77")
NIC_LL, PEER_LL = IPv6Address("fe80::1%7"), IPv6Address("fe80::77%7")


class HostRealm:
    key = 1

    def has(self, ip: Any) -> bool:
        return bool(ip.is_loopback or ip in (NIC, NIC6, NIC_LL))


class Librdmacm:
    """In RdmaCm's place: remembers what was asked, and has the events that a test says."""

    made: "Librdmacm"

    def __init__(self) -> None:
        Librdmacm.made = self
        self.fd, self._bell = os.pipe()
        self._events: deque[CmEvent] = deque()
        self._next = 100
        self.ids: set[int] = set()
        self.ends: tuple[IP, IP] = (NIC, PEER)
        self.refuses: dict[IP, int] = {}
        self.calls: list[tuple[Any, ...]] = []

    def put(self, identifier: int, event: int, status: int = 0, param: ConnParam = NOTHING, listener: int = 0) -> None:
        self._events.append(CmEvent(identifier, event, status, param, listener))
        os.write(self._bell, b"!")

    def waiting(self, identifier: int) -> bool:
        return any(event.id == identifier for event in self._events)

    def next_event(self) -> CmEvent | None:
        if not self._events:
            return None
        os.read(self.fd, 1)
        return self._events.popleft()

    def create(self, port_space: int = PS_TCP) -> int:
        self._next += 1
        self.ids.add(self._next)
        return self._next

    def destroy(self, identifier: int) -> None:
        self.ids.remove(identifier)

    def listen(self, identifier: int, address: IP, port: int, backlog: int) -> None:
        if address in self.refuses:
            raise OSError(self.refuses[address], "refused")
        self.calls.append(("listen", identifier, address, port, backlog))

    def addresses(self, _identifier: int) -> tuple[tuple[IP, int], tuple[IP, int]]:
        # The kernel leaves out on which link a request came.
        own, peer = (ip_of(gid_of(end)) for end in self.ends)
        return (own, 7174), (peer, 40000)

    def gids(self, _identifier: int) -> tuple[bytes, bytes]:
        return gid_of(self.ends[0]), gid_of(self.ends[1])

    def qp_attributes(self, _identifier: int, state: int) -> Any:
        return SimpleNamespace(sq_psn=11, timeout=17) if state == rdmacm.RTS else SimpleNamespace(rq_psn=22, path_mtu=3)

    def close(self) -> None:
        assert not self.ids
        os.close(self.fd)
        os.close(self._bell)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((name, *arguments))


class Bench:
    """A tenant of the host's namespace, on a node with two NICs. has: those of its devices."""

    def __init__(self, has: tuple[IPv4Address, ...] = (NIC,)) -> None:
        loop = asyncio.get_running_loop()
        self.second = Outside("mlx5_1", lambda: [SECOND_NIC])
        self.second_host = Librdmacm.made
        self.addresses: list[IP] = [NIC]
        self.outside = Outside("mlx5_0", lambda: self.addresses)
        directory, realm = Directory(), HostRealm()
        directory.assign(0, "a", OWN)
        locator = ClusterLocator(directory, realm, outside=lambda ip: self.cm.way_out(ip))
        self.cm = CommunicationManager(locator, realm, OpenGate(), loop, outside=[self.outside, self.second])
        self.outside.attach(self.cm)
        self.second.attach(self.cm)
        ipv6 = {NIC: (gid_of(NIC6), gid_of(NIC_LL))}
        devices = tuple(CmDevice(number, (gid_of(own), *ipv6.get(own, ()))) for number, own in enumerate(has))
        self.owner = Owner(self.cm, Party(0, OWN, realm, devices))
        self.channel, _ = self.owner.create_channel()
        self.host = Librdmacm.made

    def create(self, port_space: int = PS_TCP, qp_type: int = QPT_RC) -> Identifier:
        return self.owner.create_id(1, self.channel, port_space, qp_type)

    async def event(self) -> Any:
        for _ in range(200):
            try:
                return self.owner.next_event(self.channel)
            except OSError as error:
                assert error.errno == errno.EAGAIN
            await asyncio.sleep(0)
        raise AssertionError("no event came")

    async def read(self, identifier: int) -> None:
        """The id's first event has been read."""
        while self.host.waiting(identifier):
            await asyncio.sleep(0)

    async def called(self, name: str) -> tuple[Any, ...]:
        for _ in range(200):
            for call in self.host.calls:
                if call[0] == name:
                    self.host.calls.remove(call)
                    return call
            await asyncio.sleep(0)
        raise AssertionError(f"{name} was not called: {self.host.calls}")

    def attributes(self, identifier: Identifier, state: int) -> Any:
        attr = ffi.new("struct sluice_qp_attr *")
        fill_qp_attributes(identifier, state, attr)
        return attr

    def close(self) -> None:
        self.owner.close()
        self.outside.close()
        self.second.close()


def on_a_bench(
    monkeypatch: pytest.MonkeyPatch,
    test: Callable[[Bench], Coroutine[Any, Any, None]],
    has: tuple[IPv4Address, ...] = (NIC,),
) -> None:
    monkeypatch.setattr(outside, "RdmaCm", Librdmacm)
    routes: dict[IP, IP] = {SECOND_PEER: SECOND_NIC, PEER: NIC, NIC: NIC, PEER6: NIC6, PEER_LL: NIC_LL}
    monkeypatch.setattr(outside, "LINGER_SECONDS", 0.0)
    monkeypatch.setattr(outside, "source_to", routes.get)

    async def run() -> None:
        bench = Bench(has)
        try:
            await test(bench)
        finally:
            bench.close()

    asyncio.run(run())


async def ask(bench: Bench, peer: IP = PEER) -> tuple[Identifier, int]:
    """A tenant's id that has asked the peer, and the host's id for it."""
    identifier = bench.create()
    identifier.resolve_address(None, socket_address(peer, 7174))
    assert (await bench.event()).event.type is EventType.ADDR_RESOLVED
    identifier.resolve_route()
    assert (await bench.event()).event.type is EventType.ROUTE_RESOLVED
    identifier.connect(Parameters(qp_num=5, private_data=b"hello", initiator_depth=1, responder_resources=2))
    _, number, address, port, _ = await bench.called("resolve_address")
    assert (address, port) == (peer, 7174)
    bench.host.put(number, rdmacm.ADDR_RESOLVED)
    await bench.called("resolve_route")
    bench.host.put(number, rdmacm.ROUTE_RESOLVED)
    _, _, param = await bench.called("connect")
    assert param.qp_num == 5 and param.private_data == b"hello"
    return identifier, number


def test_a_tenant_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        identifier, number = await ask(bench)
        bench.host.put(number, rdmacm.CONNECT_RESPONSE, 0, ConnParam(b"welcome", 2, 1, 0, 0, 7, False, 99))
        event = (await bench.event()).event
        assert event.type is EventType.CONNECT_RESPONSE and event.parameters.private_data.startswith(b"welcome")
        rtr, rts = bench.attributes(identifier, State.RTR), bench.attributes(identifier, State.RTS)
        assert (rtr.dest_qp_num, rtr.rq_psn, rtr.path_mtu, rtr.ah.sgid_index) == (99, 22, 3, 0)
        assert bytes(ffi.buffer(rtr.ah.dgid)) == gid_of(PEER)
        assert (rts.sq_psn, rts.timeout, rts.rnr_retry) == (11, 17, 7)
        identifier.ready()
        await bench.called("establish")
        identifier.disconnect()
        await bench.called("disconnect")
        bench.host.put(number, rdmacm.DISCONNECTED)
        assert (await bench.event()).event.type is EventType.DISCONNECTED
        assert number not in bench.host.ids

    on_a_bench(monkeypatch, test)


def test_each_nic_has_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        identifier = bench.create()
        identifier.resolve_address(None, SocketAddress(socket.AF_INET, SECOND_PEER, 7174))
        assert (await bench.event()).event.type is EventType.ADDR_RESOLVED
        assert identifier.device.number == 1
        identifier.resolve_route()
        await bench.event()
        identifier.connect(Parameters(qp_num=5))
        first, bench.host = bench.host, bench.second_host
        _, number, address, _, _ = await bench.called("resolve_address")
        assert address == SECOND_PEER and not any(call[0] == "resolve_address" for call in first.calls)
        bench.host.put(number, rdmacm.ADDR_RESOLVED)
        bench.host.put(number, rdmacm.ROUTE_RESOLVED)
        await bench.called("connect")
        # The first NIC goes, which is nothing to this one.
        bench.outside.suspend()
        bench.host.put(number, rdmacm.REJECTED, 28)
        assert (await bench.event()).event.type is EventType.REJECTED
        here = bench.create()
        here.resolve_address(None, SocketAddress(socket.AF_INET, NIC, 7174))
        assert (await bench.event()).event.type is EventType.ADDR_RESOLVED and here.device.number == 0

    on_a_bench(monkeypatch, test, has=(NIC, SECOND_NIC))


def test_a_nic_that_a_tenant_has_no_part_in_leads_it_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        identifier = bench.create()
        identifier.resolve_address(None, SocketAddress(socket.AF_INET, SECOND_PEER, 7174))
        assert (await bench.event()).event.type is EventType.ADDR_ERROR
        bound = bench.create()
        bound.bind(SocketAddress(socket.AF_INET, NIC, 7175))
        bound.resolve_address(None, SocketAddress(socket.AF_INET, SECOND_PEER, 7174))
        assert (await bench.event()).event.type is EventType.ADDR_ERROR
        listener = bench.create()
        listener.bind(any_address(socket.AF_INET).with_port(7174))
        listener.listen(0)
        service = Service(PS_TCP, SocketAddress(socket.AF_INET, SECOND_NIC, 7174), None)
        source = SocketAddress(socket.AF_INET, SECOND_PEER, 9)
        request = ConnectRequest(1, service, source, gid_of(SECOND_PEER), QPT_RC, 7, Parameters(qp_num=5))
        assert not listener.incoming(bench.second.node, request)

    on_a_bench(monkeypatch, test)


async def ask_for_datagrams(bench: Bench) -> int:
    identifier = bench.create(PS_UDP, QPT_UD)
    identifier.resolve_address(None, SocketAddress(socket.AF_INET, PEER, 7174))
    await bench.event()
    identifier.resolve_route()
    await bench.event()
    identifier.connect(Parameters(private_data=b"who?"))
    _, number, _, _, _ = await bench.called("resolve_address")
    bench.host.put(number, rdmacm.ADDR_RESOLVED)
    bench.host.put(number, rdmacm.ROUTE_RESOLVED)
    _, _, param = await bench.called("connect")
    assert param.private_data == b"who?"
    return int(number)


def test_a_tenant_asks_for_datagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        number = await ask_for_datagrams(bench)
        bench.host.put(number, rdmacm.ESTABLISHED, 0, replace(NOTHING, private_data=b"me", qp_num=99, qkey=5))
        found = await bench.event()
        assert found.event.type is EventType.ESTABLISHED and found.event.gid == gid_of(PEER)
        assert (found.event.parameters.qp_num, found.event.parameters.qkey) == (99, 5)
        assert found.about.end.source == gid_of(NIC)
        assert number not in bench.host.ids

    on_a_bench(monkeypatch, test)


@pytest.mark.parametrize(("status", "told"), [(2, 2), (-errno.ETIMEDOUT, -errno.ETIMEDOUT)])
def test_a_datagram_service_that_isnt_there(monkeypatch: pytest.MonkeyPatch, status: int, told: int) -> None:
    async def test(bench: Bench) -> None:
        number = await ask_for_datagrams(bench)
        bench.host.put(number, rdmacm.UNREACHABLE, status)
        event = (await bench.event()).event
        assert event.type is EventType.UNREACHABLE and event.status == told
        assert number not in bench.host.ids

    on_a_bench(monkeypatch, test)


def test_a_host_asks_for_datagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        listener = bench.create(PS_UDP, QPT_UD)
        listener.bind(any_address(socket.AF_INET).with_port(7174))
        listener.listen(0)
        _, listening, address, port, _ = await bench.called("listen")
        assert (address, port) == (NIC, 7174)
        for asked in (7, 8):
            bench.host.ids.add(asked)
            question = replace(NOTHING, private_data=b"who?")
            bench.host.put(asked, rdmacm.CONNECT_REQUEST, 0, question, listening)
            queued = await bench.event()
            assert queued.event.type is EventType.CONNECT_REQUEST
            assert queued.event.parameters.private_data.startswith(b"who?")
            child = queued.child
            if asked == 7:
                child.accept(2, Parameters(qp_num=5, private_data=b"me"))
                _, number, param = await bench.called("accept")
                assert (param.qp_num, param.private_data) == (5, b"me")
            else:
                child.reject(28, b"no")
                _, number, data = await bench.called("reject")
                assert data == b"no"
            assert number == asked and asked not in bench.host.ids

    on_a_bench(monkeypatch, test)


def test_a_nodes_address_is_its_nics_where_it_has_one() -> None:
    plain, with_nic = IPv4Address("192.0.2.2"), IPv4Address("192.0.2.3")
    nodes = {plain: "beta", with_nic: "gamma"}

    def there(outside: str | None) -> list[str | None]:
        locator = ClusterLocator(Directory(), HostRealm(), nodes.get, lambda _: outside, lambda ip: ip == with_nic)
        places = [locator.locate(address, None) for address in (plain, with_nic, PEER)]
        return [None if place is None else place.node for place in places]

    assert there(NODE) == ["beta", NODE, NODE]
    assert there(None) == ["beta", "gamma", None]


@pytest.mark.parametrize(
    ("event", "status", "expected"),
    [
        (rdmacm.REJECTED, 28, EventType.REJECTED),
        (rdmacm.UNREACHABLE, -110, EventType.UNREACHABLE),
        (rdmacm.DEVICE_REMOVAL, 0, EventType.UNREACHABLE),
    ],
)
def test_nobody_is_there(monkeypatch: pytest.MonkeyPatch, event: int, status: int, expected: EventType) -> None:
    async def test(bench: Bench) -> None:
        _, number = await ask(bench)
        bench.host.put(number, event, status)
        assert (await bench.event()).event.type is expected
        assert number not in bench.host.ids

    on_a_bench(monkeypatch, test)


async def listen(bench: Bench) -> Identifier:
    identifier = bench.create()
    identifier.bind(any_address(socket.AF_INET).with_port(7174))
    identifier.listen(0)
    _, _, address, port, _ = await bench.called("listen")
    assert (address, port) == (NIC, 7174)
    return identifier


def test_a_host_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        await listen(bench)
        (listening,) = bench.host.ids
        number = bench.host.create()
        bench.host.put(number, rdmacm.CONNECT_REQUEST, 0, ConnParam(b"hello", 3, 4, 0, 7, 7, False, 77), listening)
        queued = await bench.event()
        child = queued.child
        assert queued.event.type is EventType.CONNECT_REQUEST and child is not None
        assert (queued.event.parameters.responder_resources, queued.event.parameters.initiator_depth) == (3, 4)
        assert child.destination is not None and child.destination.ip == PEER
        rtr, rts = bench.attributes(child, State.RTR), bench.attributes(child, State.RTS)
        assert (rtr.dest_qp_num, rtr.rq_psn, rtr.ah.sgid_index, rts.sq_psn) == (77, 22, 0, 11)
        child.accept(2, Parameters(qp_num=6))
        assert (await bench.called("accept"))[2].qp_num == 6
        bench.host.put(number, rdmacm.ESTABLISHED)
        assert (await bench.event()).event.type is EventType.ESTABLISHED
        bench.host.put(number, rdmacm.DISCONNECTED)
        assert (await bench.event()).event.type is EventType.DISCONNECTED
        child.disconnect()
        await bench.called("disconnect")

    on_a_bench(monkeypatch, test)


@pytest.mark.parametrize("verb", ["accept", "reject", "disconnect"])
def test_nothing_is_left_of_what_librdmacm_refuses(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    async def test(bench: Bench) -> None:
        def refuse(*_arguments: Any) -> None:
            raise OSError(errno.EINVAL, "refused")

        await listen(bench)
        (listening,) = bench.host.ids
        number = bench.host.create()
        bench.host.put(number, rdmacm.CONNECT_REQUEST, 0, NOTHING, listening)
        child = (await bench.event()).child
        assert child is not None
        if verb == "disconnect":
            child.accept(2, Parameters())
            bench.host.put(number, rdmacm.ESTABLISHED)
            assert (await bench.event()).event.type is EventType.ESTABLISHED
        monkeypatch.setattr(bench.host, verb, refuse, raising=False)
        if verb == "accept":
            child.accept(2, Parameters())
            assert (await bench.event()).event.type is EventType.UNREACHABLE
        elif verb == "reject":
            child.reject(28, b"")
        else:
            child.disconnect()
            assert (await bench.event()).event.type is EventType.DISCONNECTED
        while number in bench.host.ids:
            await asyncio.sleep(0)
        assert not bench.outside._by_id and not bench.outside._by_number and not bench.outside._by_end

    on_a_bench(monkeypatch, test)


def test_nobody_listens_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        identifier = await listen(bench)
        assert len(bench.host.ids) == 1
        bench.owner.remove(identifier)
        while bench.host.ids:
            await asyncio.sleep(0)

    on_a_bench(monkeypatch, test)


def test_who_asks_a_server_that_begins_anew_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        monkeypatch.setattr(outside, "LINGER_SECONDS", 3600.0)
        bench.owner.remove(await listen(bench))
        (listening,) = bench.host.ids
        number = bench.host.create()
        bench.host.put(number, rdmacm.CONNECT_REQUEST, 0, replace(NOTHING, qp_num=77), listening)
        await bench.read(number)
        again = bench.create()
        again.bind(any_address(socket.AF_INET).with_port(7174))
        again.listen(0)
        event = await bench.event()
        assert event.event.type is EventType.CONNECT_REQUEST and event.about is again

    on_a_bench(monkeypatch, test)


@pytest.mark.parametrize(("nic", "peer"), [(NIC6, PEER6), (NIC_LL, PEER_LL)])
def test_ipv6(monkeypatch: pytest.MonkeyPatch, nic: IP, peer: IP) -> None:
    async def test(bench: Bench) -> None:
        bench.addresses += [NIC6, NIC_LL]
        bench.host.ends = nic, peer
        identifier, number = await ask(bench, peer)
        bench.host.put(number, rdmacm.CONNECT_RESPONSE, 0, replace(NOTHING, qp_num=99))
        assert (await bench.event()).event.type is EventType.CONNECT_RESPONSE
        rtr = bench.attributes(identifier, State.RTR)
        assert bench.owner.party.devices[0].nic_gids[rtr.ah.sgid_index] == gid_of(nic)
        assert bytes(ffi.buffer(rtr.ah.dgid)) == gid_of(peer)
        listener = bench.create()
        listener.bind(socket_address(nic, 7174))
        listener.listen(0)
        while (listening := await bench.called("listen"))[2] != nic:
            pass
        asking = bench.host.create()
        bench.host.put(asking, rdmacm.CONNECT_REQUEST, 0, replace(NOTHING, qp_num=77), listening[1])
        child = (await bench.event()).child
        assert child is not None
        assert child.source == socket_address(nic, 7174) and child.destination == socket_address(peer, 40000)

    on_a_bench(monkeypatch, test)


def test_a_link_local_address_needs_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        bench.addresses += [NIC6, NIC_LL]
        for there in (IPv6Address("fe80::77"), IPv6Address("fe80::77%8")):
            identifier = bench.create()
            identifier.resolve_address(None, socket_address(there, 7174))
            assert (await bench.event()).event.type is EventType.ADDR_ERROR
        with pytest.raises(OSError) as refused:
            bench.create().bind(socket_address(IPv6Address("fe80::1"), 7174))
        assert refused.value.errno == errno.EINVAL

    on_a_bench(monkeypatch, test)


def test_addresses_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        bench.addresses.append(NIC6)
        bench.host.refuses[NIC6] = errno.ENODEV  # looked for by others yet (RFC 4862, 5.4)
        await listen(bench)
        assert len(bench.host.ids) == 1
        del bench.host.refuses[NIC6]
        bench.outside.renew()
        assert (await bench.called("listen"))[2] == NIC6 and len(bench.host.ids) == 2
        bench.outside.renew()
        assert len(bench.host.ids) == 2
        bench.addresses.remove(NIC)
        bench.outside.renew()
        assert len(bench.host.ids) == 1

    on_a_bench(monkeypatch, test)


def test_a_port_that_another_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        bench.addresses.append(NIC6)
        bench.host.refuses[NIC6] = errno.EADDRINUSE
        identifier = bench.create()
        identifier.bind(any_address(socket.AF_INET6).with_port(7174))
        with pytest.raises(OSError) as refused:
            identifier.listen(0)
        assert refused.value.errno == errno.EADDRINUSE and not bench.host.ids

    on_a_bench(monkeypatch, test)


def test_a_device_that_goes_and_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        await listen(bench)
        await ask(bench)
        bench.outside.suspend()
        assert (await bench.event()).event.type is EventType.UNREACHABLE
        assert not bench.host.ids
        bench.outside.resume()
        bench.host = Librdmacm.made
        assert (await bench.called("listen"))[2:4] == (NIC, 7174)

    on_a_bench(monkeypatch, test)
