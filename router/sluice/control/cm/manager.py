# SPDX-License-Identifier: Apache-2.0
"""The node's communication manager: all ends of connections, and the way from one to the other."""

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Protocol

from sluice.cluster.directory import address_of, ip_of
from sluice.control.cm.address import gid_of
from sluice.control.cm.connection import Connection
from sluice.control.cm.lookup import Lookup
from sluice.control.cm.message import (
    ConnectReply,
    ConnectRequest,
    DisconnectReply,
    DisconnectRequest,
    LookupReply,
    LookupRequest,
    LookupStatus,
    Message,
    Reason,
    Reject,
    Service,
)
from sluice.control.cm.outside import Outside, Path
from sluice.control.cm.parameters import Parameters
from sluice.control.cm.place import Locator, Scope
from sluice.control.cm.port_space import Binding, Ports
from sluice.control.cm.realm import Realm
from sluice.control.connections import Flow, Gate
from sluice.device.host import IP

if TYPE_CHECKING:
    from sluice.control.cm.identifier import Identifier

log = logging.getLogger(__name__)

PS_TCP, PS_UDP = 0x0106, 0x0111

End = Connection | Lookup


def _ends_of(connection: Connection) -> tuple[bytes, bytes, int]:
    return connection.gid, connection.peer_gid, connection.peer.qp_num


class Handle(Protocol):
    def cancel(self) -> Any: ...


class Clock(Protocol):
    """As an asyncio event loop has it."""

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> Any: ...

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Handle: ...


@dataclass(frozen=True)
class Timeouts:
    """Seconds.

    response: until a request, a reply or a disconnect request counts as unanswered; Linux' CM asks 16 times, 4.3 s
    apart. time_wait: from the end of a connection to TIMEWAIT_EXIT. grace: when to look again for a listener before
    a request is rejected. Servers that stop listening and begin anew (perftest) count on the milliseconds that
    address and route resolution take on a real network.
    """

    response: float = 69.0
    time_wait: float = 0.5
    grace: tuple[float, ...] = (0.02, 0.08, 0.1)


