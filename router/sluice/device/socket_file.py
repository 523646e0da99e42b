# SPDX-License-Identifier: Apache-2.0
"""Sockets in a tenant's directory, which its container may be able to write to as well."""

import errno
import os
import stat
from pathlib import Path


def let_all_connect(path: Path) -> None:
    """Any user may connect to the socket there. OSError ENOTSOCK: it is none.

    A link that a container has put in its place would lead to a file of the host's, which chmod(2) follows.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTSOCK, f"{path} is no socket")
        Path(f"/proc/self/fd/{fd}").chmod(0o666)
    finally:
        os.close(fd)
