# SPDX-License-Identifier: Apache-2.0
"""A node's RDMA NICs: which there are, what each can do, what happens to it.

A NIC is one port of an RDMA device, and named as UCX does: "mlx5_0:2"; port 1 needs no number. The engine opens it
and posts to it (csrc/nic.h); this is what the control plane knows of it.
Devices are found in sysfs, where the kernel lists them whether or not libibverbs has a provider.
"""

import asyncio
import errno
import os
import re
import resource
from asyncio import Future
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from sluice.cluster.directory import ip_of
from sluice.device.host import IP, on_interface
from sluice.engine import Engine, ffi

SYSFS = Path("/sys/class/infiniband")
VERBS = Path("/sys/class/infiniband_verbs")

REACH_SECONDS = 1.0
"""How long a way that was found, or wasn't, is not looked for again."""
REACH_THREADS = 64

CAP_IPC_LOCK = 14  # linux/capability.h

# Numbers of rdma-core's enums (infiniband/verbs.h).
PORT_DOWN = 1
PORT_ACTIVE = 4
DEVICE_FATAL = 8
PORT_IS_ACTIVE = 9
PORT_EVENTS = {
    DEVICE_FATAL: "the device failed",
    PORT_IS_ACTIVE: "its port is active",
    10: "its port is down",
    11: "its LID changed",
    12: "its partition table changed",
    18: "its GID table changed",
}
"""enum ibv_event_type: those of the port and the device, which every tenant hears of."""

_STATES = {0: "no state", 1: "down", 2: "initialising", 3: "armed", 4: "active", 5: "active, deferred"}


class NicError(ValueError):
    """A device that can't be used; the text says why and what would be right."""


def devices() -> list[str]:
    """The names of this node's RDMA devices."""
    return sorted(entry.name for entry in SYSFS.iterdir()) if SYSFS.is_dir() else []


def nic_name(device: str, port: int) -> str:
    return device if port == 1 else f"{device}:{port}"


def device_and_port(name: str) -> tuple[str, int]:
    """Of a NIC's name."""
    device, _, port = name.partition(":")
    return device, int(port) if port.isascii() and port.isdigit() else 1


def ports(device: str, sysfs: Path | None = None) -> list[int]:
    """Of an RDMA device. sysfs: where the kernel lists such devices."""
    numbers = [entry.name for entry in ((sysfs or SYSFS) / device / "ports").glob("*")]
    return sorted(int(number) for number in numbers if number.isdigit())


def _is_roce(device: str, port: int) -> bool:
    with suppress(OSError):
        return (SYSFS / device / "ports" / str(port) / "link_layer").read_text().strip() == "Ethernet"
    return False


def _is_active(device: str, port: int) -> bool:
    with suppress(OSError):
        state = (SYSFS / device / "ports" / str(port) / "state").read_text()
        return state.startswith(f"{PORT_ACTIVE}:") and _is_roce(device, port)
    return False


def active_nics() -> list[str]:
    """Those with RoCE whose port is up."""
    return [nic_name(device, port) for device in devices() for port in ports(device) if _is_active(device, port)]


def check_nic(text: str) -> str:
    """The name of a NIC. NicError where there is none such."""
    name, colon, port = text.partition(":")
    if name not in devices():
        raise NicError(f"--device {text}: there is no such RDMA device; there are: {', '.join(devices()) or 'none'}")
    there = [str(number) for number in ports(name)]
    if colon and port not in there:
        raise NicError(f"--device {text}: {name} has no such port; it has: {', '.join(there) or 'none'}")
    if not _is_roce(*device_and_port(text)):
        raise NicError(
            f"--device {text}: its link is InfiniBand, where addresses are no IP addresses: only RoCE will do"
        )
    return nic_name(*device_and_port(text))


def lockable(status: Path = Path("/proc/self/status")) -> int | None:
    """How many bytes of tenants' memory this process may have pinned for its NICs; None: as many as there are.

    Pages count to who registers them, unless he has CAP_IPC_LOCK (getrlimit(2), capabilities(7)).
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
    unlimited = capabilities is not None and int(capabilities[1], 16) >> CAP_IPC_LOCK & 1
    return None if unlimited or limit == resource.RLIM_INFINITY else limit


def _verbs_device(name: str) -> Path | None:
    """Where the kernel shows the device's verbs; it is gone as soon as the device is to go."""
    for path in VERBS.glob("uverbs*/ibdev"):
        with suppress(OSError):  # going just now
            if path.read_text().strip() == name:
                return path.parent
    return None


