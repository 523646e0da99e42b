# SPDX-License-Identifier: Apache-2.0
"""One end of a connection: the states of IBTA 12.9, as far as a link that loses nothing needs them."""

import errno
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING

from sluice.control.cm.event import Event, EventType
from sluice.control.cm.message import (
    ConnectReply,
    ConnectRequest,
    DisconnectReply,
    DisconnectRequest,
    Message,
    ReadyToUse,
    Reason,
    Reject,
)
from sluice.control.cm.outside import Path
from sluice.control.cm.parameters import REJECT_DATA, REPLY_DATA, Parameters

if TYPE_CHECKING:
    from sluice.control.cm.manager import CommunicationManager


class Phase(Enum):
    IDLE = auto()
    REQUEST_SENT = auto()
    REQUEST_RECEIVED = auto()
    REPLY_SENT = auto()
    REPLY_RECEIVED = auto()
    ESTABLISHED = auto()
    DISCONNECT_SENT = auto()
    DISCONNECT_RECEIVED = auto()
    TIMEWAIT = auto()


FIRST_LOOK, LAST_LOOK = 0.001, 0.512
"""Seconds after which it is looked whether what came before the end has been read; twice as many each time."""

OPENING = (Phase.REQUEST_SENT, Phase.REQUEST_RECEIVED, Phase.REPLY_SENT, Phase.REPLY_RECEIVED)


