# SPDX-License-Identifier: Apache-2.0
"""An event channel: events that wait, and a socket that holds one byte for each of them.

So the application's descriptor is readable exactly while an event waits, and no event can be lost by a full socket: the
events themselves stay here. What is destroyed or moved meanwhile leaves bytes behind, which the shim is told to take
out. Why not a pipe: csrc/event_channel.h.
"""

import socket
from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Channel(Generic[Item]):
    """read_fd is for the application, and is the caller's to close."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # Nothing comes from there: nor descriptors, whose closing could take its time here.
        self._socket.shutdown(socket.SHUT_RD)
        self.read_fd = theirs.detach()
        self._waiting: OrderedDict[int, Item] = OrderedDict()
        self._next = 0
        self._owed = 0
        self._surplus = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def _pay(self) -> None:
        """Sends the bytes that are owed, as far as the socket has room."""
        while self._owed:
            try:
                self._owed -= self._socket.send(bytes(min(self._owed, 4096)), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                return

    def put(self, item: Item) -> int:
        """Returns the number under which it waits."""
        self._next += 1
        self._waiting[self._next] = item
        if self._surplus:
            self._surplus -= 1
        else:
            self._owed += 1
            self._pay()
        return self._next

    def get(self) -> tuple[int, Item] | None:
        """The oldest and its number, for who has read its byte; None where none waits."""
        if not self._waiting:
            self._surplus = max(self._surplus - 1, 0)
            return None
        oldest = self._waiting.popitem(last=False)
        self._pay()
        return oldest

    def take_back(self, numbers: Iterable[int]) -> list[Item]:
        """Removes items that still wait, in their order. Bytes of theirs that were sent are surplus."""
        items = [self._waiting.pop(number) for number in sorted(numbers) if number in self._waiting]
        unpaid = min(self._owed, len(items))
        self._owed -= unpaid
        self._surplus += len(items) - unpaid
        return items

    def take_surplus(self) -> int:
        """Bytes for which there is no event, for who takes them out of the socket as far as they are there.

        Those that aren't were read already; who read one finds no event for it, and waits on.
        """
        surplus, self._surplus = self._surplus, 0
        return surplus

    def close(self) -> None:
        self._socket.close()
        self._waiting.clear()
