# SPDX-License-Identifier: Apache-2.0
"""Who may speak to this router: ZeroMQ's authentication protocol (RFC 27, ZAP) over the cluster's public keys."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import zmq
from zmq.utils import z85

log = logging.getLogger(__name__)

ENDPOINT = "inproc://zeromq.zap.01"
DOMAIN = b"sluice"


class Admission:
    """Answers libzmq's questions about the clients of one context's CURVE servers.

    node_of: the node with this public key (40 bytes of Z85), or None.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], node_of: Callable[[bytes], str | None]) -> None:
        self._node_of = node_of
        self._refused: dict[tuple[str, str], int] = {}
        self.refused = 0
        """How many were turned away."""
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ENDPOINT)
        asyncio.get_running_loop().add_reader(self._socket.FD, self._drain)

    def _drain(self) -> None:
        with suppress(zmq.Again):
            while True:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
                # Routing frames end with an empty one, as a REQ socket sends them.
                split = frames.index(b"") + 1
                self._socket.send_multipart([*frames[:split], *self._answer(frames[split:])], zmq.NOBLOCK)

    def _answer(self, request: Sequence[bytes]) -> list[bytes]:
        version, number, domain, address, _identity, mechanism, *credentials = request
        reply = [b"1.0", number]
        if version != b"1.0" or domain != DOMAIN or mechanism != b"CURVE" or len(credentials) != 1:
            return [*reply, b"400", b"only CURVE", b"", b""]
        key = z85.encode(credentials[0])
        node = self._node_of(key)
        if node is None:
            self._log(address.decode(errors="replace"), key.decode())
            return [*reply, b"400", b"unknown key", b"", b""]
        return [*reply, b"200", b"", node.encode(), b""]

    def _log(self, address: str, key: str) -> None:
        """Each stranger once in a while: it tries again and again."""
        if len(self._refused) > 1000:
            self._refused.clear()
        self.refused += 1
        count = self._refused[address, key] = self._refused.get((address, key), 0) + 1
        if count & (count - 1) == 0:
            log.warning("refused a router at %s: its key %s is no node's of the cluster", address, key)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.FD)
        self._socket.close()
