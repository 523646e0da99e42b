# SPDX-License-Identifier: Apache-2.0
"""The engine's functions (csrc/engine.h), with errors as OSError."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sluice._engine import ffi, lib

Pair = tuple[int, int]
"""Egress and ingress."""


@dataclass(frozen=True)
class Share:
    """A part of the device (struct sluice_share): bits per second and bytes, by direction; 0 is none."""

    min_bps: Pair = (0, 0)
    max_bps: Pair = (0, 0)
    burst: Pair = (0, 0)
    weight: int = lib.SLUICE_WEIGHT_DEFAULT

    def fields(self) -> dict[str, Any]:
        return {"min_bps": self.min_bps, "max_bps": self.max_bps, "burst": self.burst, "weight": self.weight}

    def to_c(self) -> Any:
        return ffi.new("struct sluice_share *", self.fields())


@dataclass(frozen=True)
class Shape:
    """What a tenant may use (struct sluice_shape); 0 is no limit. group: its number, None for none."""

    share: Share = field(default_factory=Share)
    max_operations: int = 0
    max_verbs: int = 0
    max_engine_ns: int = 0
    max_mr_bytes: int = 0
    max_mrs: int = 0
    max_qps: int = 0
    max_cqs: int = 0
    group: int | None = None
    wire_only: bool = False

    def to_c(self) -> Any:
        return ffi.new(
            "struct sluice_shape *",
            {
                "share": self.share.fields(),
                "max_operations": self.max_operations,
                "max_verbs": self.max_verbs,
                "max_engine_ns": self.max_engine_ns,
                "max_mr_bytes": self.max_mr_bytes,
                "max_mrs": self.max_mrs,
                "max_qps": self.max_qps,
                "max_cqs": self.max_cqs,
                "group": 0 if self.group is None else self.group + 1,
                "wire_only": int(self.wire_only),
            },
        )


@dataclass(frozen=True)
class SessionBroken:
    """A session whose shared memory held garbage."""

    session: int
    reason: str


@dataclass(frozen=True)
class VerbGoesOn:
    """A verb of the session's that was EINPROGRESS may be asked again."""

    session: int


@dataclass(frozen=True)
class QpDisconnected:
    """A QP whose connection to another node broke."""

    session: int
    handle: int


@dataclass(frozen=True)
class TrunkDisconnected:
    """A trunk whose connection to another node broke."""

    trunk: int


@dataclass(frozen=True)
class AhUnresolved:
    """An address handle that is used and leads nowhere, and the GID that it was made for."""

    session: int
    handle: int
    gid: bytes


@dataclass(frozen=True)
class Neighbour:
    """May one tenant send datagrams to the other by the NIC's GID? Numbers; Engine.admit_neighbour answers."""

    tenant: int
    peer: int


@dataclass(frozen=True)
class Member:
    """May a tenant (its number) hear what a sender (its GID) sends to groups? Engine.admit_member answers.

    trunk: by which the sender's datagrams come; None: it is of this node.
    """

    sender: bytes
    tenant: int
    trunk: int | None


@dataclass(frozen=True)
class SessionFiles:
    """Descriptors for a session's process. engine_page stays the engine's; the rest are the caller's."""

    engine_page: int
    segment: int
    arena: int


