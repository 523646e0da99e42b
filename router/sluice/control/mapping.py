# SPDX-License-Identifier: Apache-2.0
"""Reaching into a tenant's process where its memory can't be moved: the file behind a mapping, or /proc/PID/mem.

Both need the rights of root (ptrace(2), access mode checks). What a process is
given is never more than it has: a file counts as writable only where the process
has it mapped so at this moment.
"""

import errno
import os
import select
import stat
from pathlib import Path


def _refuse(error: int) -> OSError:
    return OSError(error, os.strerror(error))


def _alive(pidfd: int) -> bool:
    """A pidfd becomes readable when its process ends."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return not poller.poll(0)


def _check(pid: int, pidfd: int, uid: int) -> None:
    """Whether it still is the process that has connected, as this user.

    A number may become another process's, unless that one still lives. And what has
    executed a privileged program since belongs to root in /proc: nobody may reach
    into it who could not before.
    """
    if Path(f"/proc/{pid}").stat().st_uid != uid or not _alive(pidfd):
        raise _refuse(errno.EPERM)


def _mapped(pid: int, start: int, end: int) -> tuple[str, int, int, int] | None:
    """Permissions, device and inode of exactly this mapping (proc_pid_maps(5))."""
    text = b"\n" + _read(f"/proc/{pid}/maps")
    at = text.find(b"\n%08x-%08x " % (start, end))
    if at < 0:
        return None
    _, permissions, _, device, inode = text[at + 1 :].split(b"\n", 1)[0].split(None, 5)[:5]
    major, minor = (int(part, 16) for part in device.split(b":"))
    return permissions.decode(), major, minor, int(inode)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def open_mapping(pid: int, pidfd: int, uid: int, start: int, end: int, writable: bool) -> int:
    """A descriptor of the file that is mapped shared at [start, end) in a process.

    OSError: EFAULT where nothing is mapped so, EACCES where it isn't mapped
    writable but should be, EPERM without the rights or where the process is not
    this user's any more.
    """
    # The path first, without opening what a device or a pipe would do on open.
    path = os.open(f"/proc/{pid}/map_files/{start:x}-{end:x}", os.O_PATH | os.O_CLOEXEC)
    try:
        # Whatever was mapped there when it was opened: only what is mapped now, with these rights, is given.
        found = _mapped(pid, start, end)
        status = os.fstat(path)
        if found is None or found[1:] != (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino):
            raise _refuse(errno.EFAULT)
        permissions = found[0]
        if permissions[0] != "r" or permissions[3] != "s" or not stat.S_ISREG(status.st_mode):
            raise _refuse(errno.EFAULT)
        if writable and permissions[1] != "w":
            raise _refuse(errno.EACCES)
        flags = os.O_RDWR if writable else os.O_RDONLY
        file = os.open(f"/proc/self/fd/{path}", flags | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(path)
    try:
        _check(pid, pidfd, uid)
    except OSError:
        os.close(file)
        raise
    return file


def open_process(pid: int, pidfd: int, uid: int) -> int:
    """The process's memory as a file. It stays that process's, also after exec or its end (then reads give 0)."""
    file = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        _check(pid, pidfd, uid)
    except OSError:
        os.close(file)
        raise
    return file
