# SPDX-License-Identifier: Apache-2.0
"""Looking at what a tenant's process holds, by a thread: how long that takes may be the tenant's to say.

A file may be of a file system that the tenant serves itself, or whose server is gone: opening it, and asking for its
size, waits for an answer. A process that waits for such a one, with its own mappings locked, lets nobody read those.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Exception):
    """A request that can't be carried out yet: it is to come again when `when` is done, whatever that says."""

    def __init__(self, when: "asyncio.Future[None]") -> None:
        self.when = when


class Look(Generic[T]):
    """One question, which is asked at once. done: when there is an answer, or an error."""

    def __init__(self, ask: Callable[[], T], unwanted: Callable[[T], None]) -> None:
        """ask: in a thread of its own; OSError. unwanted: gets the answer, in the loop, where abandon() came first."""
        self._ask = ask
        self._unwanted = unwanted
        self._loop = asyncio.get_running_loop()
        self._answers: list[T] = []
        self._error: OSError | None = None
        self._abandoned = False
        self.done: asyncio.Future[None] = self._loop.create_future()
        # A daemon: the router may end while a file hangs.
        threading.Thread(target=self._work, name="sluice-look", daemon=True).start()

    def _work(self) -> None:
        try:
            self._answers.append(self._ask())
        except OSError as error:
            self._error = error
        # The loop may be closed by now.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if self._abandoned:
            for answer in self._answers:
                self._unwanted(answer)
        self.done.set_result(None)

    def answer(self) -> T:
        """Later; ask's OSError."""
        if not self.done.done():
            raise Later(self.done)
        if self._error is not None:
            raise self._error
        return self._answers.pop()

    def abandon(self) -> None:
        """Nobody asks for the answer any more."""
        self._abandoned = True
        if self.done.done():
            for answer in self._answers:
                self._unwanted(answer)
