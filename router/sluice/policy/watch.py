# SPDX-License-Identifier: Apache-2.0
"""A file that is watched (inotify(7)): told at once when it was written or replaced."""

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE = 0x8, 0x80, 0x100
IN_NONBLOCK, IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Calls on_change when the file's contents may be others. Its directory must exist. OSError."""

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
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _read(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 65536)
        now = self._look()
        if now is not None and now != self._seen:
            self._seen = now
            self._on_change()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
