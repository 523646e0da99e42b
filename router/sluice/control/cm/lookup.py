# SPDX-License-Identifier: Apache-2.0
"""The lookup of a datagram service: which QP serves a port, and how it is addressed (SIDR, IBTA 12.11)."""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from sluice.control.cm.event import Event, EventType
from sluice.control.cm.message import LookupReply, LookupRequest, LookupStatus, Message
from sluice.control.cm.parameters import LOOKUP_REPLY_DATA, Parameters

if TYPE_CHECKING:
    from sluice.control.cm.manager import CommunicationManager

UDP_QKEY = 0x01234567
"""RDMA_UDP_QKEY of rdma_cma.h: what all datagram QPs of rdma_cm start with."""


class Lookup:
    """One end; on_event as in Connection."""

    def __init__(self, cm: "CommunicationManager", node: str | None, on_event: Callable[[Event], None]) -> None:
        self._cm = cm
        self.node = node
        self._on_event = on_event
        self.number = cm.add_end(self)
        self.remote = 0
        self.source: bytes | None = None
        """The NIC's GID from which the way to what was found starts; None: it is on the directory's network."""
        self._asks = False
        self._asked = False

    def _done(self) -> None:
        self._asks = self._asked = False
        self._cm.cancel(self)
        self._cm.remove_end(self)

    def request(self, request: LookupRequest) -> None:
        self._asks = True
        self._cm.schedule(self, self._cm.timeouts.response, self.unreachable)
        self._cm.send(self.node, request)

    def requested(self, request: LookupRequest) -> None:
        self.remote = request.sender
        self._cm.requested(self)
        self._asked = True

    def _answer(self, status: int, gid: bytes, parameters: Parameters) -> None:
        if not self._asked:
            raise OSError(errno.EINVAL, "there is no lookup to answer")
        self._done()
        self._cm.send(self.node, LookupReply(self.number, self.remote, status, gid, parameters))

    def reply(self, gid: bytes, parameters: Parameters) -> None:
        """OSError EINVAL: it has been answered."""
        if len(parameters.private_data) > LOOKUP_REPLY_DATA:
            raise OSError(errno.EINVAL, f"more than {LOOKUP_REPLY_DATA} bytes of private data")
        answer = Parameters(qp_num=parameters.qp_num, qkey=UDP_QKEY, private_data=parameters.private_data)
        self._answer(LookupStatus.SUCCESS, gid, answer)

    def reject(self, _reason: int, private_data: bytes) -> None:
        """OSError EINVAL: it has been answered, or the data are too long."""
        if len(private_data) > LOOKUP_REPLY_DATA:
            raise OSError(errno.EINVAL, f"more than {LOOKUP_REPLY_DATA} bytes of private data")
        self._answer(LookupStatus.REJECT, bytes(16), Parameters(private_data=private_data))

    def ready(self) -> None:
        """OSError EINVAL: datagrams need no such word."""
        raise OSError(errno.EINVAL, "a datagram service has no connections")

    def establish(self) -> None:
        """OSError EINVAL."""
        self.ready()

    def disconnect(self) -> None:
        """Nothing is connected."""

    def abandon(self) -> None:
        if self._asked:
            self._answer(LookupStatus.REJECT, bytes(16), Parameters())
        elif self._asks:
            self._done()

    def unreachable(self) -> None:
        self._done()
        self._on_event(Event(EventType.UNREACHABLE, -errno.ETIMEDOUT))

    def knows(self, node: str | None, _message: Message) -> bool:
        return node == self.node

    def receive(self, message: Message) -> None:
        if not self._asks or not isinstance(message, LookupReply):
            return
        self._done()
        path = self._cm.path(self.node, message.sender)
        self.source = None if path is None else path.source
        parameters = Parameters(
            qp_num=message.parameters.qp_num,
            qkey=message.parameters.qkey,
            private_data=message.parameters.private_data.ljust(LOOKUP_REPLY_DATA, b"\0"),
        )
        if message.status == LookupStatus.SUCCESS:
            self._on_event(Event(EventType.ESTABLISHED, 0, parameters, message.gid))
        else:
            self._on_event(Event(EventType.UNREACHABLE, message.status, parameters))

    def lost(self) -> None:
        if self._asks:
            self.unreachable()