class Nic:
    """One port of an RDMA device, opened by the engine."""

    def __init__(self, engine: Engine, number: int, name: str, of_node: "list[Nic] | None" = None) -> None:
        """NicError where it can't be opened.

        number: the device that it is behind, by the engine's count. of_node: the node's NICs, to which it adds itself.
        """
        self._engine = engine
        self._number = number
        self.name = name
        self.device, self._port = device_and_port(name)
        self.present = True
        self._of_node = [] if of_node is None else of_node
        self._ways: dict[tuple[int, bytes], Future[None]] = {}
        self._closing = False
        self._had_address = False
        self._threads = ThreadPoolExecutor(REACH_THREADS, "sluice-reach")
        try:
            self._open()
        except OSError as error:
            reason = {
                errno.ELIBACC: "libibverbs.so.1 can't be loaded: install libibverbs1 and ibverbs-providers",
                errno.ELIBBAD: "libibverbs is older than rdma-core 32",
                errno.ENODEV: "libibverbs doesn't list it: its provider is missing (ibverbs-providers)",
            }.get(error.errno or 0, os.strerror(error.errno or errno.EIO))
            raise NicError(f"--device {name}: {reason}") from None
        self._of_node.append(self)

    def device_of(self, gid: bytes) -> int | None:
        """The device whose NIC has this GID, by the engine's count: its own, or another's. None: no NIC of the node."""
        return next((nic._number for nic in self._of_node if gid in nic.gids), None)

    def addresses(self) -> list[IP]:
        """Its GIDs as the host's addresses."""
        ips = map(ip_of, self.gids)
        return [
            ip if isinstance(ip, IPv4Address) else on_interface(ip, interface)
            for ip, interface in zip(ips, self._now.interfaces, strict=False)
        ]

    def event_fd(self) -> int:
        """Readable while events() has something to say."""
        return self._engine.nic_event_fd(self._number)

    def events(self) -> Iterator[int]:
        """Async events (enum ibv_event_type) since the last call; QPs' were passed on already."""
        return self._engine.nic_events(self._number)

    def _open(self) -> None:
        self._engine.open_nic(self._number, self.device, self._port)
        self._verbs = _verbs_device(self.device)
        self._ask()

    def is_there(self) -> bool:
        """False: it was removed, or the kernel waits for us to let it go, which is all it says of it where its driver
        can't take a device from who has it open."""
        return self._verbs is None or self._verbs.exists()

    def came_back(self) -> bool:
        """Opens a device that was lost, where it is there again and of use: its port is up, and has an address.

        A kernel that adds a device gives it its addresses a little later; who opened it before would find none.
        """
        if self._closing or _verbs_device(self.device) is None or not _is_active(self.device, self._port):
            return False
        with suppress(OSError):
            self._open()
            self.present = (
                self._now.port_state == PORT_ACTIVE
                and bool(self.gids)
                and (self._has_address() or not self._had_address)
            )
        if not self.present:
            self._engine.close_nic(self._number)
            self._now.port_state = PORT_DOWN
        return self.present

    def _has_address(self) -> bool:
        """One beside the link-local one that every interface has."""
        return any(isinstance(ip, IPv4Address) or not ip.is_link_local for ip in map(ip_of, self.gids))

    def reach(self, gid_index: int, gid: bytes) -> "Future[None] | None":
        """None: the way to this GID is known. A future: until then it is looked for. OSError: there is none."""
        if not self.present:
            raise OSError(errno.ENETDOWN, "the device is gone")
        way = self._ways.get((gid_index, gid))
        if way is None:
            loop = asyncio.get_running_loop()
            way = loop.run_in_executor(self._threads, self._engine.reach_nic, self._number, gid_index, gid)
            self._ways[gid_index, gid] = way
            way.add_done_callback(lambda done: self._found(gid_index, gid, done))
        if not way.done():
            return way
        way.result()
        return None

    def _found(self, gid_index: int, gid: bytes, way: "Future[None]") -> None:
        if not way.cancelled():
            way.exception()  # told to who asks next, if anybody does
        asyncio.get_running_loop().call_later(REACH_SECONDS, self._ways.pop, (gid_index, gid), None)

    def close(self) -> None:
        """Nothing is in the engine any more."""
        self._threads.shutdown()

    def renew(self) -> None:
        """Asks the device anew; one that doesn't answer is no longer present."""
        try:
            self._ask()
        except OSError:
            self.lost()

    def lost(self) -> None:
        """It was removed: what tenants have of it fails, and its port is down, for whoever asks."""
        if not self.present:
            return
        self.present = False
        self._now.port_state = PORT_DOWN
        searches = [way for way in self._ways.values() if not way.done()]
        self._ways.clear()
        if searches:
            self._closing = True
            asyncio.gather(*searches, return_exceptions=True).add_done_callback(lambda _: self._close())
        else:
            self._close()

    def _close(self) -> None:
        self._engine.close_nic(self._number)
        self._closing = False

    def _ask(self) -> None:
        self._now = self._engine.query_nic(self._number)
        self.gids = [bytes(ffi.buffer(self._now.gids[i].raw)) for i in range(self._now.gid_count)]
        """Those that tenants can use, in their order: RoCE v2, IPv4 before IPv6."""
        self._had_address = self._had_address or self._has_address()

    def describe(self) -> str:
        addresses = ", ".join(map(str, self.addresses()))
        if not self.present:
            return "it is gone, until it is back"
        return f"port {self._port} is {_STATES.get(self._now.port_state, 'unknown')}, addresses: {addresses or 'none'}"

    def srq_sges(self, most: int) -> int:
        """How many SGEs a receive of an SRQ may have: most, or what the device has, if it has SRQs."""
        return min(most, self._now.max_srq_sge) if self._now.max_srq else most

    def limit(self, reply: Any) -> None:
        """What a tenant can't have more of than the device has, and its port (struct sluice_device_reply)."""
        now = self._now
        for field in ("max_mr_size", "max_qp", "max_sge", "max_mr", "max_pd", "max_ah", "max_qp_rd_atom"):
            setattr(reply, field, min(getattr(reply, field), getattr(now, field)))
        # Those of a device without SRQs are for QPs of this node alone.
        if now.max_srq:
            reply.max_srq, reply.max_srq_sge = min(reply.max_srq, now.max_srq), self.srq_sges(reply.max_srq_sge)
        # Each queue has its completions in one CQ of the device's.
        reply.max_qp_wr = min(reply.max_qp_wr, now.max_qp_wr, 1 << (now.max_cqe.bit_length() - 1))
        for field in ("port_state", "active_mtu", "active_speed", "active_width"):
            setattr(reply, field, getattr(now, field))
