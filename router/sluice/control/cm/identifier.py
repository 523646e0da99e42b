# SPDX-License-Identifier: Apache-2.0
"""An rdma_cm_id: its state, its two addresses, its connection, and the events about it."""

import errno
import secrets
import socket
import sys
from enum import Enum, auto
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from sluice.control.cm.address import SocketAddress, any_address, gid_of, loopback
from sluice.control.cm.connection import Connection, seen_from_here
from sluice.control.cm.event import Event, EventType
from sluice.control.cm.lookup import UDP_QKEY, Lookup
from sluice.control.cm.message import ConnectRequest, LookupRequest, Service
from sluice.control.cm.parameters import LOOKUP_DATA, REQUEST_DATA, Parameters
from sluice.control.cm.place import CmDevice, Place, Scope
from sluice.control.cm.port_space import Binding
from sluice.device.host import IP

if TYPE_CHECKING:
    from sluice.control.cm.channel import Channel
    from sluice.control.cm.owner import Owner

MAX_BACKLOG = 1024
MAX_UNREAD = 1024
"""Events of one id that wait, beyond which it can't make more of them; what moves with it takes its time."""
MAX_EVENTS = 65536
"""The same of all ids of one tenant."""
PSN_BITS = 24
JOIN_FULL_MEMBER, JOIN_SEND_ONLY = 0, 1

QPT_RC, QPT_UC, QPT_UD = 2, 3, 4
PS_IPOIB, PS_TCP, PS_UDP, PS_IB = 0x0002, 0x0106, 0x0111, 0x013F
PORT_SPACES = (PS_IPOIB, PS_TCP, PS_UDP, PS_IB)

OPTION_TOS, OPTION_REUSEADDR, OPTION_AFONLY, OPTION_ACK_TIMEOUT = 0, 1, 2, 3
MAX_ACK_TIMEOUT = 31

# enum ibv_event_type
EVENT_COMM_EST = 4


class State(Enum):
    IDLE = auto()
    ADDR_BOUND = auto()
    ADDR_RESOLVED = auto()
    ROUTE_RESOLVED = auto()
    CONNECT = auto()
    LISTEN = auto()


class Queued(NamedTuple):
    """An event in a channel. child: of a connection request, the id that it made."""

    about: "Identifier"
    event: Event
    child: "Identifier | None"
    membership: "Membership | None"


class Membership:
    """One group that an id has joined; uid is the shim's name for it."""

    def __init__(self, handle: int, uid: int, identifier: "Identifier", address: SocketAddress) -> None:
        self.handle = handle
        self.uid = uid
        self.identifier = identifier
        self.address = address
        self.gid = gid_of(address.plain)
        self.reported = 0
        self.waiting: set[int] = set()


def _invalid(text: str) -> OSError:
    return OSError(errno.EINVAL, text)


