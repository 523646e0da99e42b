# SPDX-License-Identifier: Apache-2.0
"""Messages between the two ends of a connection (IBTA 12.6, 12.11): plain values, so that any link can carry them.

`sender` and `to` are communication ids: random numbers by which an end calls itself, and by which the other calls it
from its first message on.
"""

from dataclasses import dataclass
from enum import IntEnum

from sluice.cluster.messages import message
from sluice.control.cm.address import SocketAddress
from sluice.control.cm.parameters import Parameters
from sluice.control.cm.place import Scope


class Reason(IntEnum):
    """Of a rejection (IBTA 12.6.7.2)."""

    NO_RESOURCES = 3
    TIMEOUT = 4
    INVALID_SERVICE_ID = 8
    INVALID_TRANSPORT_SERVICE_TYPE = 9
    CONSUMER_DEFINED = 28
    VENDOR_OPTION_NOT_SUPPORTED = 35


class LookupStatus(IntEnum):
    """Of a service id resolution (IBTA 12.11.2.2)."""

    SUCCESS = 0
    UNSUPPORTED = 1
    REJECT = 2


@dataclass(frozen=True)
class Service:
    """Whom a request is for. scope: in whose ports to look; None: as seen from outside of that node."""

    port_space: int
    destination: SocketAddress
    scope: Scope | None


@message
class ConnectRequest:
    """REQ."""

    sender: int
    service: Service
    source: SocketAddress
    gid: bytes
    qp_type: int
    psn: int
    parameters: Parameters


@message
class ConnectReply:
    """REP."""

    sender: int
    to: int
    gid: bytes
    psn: int
    parameters: Parameters


@message
class ReadyToUse:
    """RTU."""

    sender: int
    to: int


@message
class Reject:
    """REJ. sender is 0 where nobody listens."""

    sender: int
    to: int
    reason: int
    private_data: bytes = b""


@message
class DisconnectRequest:
    """DREQ."""

    sender: int
    to: int


@message
class DisconnectReply:
    """DREP."""

    sender: int
    to: int


@message
class LookupRequest:
    """SIDR_REQ."""

    sender: int
    service: Service
    source: SocketAddress
    gid: bytes
    private_data: bytes


@message
class LookupReply:
    """SIDR_REP."""

    sender: int
    to: int
    status: int
    gid: bytes
    parameters: Parameters


Message = (
    ConnectRequest
    | ConnectReply
    | ReadyToUse
    | Reject
    | DisconnectRequest
    | DisconnectReply
    | LookupRequest
    | LookupReply
)
