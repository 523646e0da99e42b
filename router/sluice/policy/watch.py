# SPDX-License-Identifier: Apache-2.0
"""A file that is watched (inotify(7)): told at once when it was written or replaced in its directory.

What inotify doesn't tell of is found by looking once in a while: a file elsewhere that a symbolic link leads to, one of
a network's file system, a directory that was replaced as a whole, and a file that is gone.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE = 0x8, 0x80, 0x100
IN_NONBLOCK, IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
LOOK_SECONDS = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Calls on_change when the file's contents may be others, or it is gone. Its directory must exist. OSError."""

    def __init__(self, path: Path, on_change: Callable[[], None]) -> None:
        self._path = path
        self._on_change = on_change
        self._seen = self._look()
        self._fd = _libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        # The directory: editors and Kubernetes replace the file, and a symbolic link of its path as well.
        mask = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE
        if _libc.inotify_add_watch(self._fd, os.fsencode(path.parent), ctypes.c_uint32(mask)) < 0:
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number), str(path.parent))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look_again)

    def _look(self) -> tuple[int, int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        # The mode: who could not read it may now.
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode

    def _read(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 65536)
        # Who replaces it may have taken it away first: then it comes in a moment.
        self._compare(gone_too=False)

    def _look_again(self) -> None:
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look_again)
        self._compare(gone_too=True)

    def _compare(self, gone_too: bool) -> None:
        now = self._look()
        if now != self._seen and (gone_too or now is not None):
            self._seen = now
            self._on_change()

    def close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
