# SPDX-License-Identifier: Apache-2.0
"""Who may talk to whom, and which connections there are now.

A connection is a QP that went to RTR with a destination address, or an address handle.
A forbidden one fails as an unreachable peer does: its requests end with
IBV_WC_RETRY_EXC_ERR, its datagrams are lost. An address handle of a multicast group is
none: who hears whom in a group is asked when it comes to it (csrc/gate.h). A QP's that is forbidden later goes to the
error state, and IBV_EVENT_QP_FATAL tells its application.
"""

from dataclasses import dataclass
from typing import Protocol

from sluice.device.host import IP


class Gate(Protocol):
    """Decides about connections; a directory of a larger system implements it."""

    def admits(self, source: IP, destination: IP, port: int | None = None) -> bool:
        """Whether these two may connect; a refusal is reported by who refuses.

        Tenants have IPv4 addresses, hosts behind a NIC may have others.
        port: of the connection manager's listener at destination, which source asked; None:
        two queue pairs, of which nobody knows who began.
        """
        ...

    def delivers(self, sender: IP, member: IP) -> bool:
        """Whether what sender sends to a multicast group comes to a member of it; as admits, but that sender began."""
        ...


class OpenGate:
    """Where nothing is forbidden."""

    def admits(self, source: IP, destination: IP, port: int | None = None) -> bool:
        return True

    def delivers(self, sender: IP, member: IP) -> bool:
        return True


@dataclass(frozen=True)
class Flow:
    """What a gate is asked about (Gate.admits)."""

    source: IP
    destination: IP
    port: int | None = None


@dataclass(frozen=True)
class Connection:
    """qp: its number; 0: an address handle."""

    session: int
    handle: int
    peer: IP
    flow: Flow
    qp: int = 0


class Connections:
    """The connections of one tenant."""

    def __init__(self) -> None:
        self._all: dict[tuple[int, int], Connection] = {}

    def add(self, connection: Connection) -> None:
        self._all[connection.session, connection.handle] = connection

    def remove(self, session: int, handle: int) -> Connection | None:
        return self._all.pop((session, handle), None)

    def of_session(self, session: int) -> list[Connection]:
        return [one for one in self._all.values() if one.session == session]

    def remove_session(self, session: int) -> None:
        for one in self.of_session(session):
            self.remove(one.session, one.handle)

    def all(self) -> list[Connection]:
        return list(self._all.values())
