# SPDX-License-Identifier: Apache-2.0
"""Messages between the communication managers of two nodes: sent again until they arrive, and checked here."""

import asyncio
import errno
import logging
import socket
from collections import defaultdict
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any, get_args

from sluice.cluster.directory import Directory, address_of
from sluice.cluster.links import Links, PeerRefused, PeerUnreachable
from sluice.control.cm.address import SocketAddress
from sluice.control.cm.manager import CommunicationManager
from sluice.control.cm.message import ConnectReply, ConnectRequest, LookupReply, LookupRequest, Message, Reject
from sluice.control.cm.parameters import (
    LOOKUP_DATA,
    LOOKUP_REPLY_DATA,
    MAX_RETRIES,
    QPN_BITS,
    REJECT_DATA,
    REPLY_DATA,
    REQUEST_DATA,
    Parameters,
)

log = logging.getLogger(__name__)

FromTenant = ConnectRequest | ConnectReply | LookupRequest | LookupReply
"""They say whose they are; only a refusal leaves it out."""
ANSWER_SECONDS = 2.0
"""Until a message that has no answer is sent again."""
PAUSE = 0.5
TRIES = 5
PATIENCE = TRIES * (ANSWER_SECONDS + PAUSE)
"""Until a message is given up, whether it was on its way or waited for others."""
MAX_ON_THE_WAY = 256
"""Messages to one node at a time, of the requests that may wait for its answers (cluster.links.MAX_PENDING)."""
NEWS = (0.02, 0.1, 0.5)
"""Seconds between looks for a tenant that is younger than what is known of its node."""


def _parameters_fit(parameters: Parameters, room: int) -> bool:
    return (
        0 <= parameters.qp_num < 1 << QPN_BITS
        and 0 <= parameters.qkey < 1 << 32
        and all(
            0 <= value < 256
            for value in (parameters.responder_resources, parameters.initiator_depth, parameters.flow_control)
        )
        and 0 <= parameters.retry_count <= MAX_RETRIES
        and 0 <= parameters.rnr_retry_count <= MAX_RETRIES
        and len(parameters.private_data) <= room
        and all(0 <= value < 1 << 32 for value in parameters.ece)
    )


def _addresses_fit(addresses: Iterable[SocketAddress]) -> bool:
    """The interface is a number beside the address: what IPv6Address takes as its own may be any text."""
    return all(
        (isinstance(address.ip, IPv4Address) or address.ip.scope_id is None)
        and address.family == (socket.AF_INET if isinstance(address.ip, IPv4Address) else socket.AF_INET6)
        and 0 <= address.port < 1 << 16
        and 0 <= address.scope_id < 1 << 32
        for address in addresses
    )


def fits(message: Message) -> bool:
    """Whether all values are ones that a communication manager sends."""
    match message:
        case ConnectRequest():
            own = _addresses_fit((message.source, message.service.destination))
            own = own and len(message.gid) == 16 and 0 <= message.psn < 1 << 24
            return own and _parameters_fit(message.parameters, REQUEST_DATA)
        case ConnectReply():
            own = len(message.gid) == 16 and 0 <= message.psn < 1 << 24
            return own and _parameters_fit(message.parameters, REPLY_DATA)
        case Reject():
            return len(message.private_data) <= REJECT_DATA and 0 <= message.reason < 1 << 16
        case LookupRequest():
            own = _addresses_fit((message.source, message.service.destination)) and len(message.gid) == 16
            return own and len(message.private_data) <= LOOKUP_DATA
        case LookupReply():
            own = len(message.gid) == 16 and 0 <= message.status < 1 << 16
            return own and _parameters_fit(message.parameters, LOOKUP_REPLY_DATA)
        case _:
            return True


class Link:
    """Make it, give `send` to the communication manager, then attach that."""

    def __init__(self, links: Links, directory: Directory) -> None:
        self._links = links
        self._directory = directory
        self._tasks: set[asyncio.Task[None]] = set()
        self._ways: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_ON_THE_WAY))
        self._cm: CommunicationManager | None = None

    def attach(self, cm: CommunicationManager) -> None:
        self._cm = cm
        for kind in get_args(Message):
            self._links.handle(kind, self._on_message)
        self._links.on_lost(cm.node_lost)

    def send(self, node: str, message: Message) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(node, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, node: str, message: Message) -> None:
        """Thousands at once wait for each other: a tenant may end as many connections."""
        try:
            async with asyncio.timeout(PATIENCE), self._ways[node]:
                arrived = await self._try(node, message)
        except TimeoutError:
            arrived = False
        if not arrived:
            assert self._cm is not None
            self._cm.undelivered(message)

    async def _try(self, node: str, message: Message) -> bool:
        """Whether it arrived."""
        for _ in range(TRIES):
            try:
                await self._links.request(node, message, ANSWER_SECONDS)
                return True
            except PeerRefused as error:
                log.warning("node %s refused a message of rdma_cm: %s", node, error)
                return False
            except PeerUnreachable:
                await asyncio.sleep(PAUSE)
        return False

    def _on_message(self, node: str, message: Message) -> Any:
        assert self._cm is not None
        if not fits(message):
            raise OSError(errno.EBADMSG, f"{type(message).__name__}: a value is out of range")
        if isinstance(message, FromTenant) and any(message.gid):
            return self._receive_from_tenant(node, message)
        self._cm.receive(node, message)
        return None

    async def _receive_from_tenant(self, node: str, message: FromTenant) -> None:
        """A node speaks for its own tenants only. One that has just come may not be known here yet."""
        assert self._cm is not None
        address = address_of(message.gid)
        for pause in (*NEWS, 0.0):
            place = None if address is None else self._directory.find(address)
            if place is not None:
                break
            await asyncio.sleep(pause)
        if place is None or place.node != node:
            raise OSError(errno.EACCES, f"{address} is not known to be of node {node}")
        self._cm.receive(node, message)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
