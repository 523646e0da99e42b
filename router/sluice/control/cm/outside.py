# SPDX-License-Identifier: Apache-2.0
"""Hosts behind a NIC of the node, which run no Sluice: their connection managers, by librdmacm.

To the communication manager all behind one NIC are a node like any other, which sends and takes the messages of
message.py. Each of its connections is an id of librdmacm's, without a queue pair: the tenant's has the NIC's number,
and goes to RTR and RTS itself, with what the id says. So is each question for a datagram service, until it is answered.
"""

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

from sluice.control.cm.address import SocketAddress, gid_of, socket_address
from sluice.control.cm.message import (
    ConnectReply,
    ConnectRequest,
    DisconnectReply,
    DisconnectRequest,
    LookupReply,
    LookupRequest,
    LookupStatus,
    Message,
    ReadyToUse,
    Reject,
    Service,
)
from sluice.control.cm.parameters import Parameters
from sluice.device import rdmacm
from sluice.device.host import IP, interface_of, on_interface, source_to
from sluice.device.rdmacm import CmEvent, ConnParam, RdmaCm

if TYPE_CHECKING:
    from sluice.control.cm.manager import CommunicationManager

log = logging.getLogger(__name__)

NODE = "\0outside "
"""And the NIC's name: no node of a cluster has such a name."""
QPT_RC = 2
RESOLVE_MS = 2000
LINGER_SECONDS = 1.0
"""For how long the port of the last listener that left is kept, and who asks there waits: a server may begin anew
(perftest does, for each of its connections), of which its peer doesn't know, and the kernel refuses at once what nobody
listens to."""
BACKLOG = 128


@dataclass(frozen=True)
class Path:
    """What the NIC's way to a peer demands of a queue pair beside what the messages say."""

    sq_psn: int
    mtu: int
    timeout: int
    source: bytes
    """The NIC's GID that it starts from."""


class Call:
    """One connection, or one that is to be. number: by which its messages go; end: of the tenant's end, 0: unknown."""

    def __init__(self, identifier: int, number: int, request: ConnectRequest | LookupRequest | None) -> None:
        self.id = identifier
        self.number = number
        self.request = request
        self.end = 0 if request is None else request.sender
        self.leaving = False
        self.path: Path | None = None


