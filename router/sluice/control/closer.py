# SPDX-License-Identifier: Apache-2.0
"""Closing what a tenant has passed, where nobody else waits for it."""

import os
import threading
from collections import deque
from contextlib import suppress

MOST = 64


class Closer:
    """Closes a tenant's files in a thread: how long that takes may be the tenant's to say.

    A TCP socket lingers as long as its owner likes (SO_LINGER in socket(7)), and a file of a file system
    that the tenant serves itself, or whose server is gone, is closed when that answers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[int] = deque()
        self._works = False

    @property
    def is_behind(self) -> bool:
        """Whether so many wait that it should not be given more."""
        return len(self._waiting) > MOST

    def close(self, *files: int) -> None:
        with self._lock:
            self._waiting.extend(files)
            if self._works or not self._waiting:
                return
            self._works = True
        # A daemon: the router may end while a file hangs.
        threading.Thread(target=self._work, name="sluice-closer", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._works = False
                    return
                file = self._waiting.popleft()
            with suppress(OSError):
                os.close(file)