class CommunicationManager:
    """host: the router's own network namespace. gate: who may connect.

    link: carries a message to another node; None where there is only this one. outside: hosts behind the node's NICs,
    for each that has any. unread: `Engine.unread`.
    """

    def __init__(
        self,
        locator: Locator,
        host: Realm,
        gate: Gate,
        clock: Clock,
        timeouts: Timeouts = Timeouts(),
        link: Callable[[str, Message], None] | None = None,
        outside: Iterable[Outside] = (),
        unread: Callable[[int, int, int | None], int | None] = lambda tenant, qp_num, mark: None,
    ) -> None:
        self.unread = unread
        self.outside = {one.node: one for one in outside}
        self.locator = locator
        self.host = host
        self._gate = gate
        self.timeouts = timeouts
        self.ports: Ports[Identifier] = Ports()
        self.ids_of_tenant: Counter[int] = Counter()
        self.channels_of_tenant: Counter[int] = Counter()
        self.events_of_tenant: Counter[int] = Counter()
        """Those that wait in channels."""
        self._clock = clock
        self._link = link
        self._ends: dict[int, End] = {}
        self._requested: dict[tuple[str | None, int], End] = {}
        self._arranged: dict[tuple[bytes, bytes, int], Connection] = {}
        self._timers: dict[int, Handle] = {}

    # ---- ends and their timers ----------------------------------------------

    def add_end(self, end: End) -> int:
        """Its number: not to be guessed, since other nodes may name it."""
        while (number := secrets.randbits(63)) in self._ends or number == 0:
            pass
        self._ends[number] = end
        return number

    def requested(self, end: End) -> None:
        """Until it has an answer, who asked knows this end by nothing but its own number."""
        self._requested[end.node, end.remote] = end

    def remove_end(self, end: End) -> None:
        self._ends.pop(end.number, None)
        self._requested.pop((end.node, end.remote), None)
        if isinstance(end, Connection) and self._arranged.get(_ends_of(end)) is end:
            del self._arranged[_ends_of(end)]

    def arranged(self, connection: Connection) -> None:
        """Both ends of it are known: queue pairs may follow."""
        self._arranged[_ends_of(connection)] = connection

    def flow(self, own: IPv4Address, peer: IP, qp_num: int) -> Flow:
        """How the connection with this peer's queue pair came about: by a request to a port, or by itself."""
        connection = self._arranged.get((gid_of(own), gid_of(peer), qp_num))
        if connection is None:
            return Flow(own, peer)
        return Flow(peer, own, connection.port) if connection.asked else Flow(own, peer, connection.port)

    def later(self, callback: Callable[..., Any], *args: Any) -> None:
        """In another turn of the event loop."""
        self._clock.call_soon(callback, *args)

    def schedule(self, end: End, seconds: float, callback: Callable[[], None]) -> None:
        """One timer for each end; it holds until `cancel`."""

        def expire() -> None:
            self._timers.pop(end.number, None)
            callback()

        self._timers[end.number] = self._clock.call_later(seconds, expire)

    def cancel(self, end: End) -> None:
        timer = self._timers.pop(end.number, None)
        if timer is not None:
            timer.cancel()

    # ---- messages -----------------------------------------------------------

    def send(self, node: str | None, message: Message) -> None:
        """Never delivers at once: who sends is in the middle of something."""
        if node is None:
            self._clock.call_soon(self.receive, None, message)
        elif node in self.outside:
            self._clock.call_soon(self.outside[node].send, message)
        elif self._link is not None:
            self._link(node, message)

    def receive(self, node: str | None, message: Message) -> None:
        """A message from this node (None) or from another one."""
        if isinstance(message, ConnectRequest | LookupRequest):
            # A request that was sent twice made its end the first time.
            if (node, message.sender) not in self._requested:
                self._on_request(node, message, self.timeouts.grace)
            return
        end = self._ends.get(message.to) if message.to else self._requested.get((node, message.sender))
        if end is not None:
            if end.knows(node, message):
                end.receive(message)
        elif isinstance(message, DisconnectRequest):
            self.send(node, DisconnectReply(message.to, message.sender))
        elif isinstance(message, ConnectReply):
            self.send(node, Reject(0, message.sender, Reason.TIMEOUT))

    def _on_request(self, node: str | None, request: ConnectRequest | LookupRequest, grace: tuple[float, ...]) -> None:
        listener = self._listener(node, request.service)
        if listener is None and grace:
            self._clock.call_later(grace[0], self._on_request, node, request, grace[1:])
            return
        port = request.service.destination.port if isinstance(request, ConnectRequest) else None
        if listener is not None and not self.admits(request.gid, listener.gid, port):
            # As a packet that a firewall drops.
            return
        if listener is not None and listener.incoming(node, request):
            return
        if isinstance(request, LookupRequest):
            status = LookupStatus.UNSUPPORTED if listener is None else LookupStatus.REJECT
            self.send(node, LookupReply(0, request.sender, status, bytes(16), Parameters()))
        else:
            reason = Reason.INVALID_SERVICE_ID if listener is None else Reason.CONSUMER_DEFINED
            self.send(node, Reject(0, request.sender, reason))

    def _listener(self, node: str | None, service: Service) -> "Identifier | None":
        scope = service.scope
        if node is not None or scope is None:
            # What another node says of our scopes doesn't count.
            place = self.locator.locate(service.destination.plain, None)
            if place is None or place.node is not None or place.scope is None:
                return None
            scope = place.scope
        return self.ports.listener(scope, service.port_space, service.destination.plain, service.destination.port)

    def admits(self, source: bytes, destination: bytes, port: int | None) -> bool:
        """Whether these two (GIDs) may connect (connections.Gate)."""
        nobody = not any(destination) or (address_of(destination) is None and ip_of(destination).is_multicast)
        return any(source) and (nobody or self._gate.admits(ip_of(source), ip_of(destination), port))

    def undelivered(self, message: Message) -> None:
        """A message has not reached the other node, however often it was sent."""
        end = self._ends.get(message.sender)
        if end is not None:
            end.lost()

    def lost(self, number: int) -> None:
        """The host at the other end of this end doesn't answer any more."""
        end = self._ends.get(number)
        if end is not None:
            end.lost()

    def path(self, node: str | None, number: int) -> Path | None:
        """How a NIC reaches the other end of a connection, which calls itself so; None: it isn't behind a NIC."""
        return self.outside[node].path(number) if node in self.outside else None

    def way_out(self, ip: IP) -> str | None:
        """The node that a host with this address is, by the NIC that leads to it; None: none does."""
        return next((node for node, one in self.outside.items() if one.leads_to(ip)), None)

    def own_way(self, ip: IP) -> str | None:
        """The node that this host's other programs are, at an address of a NIC of its own. None: it is no NIC's."""
        return next((node for node, one in self.outside.items() if one.is_own(ip)), None)

    def _is_outside(self, binding: "Binding[Identifier]", port_space: int) -> bool:
        """Whether hosts behind the NICs reach it: they see the ports of the host's own namespace."""
        return port_space in (PS_TCP, PS_UDP) and (Scope("realm", self.host.key), port_space) in binding.spaces

    def listens(self, binding: "Binding[Identifier]", port_space: int) -> None:
        """OSError EADDRINUSE: another program of the host has the port on a NIC."""
        listening: list[Outside] = []
        try:
            for one in self.outside.values() if self._is_outside(binding, port_space) else ():
                one.listen(port_space, binding.address.port)
                listening.append(one)
        except OSError:
            for one in listening:
                one.leave(port_space, binding.address.port)
            raise

    def listens_no_longer(self, binding: "Binding[Identifier]", port_space: int) -> None:
        for one in self.outside.values() if self._is_outside(binding, port_space) else ():
            one.leave(port_space, binding.address.port)

    def node_lost(self, node: str) -> None:
        """Ends every connection with a node that is gone."""
        for end in [end for end in self._ends.values() if end.node == node]:
            end.lost()
