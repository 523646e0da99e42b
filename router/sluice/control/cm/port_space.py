# SPDX-License-Identifier: Apache-2.0
"""Ports: who has bound which, by the rules of sockets (rdma_bind_addr(3), rdma_listen(3))."""

import errno
import os
import random
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sluice.control.cm.address import SocketAddress
from sluice.control.cm.place import Scope
from sluice.device.host import IP

Owner = TypeVar("Owner")

EPHEMERAL = range(32768, 61000)
"""Linux' default of net.ipv4.ip_local_port_range."""
MAX_SHARERS = 256
"""Of one port in one space, by reuse or by addresses: each that comes looks at those that are there."""


@dataclass(eq=False)
class Binding(Generic[Owner]):
    """One port of one owner. spaces: the (scope, port space) pairs in which it is taken."""

    owner: Owner
    address: SocketAddress
    reuse: bool
    only_family: bool
    listening: bool = False
    spaces: list[tuple[Scope, int]] = field(default_factory=list)

    def conflict(self, other: "Binding[Owner]", heed_reuse: bool) -> int:
        """0, or the errno with which this binding fails beside the other."""
        if heed_reuse and self.reuse and other.reuse:
            return 0
        if self.only_family and other.only_family and self.address.family != other.address.family:
            return 0
        if self.address.is_any or other.address.is_any:
            return errno.EADDRNOTAVAIL
        return errno.EADDRINUSE if self.address.plain == other.address.plain else 0

    def answers(self, ip: IP) -> bool:
        """Whether it listens on this address by a wildcard."""
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        return self.address.is_any and (
            self.address.family == family or (self.address.family == socket.AF_INET6 and not self.only_family)
        )


class Ports(Generic[Owner]):
    """All ports of a node, by scope and port space."""

    def __init__(self) -> None:
        # Each a set that keeps its order: who listens first answers.
        self._taken: dict[tuple[Scope, int], dict[int, dict[Binding[Owner], None]]] = {}
        self._random = random.SystemRandom()

    def _at(self, space: tuple[Scope, int], port: int) -> Collection[Binding[Owner]]:
        return self._taken.get(space, {}).get(port, ())

    def _others(self, binding: Binding[Owner], port: int) -> Iterable[Binding[Owner]]:
        for space in binding.spaces:
            for other in self._at(space, port):
                if other is not binding:
                    yield other

    def bind(self, binding: Binding[Owner], scopes: Iterable[Scope], port_space: int) -> None:
        """Takes the binding's port; port 0 gets a free one. OSError EADDRINUSE, EADDRNOTAVAIL."""
        binding.spaces = [(scope, port_space) for scope in scopes]
        port = binding.address.port or self._free_port(binding)
        for other in self._others(binding, port):
            error = binding.conflict(other, heed_reuse=True)
            if error:
                binding.spaces = []
                raise OSError(error, os.strerror(error))
        if any(len(self._at(space, port)) >= MAX_SHARERS for space in binding.spaces):
            binding.spaces = []
            raise OSError(errno.EADDRINUSE, f"{MAX_SHARERS} share port {port}")
        binding.address = binding.address.with_port(port)
        for space in binding.spaces:
            self._taken.setdefault(space, {}).setdefault(port, {})[binding] = None

    def _free_port(self, binding: Binding[Owner]) -> int:
        start = self._random.randrange(len(EPHEMERAL))
        for offset in range(len(EPHEMERAL)):
            port = EPHEMERAL[(start + offset) % len(EPHEMERAL)]
            if all(port not in self._taken.get(space, {}) for space in binding.spaces):
                return port
        raise OSError(errno.EADDRNOTAVAIL, "all ephemeral ports are taken")

    def listen(self, binding: Binding[Owner]) -> None:
        """Of several that share a port by reuse, none may listen. OSError EADDRINUSE, EADDRNOTAVAIL."""
        for other in self._others(binding, binding.address.port):
            error = binding.conflict(other, heed_reuse=False)
            if error:
                raise OSError(error, os.strerror(error))
        binding.listening = True

    def release(self, binding: Binding[Owner]) -> None:
        port = binding.address.port
        for space in binding.spaces:
            ports = self._taken[space]
            del ports[port][binding]
            if not ports[port]:
                del ports[port]
            if not ports:
                del self._taken[space]
        binding.spaces = []

    def listener(self, scope: Scope, port_space: int, ip: IP, port: int) -> Owner | None:
        """Who listens there: who bound this very address before who bound any."""
        there = [one for one in self._at((scope, port_space), port) if one.listening]
        for one in there:
            if one.address.plain == ip:
                return one.owner
        for one in there:
            if one.answers(ip):
                return one.owner
        return None