class Connection:
    """on_event gets what the application is to know; the connection itself outlives nobody who abandons it.

    asked: it is the passive end. port: the listener's, on whichever end that is.
    """

    def __init__(
        self,
        cm: "CommunicationManager",
        tenant: int,
        node: str | None,
        psn: int,
        on_event: Callable[[Event], None],
    ) -> None:
        self._cm = cm
        self._tenant = tenant
        self._held = False
        """The peer has disconnected, and the application hasn't been told yet."""
        self.node = node
        self._on_event = on_event
        self.phase = Phase.IDLE
        self.number = cm.add_end(self)
        self.remote = 0
        self.psn = psn
        self.own = Parameters()
        self.peer = Parameters()
        self.peer_psn = 0
        self.gid = bytes(16)
        self.peer_gid = bytes(16)
        self.asked = False
        self.port = 0
        self.retry_count = 0
        self.path: Path | None = None
        """Of one whose other end is behind the NIC, from the first message that came from there."""

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._cm.cancel(self)
        if self._held and phase is not Phase.IDLE:
            self._tell_disconnected()
        self._held = False
        if phase in (Phase.REQUEST_SENT, Phase.REPLY_SENT, Phase.DISCONNECT_SENT):
            self._cm.schedule(self, self._cm.timeouts.response, self._on_timeout)
        elif phase is Phase.TIMEWAIT:
            self._cm.schedule(self, self._cm.timeouts.time_wait, self._on_timeout)
        elif phase is Phase.IDLE:
            self._cm.remove_end(self)

    def _send(self, message: Message) -> None:
        self._cm.send(self.node, message)

    def _on_timeout(self) -> None:
        phase = self.phase
        if phase is Phase.TIMEWAIT:
            self._enter(Phase.IDLE)
            self._on_event(Event(EventType.TIMEWAIT_EXIT))
        elif phase is Phase.DISCONNECT_SENT:
            self._enter(Phase.TIMEWAIT)
            self._on_event(Event(EventType.DISCONNECTED, -errno.ETIMEDOUT))
        else:
            self._send(Reject(self.number, self.remote, Reason.TIMEOUT))
            self.unreachable()

    def unreachable(self) -> None:
        """The other end doesn't answer, or nobody is there."""
        self._enter(Phase.IDLE)
        self._on_event(Event(EventType.UNREACHABLE, -errno.ETIMEDOUT))

    # ---- what the application asks for --------------------------------------

    def request(self, request: ConnectRequest) -> None:
        self.own = request.parameters
        self.gid = request.gid
        self.port = request.service.destination.port
        self.retry_count = request.parameters.retry_count
        self._enter(Phase.REQUEST_SENT)
        self._send(request)

    def requested(self, request: ConnectRequest, gid: bytes) -> None:
        """Becomes the passive end of a request that came in. gid: its own."""
        self.remote = request.sender
        self._cm.requested(self)
        self.peer = request.parameters
        self.peer_psn = request.psn
        self.peer_gid = request.gid
        self.gid, self.asked, self.port = gid, True, request.service.destination.port
        self._cm.arranged(self)
        self._learn_path()
        self.retry_count = request.parameters.retry_count
        self._enter(Phase.REQUEST_RECEIVED)

    def _learn_path(self) -> None:
        self.path = self._cm.path(self.node, self.remote)
        if self.path is not None:
            self.psn = self.path.sq_psn

    def reply(self, gid: bytes, parameters: Parameters) -> None:
        """OSError EINVAL: there is no request to accept."""
        self._must_be(Phase.REQUEST_RECEIVED)
        self.own = parameters
        self._enter(Phase.REPLY_SENT)
        self._send(ConnectReply(self.number, self.remote, gid, self.psn, parameters))

    def ready(self) -> None:
        """OSError EINVAL: no reply came in."""
        self._must_be(Phase.REPLY_RECEIVED)
        self._enter(Phase.ESTABLISHED)
        self._send(ReadyToUse(self.number, self.remote))

    def establish(self) -> None:
        """A message arrived before the peer's word that it is ready. OSError EISCONN, EINVAL."""
        if self.phase is Phase.ESTABLISHED:
            raise OSError(errno.EISCONN, "connected already")
        self._must_be(Phase.REPLY_SENT)
        self._enter(Phase.ESTABLISHED)
        self._on_event(Event(EventType.ESTABLISHED))

    def reject(self, reason: int, private_data: bytes) -> None:
        """OSError EINVAL: nothing to reject."""
        if self.phase not in OPENING:
            raise OSError(errno.EINVAL, "nothing to reject")
        self._enter(Phase.IDLE)
        self._send(Reject(self.number, self.remote, reason, private_data))

    def disconnect(self) -> None:
        """Asks the peer, or answers its request; in any other state does nothing, as ib_cm."""
        if self.phase is Phase.ESTABLISHED:
            self._enter(Phase.DISCONNECT_SENT)
            self._send(DisconnectRequest(self.number, self.remote))
        elif self.phase is Phase.DISCONNECT_RECEIVED:
            self._enter(Phase.TIMEWAIT)
            self._send(DisconnectReply(self.number, self.remote))

    def abandon(self) -> None:
        """The application's end is no more; the peer is told."""
        if self.phase is Phase.REQUEST_SENT:
            self._send(Reject(self.number, self.remote, Reason.TIMEOUT))
        elif self.phase in OPENING:
            self._send(Reject(self.number, self.remote, Reason.CONSUMER_DEFINED))
        elif self.phase is Phase.ESTABLISHED:
            self._send(DisconnectRequest(self.number, self.remote))
        elif self.phase is Phase.DISCONNECT_RECEIVED:
            self._send(DisconnectReply(self.number, self.remote))
        self._enter(Phase.IDLE)

    def _must_be(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise OSError(errno.EINVAL, f"{self.phase.name}, not {phase.name}")

    # ---- what comes from the other end --------------------------------------

    def knows(self, node: str | None, message: Message) -> bool:
        """Whether the message is from this connection's other end."""
        # A request is all that the other end has seen of us before it answers.
        return node == self.node and (self.phase is Phase.REQUEST_SENT or message.sender in (0, self.remote))

    def receive(self, message: Message) -> None:
        match message:
            case ConnectReply():
                self._on_reply(message)
            case ReadyToUse():
                if self.phase is Phase.REPLY_SENT:
                    self._enter(Phase.ESTABLISHED)
                    self._on_event(Event(EventType.ESTABLISHED))
            case Reject():
                self._on_reject(message)
            case DisconnectRequest():
                self._on_disconnect_request()
            case DisconnectReply():
                if self.phase is Phase.DISCONNECT_SENT:
                    self._enter(Phase.TIMEWAIT)
                    self._on_event(Event(EventType.DISCONNECTED))
            case _:
                pass

    def _on_reply(self, reply: ConnectReply) -> None:
        if self.phase is not Phase.REQUEST_SENT:
            return
        self.remote = reply.sender
        self.peer = reply.parameters
        self.peer_psn = reply.psn
        self.peer_gid = reply.gid
        self._cm.arranged(self)
        self._learn_path()
        self._enter(Phase.REPLY_RECEIVED)
        self._on_event(Event(EventType.CONNECT_RESPONSE, parameters=seen_from_here(reply.parameters, REPLY_DATA)))

    def _on_reject(self, reject: Reject) -> None:
        if self.phase in OPENING:
            self._enter(Phase.IDLE)
            data = Parameters(private_data=reject.private_data.ljust(REJECT_DATA, b"\0"))
            self._on_event(Event(EventType.REJECTED, reject.reason, data))
        elif self.phase is Phase.ESTABLISHED:
            # It crossed our word that we are ready.
            self._enter(Phase.TIMEWAIT)
            self._on_event(Event(EventType.DISCONNECTED))

    def _on_disconnect_request(self) -> None:
        if self.phase in (Phase.REPLY_SENT, Phase.ESTABLISHED):
            self._enter(Phase.DISCONNECT_RECEIVED)
            self._tell_when_read(FIRST_LOOK, None)
        elif self.phase is Phase.DISCONNECT_SENT:
            # Both asked at once.
            self._enter(Phase.TIMEWAIT)
            self._send(DisconnectReply(self.number, self.remote))
            self._on_event(Event(EventType.DISCONNECTED))
        elif self.phase is Phase.TIMEWAIT:
            self._send(DisconnectReply(self.number, self.remote))

    def _tell_disconnected(self) -> None:
        self._held = False
        self._on_event(Event(EventType.DISCONNECTED))

    def _tell_when_read(self, pause: float, mark: int | None) -> None:
        """After the messages that came before it have been polled, where that doesn't take long.

        On a wire the peer's word takes longer than its last messages; here an application that has had no core finds
        both, and may look at the wrong one first (libfabric's ofi_rxm frees what the messages need).
        """
        end = self._cm.unread(self._tenant, self.own.qp_num, mark)
        self._held = end is not None and pause <= LAST_LOOK
        if self._held:
            self._cm.schedule(self, pause, lambda: self._tell_when_read(2 * pause, end))
        else:
            self._tell_disconnected()

    def lost(self) -> None:
        """The other end's node is gone."""
        if self.phase in OPENING:
            self.unreachable()
        elif self.phase in (Phase.ESTABLISHED, Phase.DISCONNECT_SENT):
            self._enter(Phase.TIMEWAIT)
            self._on_event(Event(EventType.DISCONNECTED, -errno.ETIMEDOUT))
        elif self.phase is Phase.DISCONNECT_RECEIVED:
            self._enter(Phase.TIMEWAIT)


def seen_from_here(sent: Parameters, room: int) -> Parameters:
    """What the peer sent, in this end's terms: what it asks for we serve, what it serves we may ask for.

    room: bytes of private data in the message.
    """
    return Parameters(
        qp_num=sent.qp_num,
        srq=sent.srq,
        responder_resources=sent.initiator_depth,
        initiator_depth=sent.responder_resources,
        flow_control=sent.flow_control,
        retry_count=sent.retry_count,
        rnr_retry_count=sent.rnr_retry_count,
        private_data=sent.private_data.ljust(room, b"\0"),
        ece=sent.ece,
    )
