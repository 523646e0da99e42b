# SPDX-License-Identifier: Apache-2.0
"""Events as rdma_get_cm_event gives them (enum rdma_cm_event_type)."""

from dataclasses import dataclass, field
from enum import IntEnum

from sluice.control.cm.parameters import Parameters


class EventType(IntEnum):
    ADDR_RESOLVED = 0
    ADDR_ERROR = 1
    ROUTE_RESOLVED = 2
    ROUTE_ERROR = 3
    CONNECT_REQUEST = 4
    CONNECT_RESPONSE = 5
    CONNECT_ERROR = 6
    UNREACHABLE = 7
    REJECTED = 8
    ESTABLISHED = 9
    DISCONNECTED = 10
    DEVICE_REMOVAL = 11
    MULTICAST_JOIN = 12
    MULTICAST_ERROR = 13
    ADDR_CHANGE = 14
    TIMEWAIT_EXIT = 15
    ADDRINFO_RESOLVED = 16
    ADDRINFO_ERROR = 17
    USER = 18


WRITTEN = (EventType.ADDRINFO_RESOLVED, EventType.ADDRINFO_ERROR, EventType.USER)
"""What an application, or its library, writes itself (rdma_write_cm_event(3))."""


@dataclass(frozen=True)
class Event:
    """status: 0, a negative errno, or the reason of a rejection (IBTA 12.6.7.2; of a lookup: 12.11.2.2).

    gid, traffic_class: of the address vector, for UD.
    """

    type: EventType
    status: int = 0
    parameters: Parameters = field(default_factory=Parameters)
    gid: bytes = bytes(16)
    traffic_class: int = 0