def checked(result: int) -> int:
    """A result of the engine's; negative ones are raised as OSError with that errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


class Engine:
    """One engine with its worker thread. Close it, or use it as a context manager."""

    def __init__(self, counters: Path | None = None) -> None:
        out = ffi.new("struct sluice_engine **")
        path = ffi.NULL if counters is None else ffi.new("char[]", os.fsencode(counters))
        checked(lib.sluice_engine_open(path, out))
        self._engine = out[0]

    def close(self) -> None:
        if self._engine is not None:
            lib.sluice_engine_close(self._engine)
            self._engine = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def yield_cores() -> None:
        """For the calling thread: who makes a thousand QPs a second takes no core from those that send."""
        lib.sluice_engine_yield_cores()

    def event_fd(self) -> int:
        """Readable while events() has something to say."""
        return int(lib.sluice_engine_event_fd(self._engine))

    def events(
        self,
    ) -> Iterator[SessionBroken | VerbGoesOn | QpDisconnected | TrunkDisconnected | AhUnresolved | Neighbour | Member]:
        """What has happened since the last call."""
        event = ffi.new("struct sluice_engine_event *")
        while lib.sluice_engine_next_event(self._engine, event):
            if event.kind == lib.SLUICE_EVENT_SESSION_BROKEN:
                yield SessionBroken(int(event.session), ffi.string(event.reason).decode())
            elif event.kind == lib.SLUICE_EVENT_VERB:
                yield VerbGoesOn(int(event.session))
            elif event.kind == lib.SLUICE_EVENT_QP_DISCONNECTED:
                yield QpDisconnected(int(event.session), int(event.qp))
            elif event.kind == lib.SLUICE_EVENT_TRUNK_DISCONNECTED:
                yield TrunkDisconnected(int(event.trunk))
            elif event.kind == lib.SLUICE_EVENT_AH_UNRESOLVED:
                yield AhUnresolved(int(event.session), int(event.ah), bytes(ffi.buffer(event.gid)))
            elif event.kind == lib.SLUICE_EVENT_NEIGHBOUR:
                yield Neighbour(int(event.tenant), int(event.peer))
            elif event.kind == lib.SLUICE_EVENT_MEMBER:
                trunk = None if event.trunk == 2**32 - 1 else int(event.trunk)
                yield Member(bytes(ffi.buffer(event.gid)), int(event.tenant), trunk)

    def open_nic(self, device: int, name: str, port: int) -> None:
        """The RDMA NIC behind a device. OSError ELIBACC, ELIBBAD: no libibverbs, or an old one; EBUSY: there is one."""
        checked(lib.sluice_nic_open(self._engine, device, name.encode(), port))

    def close_nic(self, device: int) -> None:
        """It is gone: what tenants have there fails. Nothing may be in reach_nic."""
        lib.sluice_nic_close(self._engine, device)

    def reach_nic(self, device: int, gid_index: int, gid: bytes) -> None:
        """Finds the way to a GID; in a thread, as it may take seconds. OSError: there is none."""
        checked(lib.sluice_nic_reach(self._engine, device, gid_index, gid))

    def query_nic(self, device: int) -> Any:
        """A struct sluice_nic, as it is now."""
        nic = ffi.new("struct sluice_nic *")
        checked(lib.sluice_nic_query(self._engine, device, nic))
        return nic

    def nic_event_fd(self, device: int) -> int:
        """Readable while nic_events() has something to say."""
        return checked(lib.sluice_nic_async_fd(self._engine, device))

    def nic_events(self, device: int) -> Iterator[int]:
        """Async events (enum ibv_event_type) of its port since the last call; QPs' were passed on already."""
        event = ffi.new("uint32_t *")
        while lib.sluice_nic_next_event(self._engine, device, event):
            yield int(event[0])

    def tell_session(self, session: int, device: int, event: int, element: int) -> None:
        """An async event (enum ibv_event_type) for all contexts of a session that are on a device."""
        checked(lib.sluice_session_async_event(self._engine, session, device, event, element))

    def tenant_of_qp(self, number: int, device: int) -> int | None:
        """The number of the tenant, as a whole, that has the QP with this number behind the GID of the device's NIC."""
        tenant = int(lib.sluice_qp_tenant(self._engine, number, device))
        return None if tenant < 0 else tenant

    def shares_receives(self, session: int, handle: int, number: int) -> bool:
        """Whether the NIC joins a QP and this node's QP with that number (csrc/nic_srq.h)."""
        return bool(checked(lib.sluice_qp_shares_receives(self._engine, session, handle, number)))

    def admit_neighbour(self, tenant: int, peer: int, admitted: bool) -> None:
        checked(lib.sluice_neighbour_admit(self._engine, tenant, peer, admitted))

    def close_gate(self) -> None:
        """From now on multicast datagrams come only to those that admit_member lets hear their sender."""
        checked(lib.sluice_gate_close(self._engine))

    def admit_member(self, sender: bytes, tenant: int, admitted: bool, trunk: int | None = None) -> None:
        """sender: a GID of 16 bytes, of this node's (trunk None), or named by the router of a trunk's node."""
        checked(lib.sluice_gate_admit(self._engine, sender, -1 if trunk is None else trunk, tenant, admitted))

    def forget_members(self, sender: bytes | None = None) -> None:
        """What was said of a sender, or of all, may be wrong by now."""
        lib.sluice_gate_forget(self._engine, ffi.NULL if sender is None else sender)

    def add_tenant(self, shape: Shape, device: int = 0, of: int | None = None) -> int:
        """A tenant on a device. of: its number on its first device, which stands for the tenant as a whole."""
        return checked(lib.sluice_tenant_add(self._engine, device, -1 if of is None else of, shape.to_c()))

    def remove_tenant(self, tenant: int) -> None:
        """OSError EBUSY while it has sessions, further devices, or contexts on this one."""
        checked(lib.sluice_tenant_remove(self._engine, tenant))

    def address_tenant(self, tenant: int, gid: bytes) -> None:
        """The tenant's GID, by which datagrams from other nodes name it."""
        checked(lib.sluice_tenant_address(self._engine, tenant, gid))

    def shape_tenant(self, tenant: int, shape: Shape) -> None:
        checked(lib.sluice_tenant_shape(self._engine, tenant, shape.to_c()))

    def take_verb(self, tenant: int) -> int:
        """0, or the nanoseconds to wait: the tenant's control verbs are used up."""
        return int(lib.sluice_tenant_verb(self._engine, tenant))

    def add_group(self, share: Share, device: int = 0) -> int:
        return checked(lib.sluice_group_add(self._engine, device, share.to_c()))

    def remove_group(self, group: int) -> None:
        """OSError EBUSY while it has tenants."""
        checked(lib.sluice_group_remove(self._engine, group))

    def shape_group(self, group: int, share: Share) -> None:
        checked(lib.sluice_group_shape(self._engine, group, share.to_c()))

    def add_device(self) -> int:
        """A further device; device 0 is there from the start. OSError EAGAIN: there are as many as may be."""
        return checked(lib.sluice_device_add(self._engine))

    def shape_device(self, capacity_bps: int, wire: bool, device: int = 0) -> None:
        """wire: the sum of all its traffic keeps to the capacity too, in each direction."""
        checked(lib.sluice_device_shape(self._engine, device, capacity_bps, wire))

    def open_session(self, tenant: int) -> tuple[int, SessionFiles]:
        files = ffi.new("struct sluice_session_files *")
        session = checked(lib.sluice_session_open(self._engine, tenant, files))
        return session, SessionFiles(files.engine_page, files.segment, files.arena)

    def close_session(self, session: int) -> None:
        checked(lib.sluice_session_close(self._engine, session))

    def open_context(self, session: int, device: int = 0) -> tuple[int, int]:
        """The handle, and the end of its async event channel that is read, which is the caller's to close.

        OSError ENODEV: the tenant hasn't this device.
        """
        fd = ffi.new("int *")
        handle = checked(lib.sluice_context_open(self._engine, session, device, fd))
        return handle, int(fd[0])

    def close_context(self, session: int, handle: int) -> None:
        """Destroys what was made in it. OSError EINPROGRESS."""
        checked(lib.sluice_context_close(self._engine, session, handle))

    def device_of_pd(self, session: int, pd: int) -> int:
        return checked(lib.sluice_pd_device(self._engine, session, pd))

    def device_of_qp(self, session: int, handle: int) -> int:
        return checked(lib.sluice_qp_device(self._engine, session, handle))

    def alloc_pd(self, session: int, context: int) -> int:
        return checked(lib.sluice_pd_alloc(self._engine, session, context))

    def dealloc_pd(self, session: int, handle: int) -> None:
        checked(lib.sluice_pd_dealloc(self._engine, session, handle))

    def create_channel(self, session: int) -> tuple[int, int]:
        """The handle, and the end of the channel that is read, which is the caller's to close."""
        fd = ffi.new("int *")
        handle = checked(lib.sluice_channel_create(self._engine, session, fd))
        return handle, int(fd[0])

    def destroy_channel(self, session: int, handle: int) -> None:
        checked(lib.sluice_channel_destroy(self._engine, session, handle))

    def create_cq(self, session: int, request: Any, reply: Any) -> None:
        checked(lib.sluice_cq_create(self._engine, session, request, reply))

    def resize_cq(self, session: int, request: Any, reply: Any) -> None:
        """OSError EINVAL: it doesn't fit; EINPROGRESS: what waits in it is being copied."""
        checked(lib.sluice_cq_resize(self._engine, session, request, reply))

    def open_file(self, session: int, fd: int, writable: bool) -> int:
        """The handle; the descriptor is the engine's then. OSError: it stays the caller's."""
        return checked(lib.sluice_memory_open_file(self._engine, session, fd, writable))

    def open_process(self, session: int, fd: int) -> int:
        """The same for the memory of a process (/proc/PID/mem)."""
        return checked(lib.sluice_memory_open_process(self._engine, session, fd))

    def close_memory(self, session: int, handle: int) -> None:
        """OSError EBUSY while memory regions lie in it."""
        checked(lib.sluice_memory_close(self._engine, session, handle))

    def destroy_cq(self, session: int, handle: int) -> None:
        checked(lib.sluice_cq_destroy(self._engine, session, handle))

    def create_qp(self, session: int, request: Any, reply: Any) -> None:
        checked(lib.sluice_qp_create(self._engine, session, request, reply))

    def open_qp(self, session: int, request: Any, reply: Any) -> None:
        """Another process's XRC_RECV QP. OSError EINVAL: there is none with this number in the domain."""
        checked(lib.sluice_qp_open(self._engine, session, request, reply))

    def destroy_qp(self, session: int, handle: int) -> None:
        """OSError EBUSY while it is attached to multicast groups."""
        checked(lib.sluice_qp_destroy(self._engine, session, handle))

    def qp_type(self, session: int, handle: int) -> int:
        """enum ibv_qp_type."""
        return checked(lib.sluice_qp_type(self._engine, session, handle))

    def attach_qp(self, session: int, handle: int, gid: bytes) -> None:
        """OSError EINVAL: no UD QP, or no multicast GID."""
        checked(lib.sluice_qp_attach(self._engine, session, handle, gid))

    def detach_qp(self, session: int, handle: int, gid: bytes) -> None:
        checked(lib.sluice_qp_detach(self._engine, session, handle, gid))

    def create_srq(self, session: int, request: Any, reply: Any) -> None:
        checked(lib.sluice_srq_create(self._engine, session, request, reply))

    def destroy_srq(self, session: int, handle: int) -> None:
        """OSError EBUSY while QPs use it."""
        checked(lib.sluice_srq_destroy(self._engine, session, handle))

    def limit_srq(self, session: int, handle: int, limit: int) -> None:
        checked(lib.sluice_srq_set_limit(self._engine, session, handle, limit))

    def query_srq(self, session: int, handle: int, reply: Any) -> None:
        checked(lib.sluice_srq_query(self._engine, session, handle, reply))

    def create_ah(self, session: int, request: Any, sgid: bytes, peer: int | None) -> int:
        """peer: the number of the tenant that has the destination GID, None where nobody has it."""
        return checked(lib.sluice_ah_create(self._engine, session, request, sgid, -1 if peer is None else peer))

    def destroy_ah(self, session: int, handle: int) -> None:
        checked(lib.sluice_ah_destroy(self._engine, session, handle))

    def lead_ah(self, session: int, handle: int, peer: int | None, trunk: int | None) -> None:
        """Its destination is this node's tenant of the number peer, or on the node of this trunk."""
        peer, trunk = -1 if peer is None else peer, -1 if trunk is None else trunk
        checked(lib.sluice_ah_lead(self._engine, session, handle, peer, trunk))

    def ah_by_nic(self, session: int, handle: int, behind: int | None) -> None:
        """The NIC finds its destination; behind: that is the GID of this device's NIC. OSError of the device's."""
        checked(lib.sluice_ah_by_nic(self._engine, session, handle, -1 if behind is None else behind))

    def open_trunk(self) -> int:
        """OSError EAGAIN: there are as many as may be."""
        return checked(lib.sluice_trunk_open(self._engine))

    def connect_trunk(self, trunk: int, fd: int) -> None:
        """A connection to send on, which is the engine's from here on."""
        checked(lib.sluice_trunk_connect(self._engine, trunk, fd))

    def accept_trunk(self, trunk: int, fd: int) -> None:
        """A connection to receive on, likewise."""
        checked(lib.sluice_trunk_accept(self._engine, trunk, fd))

    def sever_ah(self, session: int, handle: int) -> None:
        """It leads nowhere from now on."""
        checked(lib.sluice_ah_sever(self._engine, session, handle))

    def open_xrcd(self, session: int, context: int, inode: tuple[int, int] | None, flags: int) -> int:
        """inode: device and number, None for a private domain. flags: enum sluice_xrcd_flag."""
        dev, ino = inode or (0, 0)
        return checked(lib.sluice_xrcd_open(self._engine, session, context, inode is not None, dev, ino, flags))

    def close_xrcd(self, session: int, handle: int) -> None:
        """OSError EBUSY while SRQs or QPs made through it exist."""
        checked(lib.sluice_xrcd_close(self._engine, session, handle))

    def modify_qp(
        self,
        session: int,
        handle: int,
        attr: Any,
        mask: int,
        peer: int | None,
        now: Any,
        remote: bool = False,
        nic: bool = False,
        behind: int | None = None,
    ) -> None:
        """peer: the number of the tenant behind the destination GID, None where nobody here has it.

        remote: it may be on another node; connect_qp gives the connection. nic: the NIC leads to it. behind: the device
        whose NIC has that GID, None where no NIC of the node's has.
        """
        transport = lib.SLUICE_TRANSPORT_LOCAL
        if nic:
            transport, peer = lib.SLUICE_TRANSPORT_NIC, behind
        elif peer is None:
            transport = lib.SLUICE_TRANSPORT_TCP if remote else lib.SLUICE_TRANSPORT_NONE
        checked(
            lib.sluice_qp_modify(
                self._engine, session, handle, attr, mask, transport, -1 if peer is None else peer, now
            )
        )

    def connect_qp(self, session: int, handle: int, fd: int) -> None:
        """A connection to the router of the QP's peer, which is the engine's from here on."""
        checked(lib.sluice_qp_connect(self._engine, session, handle, fd))

    def qp_number(self, session: int, handle: int) -> int:
        return checked(lib.sluice_qp_number(self._engine, session, handle))

    def unread(self, tenant: int, number: int, mark: int | None = None) -> int | None:
        """Where the completions of receives end that a QP has now, or had (mark), while any isn't polled yet."""
        end = ffi.new("uint32_t *", mark or 0)
        return int(end[0]) if lib.sluice_qp_unread(self._engine, tenant, number, mark is None, end) else None

    def holder_of_qp(self, number: int) -> tuple[int, int] | None:
        """Session and handle under which the QP is now; None where there is none with this number."""
        found = ffi.new("uint32_t[2]")
        if lib.sluice_qp_holder(self._engine, number, found, found + 1):
            return None
        return int(found[0]), int(found[1])

    def fail_qp(self, session: int, handle: int) -> None:
        """To the error state: its requests are flushed, the application gets IBV_EVENT_QP_FATAL."""
        checked(lib.sluice_qp_fail(self._engine, session, handle))

    def query_qp(self, session: int, handle: int, now: Any) -> None:
        checked(lib.sluice_qp_query(self._engine, session, handle, now))


def measure_copy() -> int:
    """Bits per second that one thread of this machine copies between cold memory; takes 50 ms and more."""
    return int(lib.sluice_measure_copy())


__all__ = [
    "AhUnresolved",
    "Engine",
    "Member",
    "Neighbour",
    "Pair",
    "QpDisconnected",
    "SessionBroken",
    "SessionFiles",
    "Shape",
    "Share",
    "TrunkDisconnected",
    "VerbGoesOn",
    "checked",
    "ffi",
    "lib",
    "measure_copy",
]
