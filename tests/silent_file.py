# SPDX-License-Identifier: Apache-2.0
"""A file whose file system stops to answer: FUSE (linux/fuse.h, version 7), with a root that is a regular file."""

import ctypes
import errno
import os
import struct
import threading
from contextlib import suppress
from pathlib import Path

MNT_DETACH = 2
FORGET, GETATTR, OPEN, READ, RELEASE, INIT = 2, 3, 14, 15, 18, 26
ATTRIBUTES = struct.Struct("<6Q10I")
SIZE = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class SilentFile:
    """path: mounted there. OSError where this process may not mount. close() it: who waits for it gets an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._silent = self._over = False
        self._lock = threading.Lock()
        self._unanswered: list[int] = []
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=100644,user_id={os.getuid()},group_id={os.getgid()}".encode()
        if _libc.mount(b"silent", bytes(path), b"fuse", 0, options) != 0:
            number = ctypes.get_errno()
            os.close(self._device)
            raise OSError(number, os.strerror(number), str(path))
        # Until the last who has the file open has closed it.
        threading.Thread(target=self._serve, daemon=True).start()
        # Told once that there is no FLUSH, the kernel asks no more: closing a file, as a child does that is started,
        # must not wait for a thread of its own parent.
        path.read_bytes()

    def fall_silent(self) -> None:
        """From now on nothing is answered but that a file was closed."""
        self._silent = True

    def asked(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._unanswered)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 17)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue
            _, operation, unique = struct.unpack_from("<IIQ", request)
            with self._lock:
                if self._silent and operation not in (FORGET, RELEASE):
                    self._unanswered.append(unique)
                elif operation != FORGET:
                    self._answer(unique, *(self._answer_to(operation) if not self._over else (errno.EIO, b"")))

    def _answer(self, unique: int, error: int, body: bytes = b"") -> None:
        # Who asked may have given up.
        with suppress(OSError):
            os.write(self._device, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)

    def _answer_to(self, operation: int) -> tuple[int, bytes]:
        if operation == INIT:
            return 0, struct.pack("<4I2H2I2H", 7, 31, 0, 0, 8, 8, 65536, 1, 1, 0) + bytes(32)
        if operation == GETATTR:
            # Good for no time: it is asked for each time.
            attributes = ATTRIBUTES.pack(1, SIZE, 8, 0, 0, 0, 0, 0, 0, 0o100644, 1, 0, 0, 0, SIZE, 0)
            return 0, bytes(16) + attributes
        if operation == OPEN:
            return 0, bytes(16)
        # What is read is empty.
        return (0 if operation in (READ, RELEASE) else errno.ENOSYS), b""

    def close(self) -> None:
        with self._lock:
            self._silent, self._over = False, True
            for unique in self._unanswered:
                self._answer(unique, errno.EIO)
            self._unanswered.clear()
        _libc.umount2(bytes(self.path), MNT_DETACH)
