# SPDX-License-Identifier: Apache-2.0
"""An event channel: events that wait, and a pipe that holds one byte for each of them.

So the application's descriptor is readable exactly while an event waits, whatever is destroyed or moved meanwhile, and
no event can be lost by a full pipe: the events themselves stay here.
"""

import fcntl
import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Channel(Generic[Item]):
    """read_fd is for the application, and is the caller's to close."""

    def __init__(self) -> None:
        self.read_fd, self._write = os.pipe2(os.O_CLOEXEC)
        try:
            # The two ends are open files of their own: O_NONBLOCK here says nothing about the application's.
            fcntl.fcntl(self._write, fcntl.F_SETFL, os.O_NONBLOCK)
        except OSError:
            os.close(self.read_fd)
            os.close(self._write)
            raise
        self._waiting: OrderedDict[int, Item] = OrderedDict()
        self._next = 0
        self._owed = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def _pay(self) -> None:
        """Writes the bytes that are owed, as far as the pipe has room."""
        while self._owed:
            try:
                self._owed -= os.write(self._write, bytes(min(self._owed, 4096)))
            except OSError:
                return

    def put(self, item: Item) -> int:
        """Returns the number under which it waits."""
        self._next += 1
        self._waiting[self._next] = item
        self._owed += 1
        self._pay()
        return self._next

    def get(self) -> tuple[int, Item] | None:
        """The oldest and its number, for who has read its byte; None where none waits."""
        if not self._waiting:
            return None
        oldest = self._waiting.popitem(last=False)
        self._pay()
        return oldest

    def take_back(self, numbers: Iterable[int]) -> list[Item]:
        """Removes items that still wait, with their bytes, in their order."""
        items = [self._waiting.pop(number) for number in sorted(numbers) if number in self._waiting]
        unpaid = min(self._owed, len(items))
        self._owed -= unpaid
        self._drain(len(items) - unpaid)
        return items

    def _drain(self, count: int) -> None:
        """Reads bytes back. A reader that was faster finds no event for its byte, and waits on."""
        if not count:
            return
        with suppress(OSError):
            own = os.open(f"/proc/self/fd/{self._write}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                while count > 0:
                    got = len(os.read(own, min(count, 4096)))
                    if got == 0:
                        return
                    count -= got
            finally:
                os.close(own)

    def close(self) -> None:
        os.close(self._write)
        self._waiting.clear()
