# SPDX-License-Identifier: Apache-2.0
"""A tenant's control socket: a zmq ROUTER at a path, where nobody can pass descriptors."""

import socket
import threading
from pathlib import Path

import zmq

from sluice.device.socket_file import let_all_connect

SO_PASSRIGHTS = 83
"""Linux 6.16, asm-generic/socket.h: off, who passes descriptors along gets EPERM, on what is accepted too."""
MAX_REQUEST = 4096
"""Bytes; libzmq hangs up on who sends more."""
BACKLOG = 128


class ControlSocket:
    """socket: what requests come from, and answers go to. close() it. OSError, zmq.ZMQError.

    Descriptors that come along with bytes are closed by the thread that reads these, libzmq's, which all sockets of a
    context share; and closing one takes as long as its owner likes (closer.py). An older kernel lets nobody refuse
    them: there the tenant has a context of its own, and may hold up its own requests only.
    """

    def __init__(self, path: Path, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """context: where the router's other sockets are. path: what was there before goes."""
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            # Containers run as any user; the directory is what keeps strangers out.
            let_all_connect(path)
            self._own: zmq.Context[zmq.Socket[bytes]] | None = None
            try:
                # Before it listens: from then on it is on what is accepted as it is here.
                listener.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
            except OSError:
                self._own = context = zmq.Context()
            listener.listen(BACKLOG)
            listener.setblocking(False)
            self.socket = context.socket(zmq.ROUTER)
            self.socket.setsockopt(zmq.LINGER, 0)
            self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST)
            self.socket.setsockopt(zmq.USE_FD, listener.fileno())
            self.socket.bind(f"ipc://{path}")
            # It is libzmq's by now.
            listener.detach()

    def close(self) -> None:
        self.socket.close()
        if self._own is not None:
            # Its thread may be held up; nobody waits for that.
            threading.Thread(target=self._own.term, name="sluice-control", daemon=True).start()
