# SPDX-License-Identifier: Apache-2.0
"""What one session has of rdma_cm: its event channels, ids and multicast memberships, by handle."""

import errno
import resource
from collections.abc import Callable

from sluice.control.cm.address import SocketAddress
from sluice.control.cm.channel import Channel
from sluice.control.cm.identifier import PORT_SPACES, Identifier, Membership, Queued, State
from sluice.control.cm.manager import CommunicationManager
from sluice.control.cm.place import Party

MAX_IDS = 16384
"""Of one tenant; memberships count as ids."""
MAX_CHANNELS = 4096
"""Of one tenant; each is an open file of the router, of which a tenant has a sixteenth at most."""
MAX_MEMBERSHIPS = 64
"""Of one id."""
SLICE = 256
"""Ids that end in one turn of the event loop, and who waits for them unseen (identifier.MAX_BACKLOG)."""
QP_TYPES = (2, 3, 4, 9, 10)
"""RC, UC, UD, XRC_SEND, XRC_RECV (enum ibv_qp_type)."""


def _missing() -> OSError:
    return OSError(errno.EINVAL, "no such handle")


def _most_channels() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CHANNELS if limit == resource.RLIM_INFINITY else min(MAX_CHANNELS, limit // 16)


class Owner:
    """Operations raise OSError with the errno that the application is to see."""

    def __init__(self, cm: CommunicationManager, party: Party) -> None:
        self.cm = cm
        self.party = party
        self._next = 0
        self._ids: dict[int, Identifier] = {}
        self._channels: dict[int, Channel[Queued]] = {}
        self._memberships: dict[int, Membership] = {}
        self._closing = False

    def _handle(self) -> int:
        self._next += 1
        return self._next

    # ---- channels -----------------------------------------------------------

    def create_channel(self) -> tuple[int, int]:
        """Its handle, and the end of it that is read, which is the caller's to close. EMFILE: too many."""
        most = _most_channels()
        if self.cm.channels_of_tenant[self.party.tenant] >= most:
            raise OSError(errno.EMFILE, f"a tenant has at most {most} event channels")
        channel: Channel[Queued] = Channel()
        handle = self._handle()
        self._channels[handle] = channel
        self.cm.channels_of_tenant[self.party.tenant] += 1
        return handle, channel.read_fd

    def channel(self, handle: int) -> Channel[Queued]:
        try:
            return self._channels[handle]
        except KeyError:
            raise _missing() from None

    def destroy_channel(self, handle: int) -> None:
        """And the ids that are on it."""
        channel = self.channel(handle)
        del self._channels[handle]
        self._remove_all(channel, lambda: self._close_channel(channel))

    def _close_channel(self, channel: Channel[Queued]) -> None:
        self.cm.channels_of_tenant[self.party.tenant] -= 1
        channel.close()

    def next_event(self, handle: int) -> Queued:
        """EAGAIN: none waits."""
        found = self.channel(handle).get()
        if found is None:
            raise OSError(errno.EAGAIN, "no event waits")
        number, queued = found
        queued.about.delivered(number, queued)
        return queued

    # ---- ids ----------------------------------------------------------------

    def _room(self) -> bool:
        return self.cm.ids_of_tenant[self.party.tenant] < MAX_IDS

    def create_id(self, uid: int, channel: int, port_space: int, qp_type: int) -> Identifier:
        """EINVAL: no such port space or type; ENOMEM: too many."""
        on = self.channel(channel)
        if port_space not in PORT_SPACES or qp_type not in QP_TYPES:
            raise OSError(errno.EINVAL, "no such port space or type of QP")
        if not self._room():
            raise OSError(errno.ENOMEM, f"a tenant has at most {MAX_IDS} ids")
        return self._add(Identifier(self, self._handle(), uid, on, port_space, qp_type))

    def add_child(self, listener: Identifier) -> Identifier | None:
        """The id of a request; None: no room."""
        if self._closing or not self._room():
            return None
        return self._add(Identifier(self, self._handle(), 0, listener.channel, listener.port_space, listener.qp_type))

    def _add(self, identifier: Identifier) -> Identifier:
        self._ids[identifier.handle] = identifier
        self.cm.ids_of_tenant[self.party.tenant] += 1
        return identifier

    def identifier(self, handle: int) -> Identifier:
        try:
            return self._ids[handle]
        except KeyError:
            raise _missing() from None

    def remove(self, identifier: Identifier) -> None:
        for membership in list(identifier.memberships.values()):
            self.remove_membership(membership)
        del self._ids[identifier.handle]
        self.cm.ids_of_tenant[self.party.tenant] -= 1
        identifier.destroy()

    def _remove_all(self, channel: Channel[Queued] | None, then: Callable[[], None]) -> None:
        """The ids of a channel, or all: of many some at once, and the others in turns that others come between."""
        left = len(self._ids) - SLICE
        for identifier in [one for one in self._ids.values() if channel in (None, one.channel)]:
            if len(self._ids) <= left:
                self.cm.later(self._remove_all, channel, then)
                return
            # With a listener go those whom nobody has seen.
            if identifier.handle in self._ids:
                self.remove(identifier)
        then()

    def listening(self) -> list[str]:
        """What it listens on, as address:port."""
        found = [one.source for one in self._ids.values() if one.state is State.LISTEN and one.source is not None]
        return [f"[{one.ip}]:{one.port}" if one.ip.version == 6 else f"{one.ip}:{one.port}" for one in found]

    def count(self) -> tuple[int, int]:
        """Ids, memberships that the application has seen the event of."""
        return len(self._ids), sum(membership.reported > 0 for membership in self._memberships.values())

    # ---- memberships --------------------------------------------------------

    def add_membership(self, uid: int, identifier: Identifier, address: SocketAddress) -> Membership:
        """ENOMEM: too many."""
        if len(identifier.memberships) >= MAX_MEMBERSHIPS or not self._room():
            raise OSError(errno.ENOMEM, f"an id is in at most {MAX_MEMBERSHIPS} groups")
        membership = Membership(self._handle(), uid, identifier, address)
        self._memberships[membership.handle] = membership
        self.cm.ids_of_tenant[self.party.tenant] += 1
        return membership

    def membership(self, handle: int) -> Membership:
        try:
            return self._memberships[handle]
        except KeyError:
            raise _missing() from None

    def remove_membership(self, membership: Membership) -> None:
        membership.identifier.leave(membership)
        del self._memberships[membership.handle]
        self.cm.ids_of_tenant[self.party.tenant] -= 1

    def close(self) -> None:
        """The session has ended: the other ends see disconnects."""
        self._closing = True
        self._remove_all(None, self._close_channels)

    def _close_channels(self) -> None:
        for channel in self._channels.values():
            self._close_channel(channel)
        self._channels.clear()