class Outside:
    """nic: its name. addresses: its own.

    Make it inside a running event loop; close it there too. OSError: no librdmacm.
    """

    def __init__(self, nic: str, addresses: Callable[[], Sequence[IP]]) -> None:
        self.node = NODE + nic
        self._addresses = addresses
        self._by_id: dict[int, Call] = {}
        self._by_number: dict[int, Call] = {}
        self._by_end: dict[int, Call] = {}
        self._ports: Counter[tuple[int, int]] = Counter()
        """By port space and port."""
        self._listeners: dict[tuple[int, int], dict[int, IP]] = {}
        """Its ids, and which of the NIC's addresses each is at."""
        self._renewed: list[IP] = []
        """The NIC's addresses, when they were last looked at."""
        self._leaving: dict[tuple[int, int], asyncio.TimerHandle] = {}
        """Of ports that nobody listens on any more: when they are given up."""
        self._held: dict[tuple[int, int], list[Callable[[], None]]] = {}
        """Requests that came there meanwhile."""
        self._numbers = 0
        self._cm: CommunicationManager | None = None
        self._host: RdmaCm | None = None
        self.resume()

    def attach(self, cm: "CommunicationManager") -> None:
        self._cm = cm

    def is_own(self, address: IP) -> bool:
        """Whether it is the NIC's."""
        return address in self._addresses()

    def leads_to(self, address: IP) -> bool:
        """Whether the host's routes to this address start from the NIC."""
        source = source_to(address)
        return source is not None and self.is_own(source)

    def has_gid(self, gid: bytes) -> bool:
        """The same of a GID."""
        return any(gid_of(address) == gid for address in self._addresses())

    def path(self, number: int) -> Path | None:
        """Of a connection that the other end calls so."""
        call = self._by_number.get(number)
        return None if call is None else call.path

    # ---- the device ------------------------------------------------------------

    def suspend(self) -> None:
        """The device goes: nothing of ours may keep it."""
        if self._host is None:
            return
        for call in list(self._by_id.values()):
            self._lost(call)
        self._held.clear()
        for timer in self._leaving.values():
            timer.cancel()
        self._leaving.clear()
        for service in list(self._listeners):
            self._stop(service)
        asyncio.get_running_loop().remove_reader(self._host.fd)
        self._host.close()
        self._host = None

    def resume(self) -> None:
        """It is there: who listened listens again."""
        self._host = RdmaCm()
        asyncio.get_running_loop().add_reader(self._host.fd, self._on_events)
        addresses = self._listenable()
        for service in self._ports:
            try:
                self._start(service, addresses)
            except OSError as error:
                log.warning("port %d of the NIC's addresses: %s", service[1], error.strerror)

    def close(self) -> None:
        self.suspend()

    # ---- listening ---------------------------------------------------------------

    def listen(self, port_space: int, port: int) -> None:
        """Another listener on this port, at all addresses that the NIC has and will have.

        OSError EADDRINUSE: some other program of the host has it.
        """
        service = (port_space, port)
        if service in self._leaving:
            self._leaving.pop(service).cancel()
            asyncio.get_running_loop().call_soon(self._release, service)
        elif self._ports[service] == 0 and self._host is not None:
            try:
                self._start(service, self._listenable())
            except OSError:
                self._stop(service)
                raise
        self._ports[service] += 1

    def leave(self, port_space: int, port: int) -> None:
        service = (port_space, port)
        self._ports[service] -= 1
        if self._ports[service] <= 0:
            del self._ports[service]
            timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._give_up, service)
            self._leaving[service] = timer

    def _give_up(self, service: tuple[int, int]) -> None:
        del self._leaving[service]
        self._release(service)
        self._stop(service)

    def _release(self, service: tuple[int, int]) -> None:
        for deliver in self._held.pop(service, ()):
            deliver()

    def renew(self) -> None:
        """The NIC's addresses may be others by now."""
        if self._host is None:
            return
        addresses = self._listenable()
        same = addresses == self._renewed
        self._renewed = addresses
        for service in self._ports:
            # One that was refused is tried again.
            if same and len(self._listeners[service]) == len(addresses):
                continue
            try:
                self._start(service, addresses)
            except OSError as error:
                log.info("port %d of the NIC's addresses: %s", service[1], error.strerror)

    def _listenable(self) -> list[IP]:
        """A link-local address is one only with its interface, which the kernel may not know at the moment."""
        return [
            address
            for address in self._addresses()
            if isinstance(address, IPv4Address) or not address.is_link_local or interface_of(address)
        ]

    def _start(self, service: tuple[int, int], addresses: list[IP]) -> None:
        """Listens where it doesn't yet, and no longer where the NIC no longer is.

        OSError: an address refused; the others listen nevertheless.
        """
        at = self._listeners.setdefault(service, {})
        for identifier in [identifier for identifier, address in at.items() if address not in addresses]:
            self._end_listener(at, identifier)
        new = [address for address in addresses if address not in at.values()]
        refusal: OSError | None = None
        for address in new:
            try:
                self._listen_at(service, at, address)
            except OSError as error:
                refusal = error
        if refusal is not None:
            raise refusal

    def _listen_at(self, service: tuple[int, int], at: dict[int, IP], address: IP) -> None:
        """Does nothing where the kernel has the address no longer or, while it looks for others with it, not yet."""
        assert self._host is not None
        identifier = self._host.create(service[0])
        at[identifier] = address
        try:
            self._host.listen(identifier, address, service[1], BACKLOG)
        except OSError as error:
            self._end_listener(at, identifier)
            if error.errno not in (errno.ENODEV, errno.EADDRNOTAVAIL):
                raise

    def _end_listener(self, at: dict[int, IP], identifier: int) -> None:
        assert self._host is not None
        del at[identifier]
        self._host.destroy(identifier)

    def _stop(self, service: tuple[int, int]) -> None:
        at = self._listeners.pop(service, {})
        for identifier in list(at):
            self._end_listener(at, identifier)

    # ---- what tenants' ends send ---------------------------------------------------

    def send(self, message: Message) -> None:
        """A message for a host out there. What can't be said to it is as if it didn't answer."""
        try:
            self._say(message)
        except OSError as error:
            log.info("rdma_cm: %s: %s", type(message).__name__, error.strerror)
            assert self._cm is not None
            self._cm.undelivered(message)

    def _say(self, message: Message) -> None:
        assert self._cm is not None
        if isinstance(message, ConnectRequest | LookupRequest):
            self._request(message)
            return
        call = self._by_number.get(message.to) or self._by_end.get(message.sender)
        if call is None or self._host is None:
            return
        try:
            self._say_in(call, self._host, message)
        except OSError:
            # The tenant's end hears that it is lost, and has nothing more to say.
            self._forget(call)
            raise

    def _say_in(self, call: Call, host: RdmaCm, message: Message) -> None:
        match message:
            case ConnectReply():
                call.end = message.sender
                self._by_end[call.end] = call
                host.accept(call.id, _to_host(message.parameters))
            case LookupReply():
                if message.status == LookupStatus.SUCCESS:
                    host.accept(call.id, _to_host(message.parameters))
                else:
                    host.reject(call.id, message.parameters.private_data)
                self._forget(call)
            case ReadyToUse():
                host.establish(call.id)
            case Reject():
                if call.request is None:
                    host.reject(call.id, message.private_data)
                self._forget(call)
            case DisconnectRequest():
                call.leaving = True
                host.disconnect(call.id)
            case DisconnectReply():
                host.disconnect(call.id)
                self._forget(call)

    def _request(self, request: ConnectRequest | LookupRequest) -> None:
        address = request.service.destination.plain
        if self._host is None or (isinstance(request, ConnectRequest) and request.qp_type != QPT_RC):
            raise OSError(0, "only RC and datagrams")
        # By another NIC since, the library would keep that one's device open, and so the kernel from removing it.
        if not self.leads_to(address):
            raise OSError(0, "this NIC doesn't lead there")
        port_space = rdmacm.PS_UDP if isinstance(request, LookupRequest) else rdmacm.PS_TCP
        call = self._add(self._host.create(port_space), request)
        try:
            self._host.resolve_address(call.id, address, request.service.destination.port, RESOLVE_MS)
        except OSError:
            self._forget(call)
            raise

    # ---- calls -------------------------------------------------------------------

    def _add(self, identifier: int, request: ConnectRequest | LookupRequest | None) -> Call:
        self._numbers += 1
        call = Call(identifier, self._numbers, request)
        self._by_id[identifier] = call
        self._by_number[call.number] = call
        if call.end:
            self._by_end[call.end] = call
        return call

    def _forget(self, call: Call) -> None:
        """Its id goes later: an event of it may be at hand."""
        self._by_id.pop(call.id, None)
        self._by_number.pop(call.number, None)
        self._by_end.pop(call.end, None)
        if self._host is not None:
            self._host.destroy(call.id)

    def _lost(self, call: Call) -> None:
        assert self._cm is not None
        self._forget(call)
        self._cm.lost(call.end)

    # ---- what hosts send -----------------------------------------------------------

    def _on_events(self) -> None:
        while self._host is not None and (event := self._host.next_event()) is not None:
            try:
                self._on_event(event)
            except OSError as error:
                log.info("rdma_cm: event %d of a host behind the NIC: %s", event.event, error.strerror)
                call = self._by_id.get(event.id)
                if call is not None:
                    self._lost(call)

    def _on_event(self, event: CmEvent) -> None:
        assert self._cm is not None and self._host is not None
        if event.event == rdmacm.CONNECT_REQUEST:
            self._on_request(event)
            return
        call = self._by_id.get(event.id)
        if call is None:
            return
        match event.event:
            case rdmacm.ADDR_RESOLVED:
                self._host.resolve_route(call.id, RESOLVE_MS)
            case rdmacm.ROUTE_RESOLVED:
                self._ask(call)
            case rdmacm.CONNECT_RESPONSE:
                attr = self._learn(call)
                _, gid = self._host.gids(call.id)
                parameters = _from_host(event.param)
                self._cm.receive(self.node, ConnectReply(call.number, call.end, gid, attr.rq_psn, parameters))
            case rdmacm.ESTABLISHED if isinstance(call.request, LookupRequest):
                self._found(call, event)
            case rdmacm.UNREACHABLE if isinstance(call.request, LookupRequest) and event.status > 0:
                # Somebody is there, and says why it isn't the service.
                end = call.end
                self._forget(call)
                refusal = LookupReply(call.number, end, event.status, bytes(16), Parameters())
                self._cm.receive(self.node, refusal)
            case rdmacm.ESTABLISHED:
                self._cm.receive(self.node, ReadyToUse(call.number, call.end))
            case rdmacm.REJECTED:
                end = call.end
                self._forget(call)
                self._cm.receive(self.node, Reject(call.number, end, event.status, event.param.private_data))
            case rdmacm.DISCONNECTED:
                if call.leaving:
                    end = call.end
                    self._forget(call)
                    self._cm.receive(self.node, DisconnectReply(call.number, end))
                else:
                    self._cm.receive(self.node, DisconnectRequest(call.number, call.end))
            case (
                rdmacm.ADDR_ERROR
                | rdmacm.ROUTE_ERROR
                | rdmacm.CONNECT_ERROR
                | rdmacm.UNREACHABLE
                | rdmacm.DEVICE_REMOVAL
            ):
                self._lost(call)

    def _ask(self, call: Call) -> None:
        assert self._host is not None and call.request is not None
        if isinstance(call.request, LookupRequest):
            parameters = Parameters(private_data=call.request.private_data)
        else:
            parameters = call.request.parameters
        self._host.connect(call.id, _to_host(parameters))

    def _found(self, call: Call, event: CmEvent) -> None:
        """The queue pair of a datagram service, and the way there."""
        assert self._cm is not None and self._host is not None
        source, gid = self._host.gids(call.id)
        call.path = Path(0, 0, 0, source)
        parameters = Parameters(qp_num=event.param.qp_num, qkey=event.param.qkey, private_data=event.param.private_data)
        reply = LookupReply(call.number, call.end, LookupStatus.SUCCESS, gid, parameters)
        self._cm.receive(self.node, reply)
        self._forget(call)

    def _learn(self, call: Call) -> Any:
        """What the queue pair needs; a struct ibv_qp_attr for RTR."""
        assert self._host is not None
        to_send = self._host.qp_attributes(call.id, rdmacm.RTS)
        to_receive = self._host.qp_attributes(call.id, rdmacm.RTR)
        source, _ = self._host.gids(call.id)
        call.path = Path(to_send.sq_psn, to_receive.path_mtu, to_send.timeout, source)
        return to_receive

    def _on_request(self, event: CmEvent) -> None:
        assert self._cm is not None and self._host is not None
        call = self._add(event.id, None)
        port_space, own, peer = self._ends(event)
        service = Service(port_space, own, None)
        request: ConnectRequest | LookupRequest
        if port_space == rdmacm.PS_UDP:
            # Such a request doesn't make the host look for who asks, whose GID is his address.
            request = LookupRequest(call.number, service, peer, gid_of(peer.plain), event.param.private_data)
        else:
            attr = self._learn(call)
            _, gid = self._host.gids(call.id)
            parameters = _from_host(event.param)
            request = ConnectRequest(call.number, service, peer, gid, QPT_RC, attr.rq_psn, parameters)
        if (port_space, own.port) in self._leaving:
            self._held.setdefault((port_space, own.port), []).append(partial(self._deliver, call, request))
        else:
            self._deliver(call, request)

    def _deliver(self, call: Call, request: ConnectRequest | LookupRequest) -> None:
        assert self._cm is not None
        if call.id in self._by_id:
            self._cm.receive(self.node, request)

    def _ends(self, event: CmEvent) -> tuple[int, SocketAddress, SocketAddress]:
        """Of a request: the port space of whom it is for, who that is, and who asks. OSError: he has just left."""
        assert self._host is not None
        (own, own_port), (peer, peer_port) = self._host.addresses(event.id)
        for (port_space, _), at in self._listeners.items():
            if event.listener in at:
                # The kernel doesn't say on which link a link-local address was asked for.
                own = at[event.listener]
                if isinstance(peer, IPv6Address) and isinstance(own, IPv6Address):
                    peer = on_interface(peer, interface_of(own))
                return port_space, socket_address(own, own_port), socket_address(peer, peer_port)
        raise OSError(errno.ECONNREFUSED, "nobody listens there any more")


def _to_host(parameters: Parameters) -> ConnParam:
    return ConnParam(
        parameters.private_data,
        parameters.responder_resources,
        parameters.initiator_depth,
        parameters.flow_control,
        parameters.retry_count,
        parameters.rnr_retry_count,
        parameters.srq,
        parameters.qp_num,
    )


def _from_host(param: ConnParam) -> Parameters:
    """Events are in the receiver's terms, messages in the sender's."""
    return Parameters(
        qp_num=param.qp_num,
        srq=param.srq,
        responder_resources=param.initiator_depth,
        initiator_depth=param.responder_resources,
        flow_control=param.flow_control,
        retry_count=param.retry_count,
        rnr_retry_count=param.rnr_retry_count,
        private_data=param.private_data,
    )
