# SPDX-License-Identifier: Apache-2.0
"""A wire between network namespaces that loses, delays and reorders frames, as netem does. Needs root."""

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import selectors
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000
IFF_TAP, IFF_NO_PI, TUNSETIFF = 0x0002, 0x1000, 0x400454CA
FRAME = 65536
MTU = 9000
"""Bytes: each frame passes through Python."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Faults:
    """loss: of frames, 0 to 1; 1 is a cable that says nothing. delay, jitter: seconds; jitter reorders."""

    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0


def _tap_in(namespace: str, name: str) -> int:
    """A TAP device made in a network namespace; the descriptor works from anywhere. OSError."""
    tap = -1

    def make() -> None:
        nonlocal tap
        target = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(target, CLONE_NEWNET):
                return
        finally:
            os.close(target)
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))

    # A namespace is a thread's: this one's ends with it.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if tap < 0:
        raise OSError(f"no device {name} in {namespace}")
    return tap


class Wire:
    """A hub: what one end sends comes to all others, as far as the faults let it."""

    def __init__(self, seed: int = 1) -> None:
        self.faults = Faults()
        self.passed = self.lost = 0
        self._chance = random.Random(seed)
        self._taps: list[int] = []
        self._selector = selectors.DefaultSelector()
        self._late: list[tuple[float, int, int, bytes]] = []
        self._number = itertools.count()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @staticmethod
    def possible() -> bool:
        return os.geteuid() == 0 and Path("/dev/net/tun").exists()

    def plug(self, namespace: str, name: str) -> None:
        """Makes a network device in a namespace, an end of this wire. OSError."""
        tap = _tap_in(namespace, name)
        self._taps.append(tap)
        self._selector.register(tap, selectors.EVENT_READ)

    def _work(self) -> None:
        while not self._stopped:
            now = time.monotonic()
            while self._late and self._late[0][0] <= now:
                _, _, tap, frame = heapq.heappop(self._late)
                self._write(tap, frame)
            wait = min(0.05, self._late[0][0] - now) if self._late else 0.05
            for key, _ in self._selector.select(wait):
                self._forward(key.fd)

    def _forward(self, tap: int) -> None:
        for _ in range(64):
            try:
                frame = os.read(tap, FRAME)
            except OSError:
                return
            faults = self.faults
            if faults.loss and self._chance.random() < faults.loss:
                self.lost += 1
                continue
            self.passed += 1
            due = time.monotonic() + faults.delay + faults.jitter * self._chance.random()
            for other in self._taps:
                if other == tap:
                    continue
                if faults.delay or faults.jitter:
                    heapq.heappush(self._late, (due, next(self._number), other, frame))
                else:
                    self._write(other, frame)

    def _write(self, tap: int, frame: bytes) -> None:
        try:
            os.write(tap, frame)
        except OSError:
            self.lost += 1

    def close(self) -> None:
        self._stopped = True
        self._thread.join()
        self._selector.close()
        for tap in self._taps:
            os.close(tap)