class Identifier:
    """Operations raise OSError with the errno that the application is to see."""

    def __init__(
        self, owner: "Owner", handle: int, uid: int, channel: "Channel[Queued]", port_space: int, qp_type: int
    ) -> None:
        self._owner = owner
        self._cm = owner.cm
        self.handle = handle
        self.uid = uid
        self.channel = channel
        self.port_space = port_space
        self.qp_type = qp_type
        self.state = State.IDLE
        self.source: SocketAddress | None = None
        self.destination: SocketAddress | None = None
        self.destination_gid = bytes(16)
        self.bound = False
        self.reuse = False
        self.only_family: bool | None = None
        self.traffic_class = 0
        self.ack_timeout: int | None = None
        self.reported = 0
        """Events that the application has been given."""
        self.accepted = True
        """False for the id of a request until the application accepts: it has no events of its own before."""
        self.end: Connection | Lookup | None = None
        self.memberships: dict[int, Membership] = {}
        self._device = owner.party.devices[0].number
        self._psn = secrets.randbits(PSN_BITS)
        self._binding: Binding[Identifier] | None = None
        self._place: Place | None = None
        self._backlog = 0
        self._undelivered: set[int] = set()
        self._waiting: set[int] = set()

    @property
    def is_datagram(self) -> bool:
        return self.qp_type == QPT_UD

    @property
    def gid(self) -> bytes:
        return self._owner.party.gid

    @property
    def device(self) -> CmDevice:
        """On which its queue pair is to be, once it is bound."""
        devices = self._owner.party.devices
        return next((device for device in devices if device.number == self._device), devices[0])

    @device.setter
    def device(self, device: CmDevice) -> None:
        self._device = device.number

    @property
    def has_route(self) -> bool:
        return self.state in (State.ROUTE_RESOLVED, State.CONNECT)

    def set_option(self, option: int, value: int) -> None:
        """An option of RDMA_OPTION_ID (rdma_set_option(3)). EINVAL: too late, or out of range."""
        if option == OPTION_TOS:
            self.traffic_class = value
        elif option == OPTION_ACK_TIMEOUT:
            if value > MAX_ACK_TIMEOUT or self.is_datagram:
                raise _invalid("an ACK timeout has five bits, and datagrams have none")
            self.ack_timeout = value
        elif option == OPTION_REUSEADDR:
            if self.state is not State.IDLE and (self.state is State.LISTEN or not value):
                raise _invalid("too late: it listens, or is bound already")
            self.reuse = bool(value)
            if self._binding is not None:
                self._binding.reuse = self.reuse
        else:
            if self.state not in (State.IDLE, State.ADDR_BOUND):
                raise _invalid("too late: its address is resolved, or it listens")
            self.only_family = bool(value)

    # ---- events -------------------------------------------------------------

    def emit(self, event: Event, child: "Identifier | None" = None, membership: Membership | None = None) -> None:
        if not self.accepted:
            return
        number = self.channel.put(Queued(self, event, child, membership))
        self._cm.events_of_tenant[self._owner.party.tenant] += 1
        self._waiting.add(number)
        if child is not None:
            self._undelivered.add(number)
        if membership is not None:
            membership.waiting.add(number)

    def _need_room(self) -> None:
        """Before an event that an id may have again and again. OSError ENOMEM."""
        waiting = self._cm.events_of_tenant[self._owner.party.tenant]
        if len(self._waiting) >= MAX_UNREAD or waiting >= MAX_EVENTS:
            raise OSError(errno.ENOMEM, f"{len(self._waiting)} events of the id wait, {waiting} of its tenant")

    def _take_back(self, numbers: set[int]) -> list[Queued]:
        """Those that still wait come to nobody's notice."""
        taken = self.channel.take_back(numbers)
        self._cm.events_of_tenant[self._owner.party.tenant] -= len(taken)
        return taken

    def write_event(self, kind: EventType, status: int, arg: int) -> None:
        """ENOMEM: nobody reads them."""
        self._need_room()
        self.emit(Event(kind, status, Parameters(private_data=arg.to_bytes(8, sys.byteorder))))

    def delivered(self, number: int, queued: Queued) -> None:
        """The application has it."""
        self._cm.events_of_tenant[self._owner.party.tenant] -= 1
        self._waiting.discard(number)
        self._undelivered.discard(number)
        self.reported += 1
        if queued.membership is not None:
            queued.membership.waiting.discard(number)
            queued.membership.reported += 1

    def move_to(self, channel: "Channel[Queued]") -> None:
        """Events that still wait go along."""
        moved = self._take_back(self._waiting)
        self.channel = channel
        self._waiting.clear()
        self._undelivered.clear()
        for queued in moved:
            if queued.child is not None:
                queued.child.channel = channel
            if queued.membership is not None:
                queued.membership.waiting.clear()
            self.emit(queued.event, queued.child, queued.membership)

    # ---- addresses ----------------------------------------------------------

    def bind(self, address: SocketAddress) -> None:
        """EADDRNOTAVAIL, EADDRINUSE; EINVAL: it is bound already, or its port space has no such device."""
        if self.state is not State.IDLE:
            raise _invalid("bound already")
        if self.port_space == PS_IPOIB and not address.is_any:
            raise _invalid("IP over InfiniBand")
        if isinstance(address.ip, IPv6Address) and address.ip.is_link_local and not address.scope_id:
            raise _invalid("a link-local address without its interface")
        self._bind(address, list(self._owner.party.scopes(address.plain)))
        self.device = self._owner.party.device_of(gid_of(address.plain)) or self.device
        self.bound = not address.is_any

    def _bind(self, address: SocketAddress, scopes: list[Scope]) -> None:
        if not scopes:
            raise OSError(errno.EADDRNOTAVAIL, f"{address.ip} is not an address of this host")
        only_family = address.family == socket.AF_INET if self.only_family is None else self.only_family
        binding = Binding(self, address, self.reuse, only_family)
        self._cm.ports.bind(binding, scopes, self.port_space)
        self._binding = binding
        self.source = binding.address
        self.state = State.ADDR_BOUND

    def resolve_address(self, source: SocketAddress | None, destination: SocketAddress) -> None:
        """The answer is an event; EINVAL: not in this state, or the families differ. ENOMEM: nobody reads them."""
        if self.state not in (State.IDLE, State.ADDR_BOUND):
            raise _invalid("resolved already")
        if source is not None and source.family != destination.family:
            raise _invalid("two families")
        # Where nobody is there, it may be asked again.
        self._need_room()
        if self.state is State.IDLE:
            if source is None or (source.is_any and not source.port):
                # Nobody connects to this port, so it needs to be free among the tenant's own only.
                self._bind(any_address(destination.family), [self._owner.party.own_scope])
            else:
                self.bind(source)
        assert self.source is not None
        if self.source.family != destination.family:
            raise _invalid("bound to an address of the other family")
        if destination.is_any:
            destination = loopback(destination.family).with_port(destination.port)
        self.destination = destination
        if self.port_space == PS_IPOIB:
            self.emit(Event(EventType.ADDR_ERROR, -errno.EINVAL))
            return
        if not destination.plain.is_multicast:
            self._place = self._cm.locator.locate(destination.plain, self._owner.party)
            device = self._device_to(destination.plain, self._place)
            if self._place is None or device is None or (self.bound and device != self.device):
                self.emit(Event(EventType.ADDR_ERROR, -errno.EHOSTUNREACH))
                return
            self.device = device
        if self.source.is_any:
            self.source = self.source.with_ip(self._source_for(destination))
        self.destination_gid = self._gid_at(destination)
        self.bound = True
        self.state = State.ADDR_RESOLVED
        self.emit(Event(EventType.ADDR_RESOLVED))

    def _device_to(self, ip: IP, place: Place | None) -> CmDevice | None:
        """The tenant's device whose NIC leads to a host outside; the first where none is needed. None: it hasn't it."""
        party = self._owner.party
        outside = None if place is None or place.node is None else self._cm.outside.get(place.node)
        if outside is None:
            return party.device_of(gid_of(ip)) or self.device
        return next((device for device in party.devices if any(map(outside.has_gid, device.nic_gids))), None)

    def _source_for(self, destination: SocketAddress) -> IP:
        party = self._owner.party
        local = not destination.plain.is_multicast and party.realm.has(destination.plain)
        return destination.plain if local else party.address

    def _gid_at(self, destination: SocketAddress) -> bytes:
        """Whose device the address leads to, as far as one can tell before somebody answers."""
        place = self._place
        if place is not None and place.scope is not None and place.scope.kind == "realm":
            listener = self._cm.ports.listener(place.scope, self.port_space, destination.plain, destination.port)
            return (listener or self).gid
        return gid_of(destination.plain)

    def resolve_route(self) -> None:
        """EINVAL: no address is resolved."""
        if self.state is not State.ADDR_RESOLVED:
            raise _invalid("its address is not resolved")
        self.state = State.ROUTE_RESOLVED
        self.emit(Event(EventType.ROUTE_RESOLVED))

    # ---- the passive side ---------------------------------------------------

    def listen(self, backlog: int) -> None:
        """backlog: requests that may wait unseen. EADDRINUSE, EADDRNOTAVAIL; EINVAL: not in this state."""
        if self.state is State.IDLE:
            self.bind(any_address(socket.AF_INET))
        if self.state is not State.ADDR_BOUND or self._binding is None:
            raise _invalid("not bound, or in use")
        self._cm.ports.listen(self._binding)
        self._cm.listens(self._binding, self.port_space)
        self._backlog = backlog if 0 < backlog < MAX_BACKLOG else MAX_BACKLOG
        self.state = State.LISTEN

    def incoming(self, node: str | None, request: ConnectRequest | LookupRequest) -> bool:
        """A request for this listener becomes an id and an event. False: it is refused."""
        lookup = isinstance(request, LookupRequest)
        if self.state is not State.LISTEN or len(self._undelivered) >= self._backlog or lookup != self.is_datagram:
            return False
        if isinstance(request, ConnectRequest) and request.qp_type != self.qp_type:
            return False
        device = self._owner.party.device_of(gid_of(request.service.destination.plain))
        if device is None and node in self._cm.outside:
            # It came by a NIC that the tenant has no part in.
            return False
        child = self._owner.add_child(self)
        if child is None:
            return False
        child.source = request.service.destination
        child.destination = request.source
        child.destination_gid = request.gid
        child.bound = True
        child.device = device or child.device
        child.traffic_class = self.traffic_class
        child.ack_timeout = self.ack_timeout
        child.state = State.CONNECT
        child.accepted = False
        if isinstance(request, LookupRequest):
            sidr = Lookup(self._cm, node, child.emit)
            sidr.requested(request)
            child.end = sidr
            seen = Parameters(private_data=request.private_data.ljust(LOOKUP_DATA, b"\0"))
        else:
            connection = Connection(self._cm, child._owner.party.tenant, node, child._psn, child.emit)
            connection.requested(request, child.gid)
            child.end = connection
            seen = seen_from_here(request.parameters, REQUEST_DATA)
        self.emit(Event(EventType.CONNECT_REQUEST, parameters=seen, gid=request.gid), child)
        return True

    def accept(self, uid: int, parameters: Parameters) -> None:
        """EINVAL: nobody asks, or too much private data."""
        if self.end is None or self.state is not State.CONNECT:
            raise _invalid("nobody asks for a connection")
        self.uid, self.accepted = uid, True
        self.end.reply(self.gid, parameters)

    def ready(self) -> None:
        """EINVAL: no reply came in."""
        if self.end is None:
            raise _invalid("not connecting")
        self.end.ready()

    # ---- the active side ----------------------------------------------------

    def connect(self, parameters: Parameters) -> None:
        """EINVAL: no route is resolved, or too much private data."""
        if self.state is not State.ROUTE_RESOLVED:
            raise _invalid("its route is not resolved")
        assert self.source is not None and self.destination is not None
        if len(parameters.private_data) > (LOOKUP_DATA if self.is_datagram else REQUEST_DATA):
            raise _invalid("too much private data")
        # Who was there may have left, and others come.
        place = self._place and self._cm.locator.locate(self.destination.plain, self._owner.party)
        if place is not None:
            place = self._or_of_a_host(place)
        if self._device_to(self.destination.plain, place) != self.device:
            place = None
        port = None if self.is_datagram else self.destination.port
        if not self._cm.admits(self.gid, self.destination_gid, port):
            place = None
        node = None if place is None else place.node
        service = Service(self.port_space, self.destination, None if place is None else place.scope)
        shown = self._shown_to(place)
        self.state = State.CONNECT
        if self.is_datagram:
            sidr = Lookup(self._cm, node, self._on_found)
            self.end = sidr
            request = LookupRequest(sidr.number, service, shown, self.gid, parameters.private_data)
            sidr.unreachable() if place is None else sidr.request(request)
        else:
            connection = Connection(self._cm, self._owner.party.tenant, node, self._psn, self.emit)
            self.end = connection
            asks = ConnectRequest(connection.number, service, shown, self.gid, self.qp_type, self._psn, parameters)
            connection.unreachable() if place is None else connection.request(asks)

    def _shown_to(self, place: Place | None) -> SocketAddress:
        """The source as the other side sees it (rdma_get_peer_addr(3)), who may go by it.

        What a namespace calls its own is known to those in it: to others it may be anybody's, and the tenant's own
        address stands for it. The host's addresses are the host's word.
        """
        assert self.source is not None
        party, ip = self._owner.party, self.source.plain
        if ip == party.address or (place is not None and place.scope in (party.own_scope, party.realm_scope)):
            return self.source
        if party.realm.key == self._cm.host.key and not ip.is_loopback and self._cm.host.has(ip):
            return self.source
        return self.source.with_ip(party.address)

    def _or_of_a_host(self, place: Place) -> Place:
        """Whose it is: an address of a NIC's, at which none of ours listens, is that of the host's other programs."""
        assert self.destination is not None
        ip = self.destination.plain
        if place.scope is None or place.scope.kind != "realm":
            return place
        if self._cm.ports.listener(place.scope, self.port_space, ip, self.destination.port) is not None:
            return place
        node = self._cm.own_way(ip)
        return place if node is None else Place(node)

    def _on_found(self, event: Event) -> None:
        self.emit(Event(event.type, event.status, event.parameters, event.gid, self.traffic_class))

    # ---- either side --------------------------------------------------------

    def reject(self, reason: int, private_data: bytes) -> None:
        """EINVAL: nothing to reject."""
        if self.end is None:
            raise _invalid("not connecting")
        self.end.reject(reason, private_data)

    def disconnect(self) -> None:
        """EINVAL: it never asked for a connection nor was asked. Who listens has nothing to end."""
        if self.state is State.LISTEN:
            return
        if self.end is None:
            raise _invalid("not connected")
        self.end.disconnect()

    def notify(self, event: int) -> None:
        """EISCONN, EINVAL."""
        if self.end is None or event != EVENT_COMM_EST:
            raise _invalid("only a connection that is being accepted takes a notice, of communication established")
        self.end.establish()

    # ---- multicast ----------------------------------------------------------

    def join(self, uid: int, address: SocketAddress, join_flags: int) -> Membership:
        """The answer is an event. EINVAL: not a datagram id with a device, or not a group."""
        joinable = self.state in (State.ADDR_BOUND, State.ADDR_RESOLVED) and self.is_datagram and self.bound
        if not joinable or not address.plain.is_multicast or join_flags not in (JOIN_FULL_MEMBER, JOIN_SEND_ONLY):
            raise _invalid("only datagram ids with a device join multicast groups")
        membership = self._owner.add_membership(uid, self, address)
        self.memberships[membership.handle] = membership
        parameters = Parameters(qp_num=(1 << 24) - 1, qkey=UDP_QKEY)
        event = Event(EventType.MULTICAST_JOIN, 0, parameters, membership.gid, self.traffic_class)
        self.emit(event, membership=membership)
        return membership

    def leave(self, membership: Membership) -> None:
        del self.memberships[membership.handle]
        self._take_back(membership.waiting)
        self._waiting -= membership.waiting

    # ---- the end ------------------------------------------------------------

    def destroy(self) -> None:
        """The peer is told; events that wait are dropped, and with them the ids of unseen requests."""
        for queued in self._take_back(self._waiting):
            if queued.child is not None:
                self._owner.remove(queued.child)
        self._waiting.clear()
        self._undelivered.clear()
        if self._binding is not None:
            if self.state is State.LISTEN:
                self._cm.listens_no_longer(self._binding, self.port_space)
            self._cm.ports.release(self._binding)
            self._binding = None
        self.accepted = False
        if self.end is not None:
            self.end.abandon()
            self.end = None
        self.state = State.IDLE
