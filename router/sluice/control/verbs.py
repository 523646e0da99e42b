# SPDX-License-Identifier: Apache-2.0
"""Requests of the control channel (enum sluice_op in csrc/abi.h): parsed, checked, carried out."""

import errno
import hmac
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from sluice.cluster.directory import Directory, address_of, ip_of
from sluice.control.connections import Connection, Connections, Flow, Gate
from sluice.control.look import Later
from sluice.control.qp_state import Attr, State, Type, address_fits, allowed
from sluice.control.session import Session
from sluice.device.host import IP, is_of_host
from sluice.device.virtual import VirtualDevice
from sluice.engine import Engine, ffi, lib

STATE = int(Attr.STATE)
HEADER_SIZE = ffi.sizeof("struct sluice_header")
MULTICAST_IPV6 = 0xFF
"""The first byte of an IPv6 group's GID."""


Operation = tuple[int, str, str, Callable[[Session, Any, Any], None]]
"""Its number, the request's and the answer's struct, and who carries it out."""


class ProtocolError(Exception):
    """A request that no shim sends: the session ends."""


def refusal(frame: bytes, error: int) -> bytes | None:
    """An answer that says only `error`; None where the frame has no header to answer to."""
    if len(frame) < HEADER_SIZE:
        return None
    header = ffi.new("struct sluice_header *")
    ffi.memmove(header, frame, HEADER_SIZE)
    header.size = HEADER_SIZE
    header.status = error
    return bytes(ffi.buffer(header))


class Verbs:
    """The verbs of one tenant's sessions."""

    def __init__(
        self,
        engine: Engine,
        directory: Directory,
        gate: Gate,
        more: Sequence[Operation] = (),
        flow_of: Callable[[IPv4Address, IP, int], Flow] = lambda own, peer, _qp_num: Flow(own, peer),
    ) -> None:
        """more: operations of others that come by the same channel.

        flow_of(own, peer, qp_num): how the connection with this peer's queue pair came about.
        """
        self._engine = engine
        self._directory = directory
        self._gate = gate
        self._flow_of = flow_of
        self._devices: dict[int, VirtualDevice] = {}
        self._by_node: dict[int, VirtualDevice] = {}
        self.connections = Connections()
        self.addresses = Connections()
        """Address handles: they connect as well."""
        self._forbidden: set[tuple[int, int]] = set()
        """Address handles that the gate has refused, by its present rules."""
        self.neighbours: dict[int, Flow] = {}
        """Numbers of this node's tenants that datagrams by the NIC's GID were for."""
        handle, handle_reply = "struct sluice_handle_request", "struct sluice_handle_reply"
        table: list[Operation] = [
            (lib.SLUICE_OP_LIST_DEVICES, handle, "struct sluice_devices_reply", self._list_devices),
            (lib.SLUICE_OP_QUERY_DEVICE, handle, "struct sluice_device_reply", self._query_device),
            (lib.SLUICE_OP_OPEN_CONTEXT, handle, handle_reply, self._open_context),
            (lib.SLUICE_OP_CLOSE_CONTEXT, handle, handle_reply, self._close_context),
            (lib.SLUICE_OP_ALLOC_PD, handle, handle_reply, self._alloc_pd),
            (lib.SLUICE_OP_DEALLOC_PD, handle, handle_reply, self._dealloc_pd),
            (lib.SLUICE_OP_CREATE_CHANNEL, handle, handle_reply, self._create_channel),
            (lib.SLUICE_OP_DESTROY_CHANNEL, handle, handle_reply, self._destroy_channel),
            (
                lib.SLUICE_OP_CREATE_CQ,
                "struct sluice_create_cq_request",
                "struct sluice_create_cq_reply",
                self._create_cq,
            ),
            (
                lib.SLUICE_OP_RESIZE_CQ,
                "struct sluice_resize_cq_request",
                "struct sluice_resize_cq_reply",
                self._resize_cq,
            ),
            (
                lib.SLUICE_OP_OPEN_MEMORY,
                "struct sluice_open_memory_request",
                handle_reply,
                self._open_memory,
            ),
            (lib.SLUICE_OP_CLOSE_MEMORY, handle, handle_reply, self._close_memory),
            (lib.SLUICE_OP_DESTROY_CQ, handle, handle_reply, self._destroy_cq),
            (
                lib.SLUICE_OP_CREATE_QP,
                "struct sluice_create_qp_request",
                "struct sluice_create_qp_reply",
                self._create_qp,
            ),
            (
                lib.SLUICE_OP_MODIFY_QP,
                "struct sluice_modify_qp_request",
                "struct sluice_qp_reply",
                self._modify_qp,
            ),
            (lib.SLUICE_OP_QUERY_QP, handle, "struct sluice_qp_reply", self._query_qp),
            (lib.SLUICE_OP_DESTROY_QP, handle, handle_reply, self._destroy_qp),
            (
                lib.SLUICE_OP_OPEN_QP,
                "struct sluice_open_qp_request",
                "struct sluice_create_qp_reply",
                self._open_qp,
            ),
            (
                lib.SLUICE_OP_CREATE_SRQ,
                "struct sluice_create_srq_request",
                "struct sluice_create_srq_reply",
                self._create_srq,
            ),
            (lib.SLUICE_OP_MODIFY_SRQ, "struct sluice_modify_srq_request", handle_reply, self._modify_srq),
            (lib.SLUICE_OP_QUERY_SRQ, handle, "struct sluice_srq_reply", self._query_srq),
            (lib.SLUICE_OP_DESTROY_SRQ, handle, handle_reply, self._destroy_srq),
            (lib.SLUICE_OP_CREATE_AH, "struct sluice_create_ah_request", handle_reply, self._create_ah),
            (lib.SLUICE_OP_DESTROY_AH, handle, handle_reply, self._destroy_ah),
            (lib.SLUICE_OP_ATTACH_MCAST, "struct sluice_mcast_request", handle_reply, self._attach_mcast),
            (lib.SLUICE_OP_DETACH_MCAST, "struct sluice_mcast_request", handle_reply, self._detach_mcast),
            (lib.SLUICE_OP_OPEN_XRCD, "struct sluice_open_xrcd_request", handle_reply, self._open_xrcd),
            (lib.SLUICE_OP_CLOSE_XRCD, handle, handle_reply, self._close_xrcd),
        ]
        # Types are looked up once: parsing "struct x *" costs more than carrying most verbs out.
        self._table = {
            op: (
                ffi.typeof(request + " *"),
                ffi.sizeof(request),
                ffi.typeof(reply + " *"),
                ffi.sizeof(reply),
                run,
            )
            for op, request, reply, run in [*table, *more]
        }

    def set_devices(self, address: IPv4Address, devices: Iterable[VirtualDevice]) -> None:
        """Where the tenant is, and what it has; before this no session is greeted."""
        self._address = address
        self._devices = {device.number: device for device in devices}
        self._by_node = {device.of_node: device for device in self._devices.values()}

    def _device(self, number: int) -> VirtualDevice:
        try:
            return self._devices[number]
        except KeyError:
            raise OSError(errno.ENODEV, "the tenant has no such device") from None

    def hello(self, frame: bytes, session: Session) -> bytes:
        """Answers HELLO, whose token was this session's."""
        reply = ffi.new("struct sluice_hello_reply *")
        ffi.memmove(reply, frame, HEADER_SIZE)
        reply.header.size = ffi.sizeof("struct sluice_hello_reply")
        reply.abi_version = lib.SLUICE_ABI_VERSION
        reply.session = session.number
        return bytes(ffi.buffer(reply))

    def dispatch(self, session: Session, frame: bytes) -> bytes:
        """Carries a request out; an OSError of the engine becomes the answer's status.

        ProtocolError: the session must end. Later: nothing was done yet.
        """
        if len(frame) < HEADER_SIZE:
            raise ProtocolError(f"a request of {len(frame)} bytes")
        header = ffi.from_buffer("struct sluice_header *", frame)
        entry = self._table.get(header.op)
        if entry is None:
            raise ProtocolError(f"operation {header.op}")
        request_type, request_size, reply_type, reply_size, run = entry
        if len(frame) != request_size or header.size != request_size:
            raise ProtocolError(f"operation {header.op} with {len(frame)} bytes instead of {request_size}")
        request = ffi.from_buffer(request_type, frame)
        reply = ffi.new(reply_type)
        reply.header.op = header.op
        reply.header.size = reply_size
        reply.header.cookie = header.cookie
        try:
            run(session, request, reply)
        except OSError as error:
            if error.errno == errno.EINPROGRESS:
                # The engine does it in turns of the tenant's.
                raise session.later() from None
            reply.header.status = error.errno or errno.EIO
        return bytes(ffi.buffer(reply))

    def _list_devices(self, _session: Session, _request: Any, reply: Any) -> None:
        reply.count = len(self._devices)
        for entry, (number, device) in zip(reply.devices, sorted(self._devices.items()), strict=False):
            entry.number = number
            entry.name = device.name.encode()
            entry.node_guid = int.from_bytes(device.node_guid, "little")

    def _query_device(self, _session: Session, request: Any, reply: Any) -> None:
        self._device(request.handle).describe(reply)

    def _open_context(self, session: Session, request: Any, reply: Any) -> None:
        device = self._device(request.handle)
        reply.handle, fd = self._engine.open_context(session.number, device.of_node)
        self._send_descriptor(session, request.header.cookie, fd)

    def _close_context(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.close_context(session.number, request.handle)

    def _alloc_pd(self, session: Session, request: Any, reply: Any) -> None:
        reply.handle = self._engine.alloc_pd(session.number, request.handle)

    def _dealloc_pd(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.dealloc_pd(session.number, request.handle)

    def _create_channel(self, session: Session, request: Any, reply: Any) -> None:
        reply.handle, fd = self._engine.create_channel(session.number)
        self._send_descriptor(session, request.header.cookie, fd)

    def _send_descriptor(self, session: Session, cookie: int, fd: int) -> None:
        """Sends it and closes it. ProtocolError where the process doesn't take what it is sent."""
        try:
            # Before the answer, so that who has the answer finds it.
            session.send_descriptor(cookie, fd)
        except OSError as error:
            raise ProtocolError(f"the descriptor socket is not read: {error.strerror}") from None
        finally:
            os.close(fd)

    def _destroy_channel(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.destroy_channel(session.number, request.handle)

    def _create_cq(self, session: Session, request: Any, reply: Any) -> None:
        self._engine.create_cq(session.number, request, reply)

    def _resize_cq(self, session: Session, request: Any, reply: Any) -> None:
        self._engine.resize_cq(session.number, request, reply)

    def _open_memory(self, session: Session, request: Any, reply: Any) -> None:
        fd = session.take_descriptor(request.header.cookie) if request.has_descriptor else None
        try:
            if request.kind == lib.SLUICE_MEMORY_FILE:
                if fd is None:
                    end = request.start + request.length
                    fd = session.open_mapping(request.start, end, bool(request.writable))
                reply.handle = self._engine.open_file(session.number, fd, bool(request.writable))
            elif request.kind == lib.SLUICE_MEMORY_PROCESS:
                if fd is None:
                    fd = session.open_process()
                    reply.handle = self._engine.open_process(session.number, fd)
            else:
                # A dma-buf: a NIC imports it. The engine's own processor can't: without the exporter's mmap it
                # has no address, and what lies on a device would be read a word at a time.
                raise OSError(errno.EOPNOTSUPP, "no transport of this node reaches a dma-buf")
            if reply.handle:
                fd = None
        finally:
            if fd is not None:
                session.close_descriptor(fd)

    def _close_memory(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.close_memory(session.number, request.handle)

    def _destroy_cq(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.destroy_cq(session.number, request.handle)

    def _create_qp(self, session: Session, request: Any, reply: Any) -> None:
        self._engine.create_qp(session.number, request, reply)

    def _destroy_qp(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.destroy_qp(session.number, request.handle)
        self._leave(session.number, request.handle)
        self._forget_remote(session.number, request.handle)

    def _query_qp(self, session: Session, request: Any, reply: Any) -> None:
        self._engine.query_qp(session.number, request.handle, ffi.addressof(reply, "attr"))

    def _modify_qp(self, session: Session, request: Any, reply: Any) -> None:
        now = ffi.addressof(reply, "attr")
        self._engine.query_qp(session.number, request.handle, now)
        attr, mask = ffi.addressof(request, "attr"), request.attr_mask
        kind = self._engine.qp_type(session.number, request.handle)
        device = self._by_node[self._engine.device_of_qp(session.number, request.handle)]
        if not allowed(kind, now.qp_state, attr, mask, device.gid_count):
            raise OSError(errno.EINVAL, "the state table forbids it")
        peer = behind = None
        destination = flow = None
        admitted = nic = False
        if mask & STATE and attr.qp_state == State.RTR and kind != Type.UD:
            gid = bytes(ffi.buffer(attr.ah.dgid))
            destination = self._destination(device, attr.ah)
            nic = device.is_of_nic(attr.ah.sgid_index)
            if nic and destination is not None and (destination.is_multicast or destination.is_unspecified):
                raise OSError(errno.EINVAL, "a connection is with one host")
            if nic:
                behind = self._behind(device, gid)
                destination = self._neighbour(behind, attr.dest_qp_num) or destination
            if destination is not None:
                flow = self._flow_of(self._address, destination, attr.dest_qp_num)
                if self._gate.admits(flow.source, flow.destination, flow.port):
                    admitted = True
                    peer = self._directory.tenant_at(destination) if isinstance(destination, IPv4Address) else None
        elif mask & Attr.AV and kind != Type.UD and bytes(ffi.buffer(attr.ah.dgid)) != bytes(ffi.buffer(now.ah.dgid)):
            # In SQD: another way to who was admitted, and the gate knows him by one address.
            raise OSError(errno.EINVAL, "a connection stays with its destination")
        nic = nic and admitted and not (peer is None and self._is_bypass(behind, destination))
        if nic and peer is not None:
            nic = self._engine.shares_receives(session.number, request.handle, attr.dest_qp_num)
        if nic:
            self._reach(device, attr.ah.sgid_index, bytes(ffi.buffer(attr.ah.dgid)))
            peer = None
        remote = self._directory.remote if isinstance(destination, IPv4Address) and not nic else None
        remote = remote if admitted and peer is None else None
        self._engine.modify_qp(session.number, request.handle, attr, mask, peer, now, remote is not None, nic, behind)
        if mask & STATE and attr.qp_state in (State.RESET, State.ERR):
            self.connections.remove(session.number, request.handle)
            self._forget_remote(session.number, request.handle)
        elif flow is not None and destination is not None and (nic or peer is not None or remote is not None):
            number = self._engine.qp_number(session.number, request.handle)
            self.connections.add(Connection(session.number, request.handle, destination, flow, number))
            if remote is not None and isinstance(destination, IPv4Address):
                remote.want(session.number, request.handle, number, self._address, destination, attr.dest_qp_num)

    @staticmethod
    def _destination(device: VirtualDevice, ah: Any) -> IP | None:
        """Where a connection, or a datagram, with this address is to go; None: nowhere.

        Which of its GIDs the application chose says which network it means: the NIC's, or the directory's, which has
        IPv4 addresses only. OSError EINVAL: a NIC doesn't lead from the one family to the other.
        """
        gid = bytes(ffi.buffer(ah.dgid))
        if not device.is_of_nic(ah.sgid_index):
            return address_of(gid)
        destination = ip_of(gid)
        if destination.version != ip_of(device.gids[ah.sgid_index]).version:
            raise OSError(errno.EINVAL, "the two GIDs are of different families")
        return destination

    @staticmethod
    def _behind(device: VirtualDevice, gid: bytes) -> int | None:
        """The device whose NIC has the GID, by the engine's count; None: none of the node's."""
        return None if device.nic is None else device.nic.device_of(gid)

    @staticmethod
    def _is_bypass(behind: int | None, destination: IP | None) -> bool:
        """Whether it is an address of the host's, that is no NIC's: one would lead it back to itself, and so to tenants
        by a name by which the gate doesn't know them."""
        return behind is None and destination is not None and is_of_host(destination)

    def _neighbour(self, behind: int | None, number: int) -> IPv4Address | None:
        """The address of this node's tenant that has a QP behind the GID of a NIC, which all its tenants share."""
        if behind is None:
            return None
        tenant = self._engine.tenant_of_qp(number, behind)
        return None if tenant is None else self._directory.address_of_tenant(tenant)

    def _reach(self, device: VirtualDevice, gid_index: int, gid: bytes) -> None:
        """Returns when the NIC knows the way. OSError: there is none. Later: it is being looked for."""
        assert device.nic is not None
        if gid in device.nic.gids:
            return
        search = device.nic.reach(gid_index, gid)
        if search is not None:
            raise Later(search)

    def _forget_remote(self, session: int, handle: int) -> None:
        if self._directory.remote is not None:
            self._directory.remote.forget(session, handle)

    def _leave(self, session: int, handle: int) -> None:
        """The session has the QP no longer: the connection is that of who shares it, or over."""
        connection = self.connections.remove(session, handle)
        holder = self._engine.holder_of_qp(connection.qp) if connection is not None else None
        if connection is not None and holder is not None:
            self.connections.add(replace(connection, session=holder[0], handle=holder[1]))

    def end_session(self, session: int) -> None:
        """It is over: nothing of it is connected any more, but for XRC_RECV QPs that others share."""
        for connection in self.connections.of_session(session):
            self._leave(session, connection.handle)
        self.addresses.remove_session(session)
        self._forbidden = {key for key in self._forbidden if key[0] != session}
        if self._directory.remote is not None:
            self._directory.remote.forget_session(session)

    def _open_qp(self, session: Session, request: Any, reply: Any) -> None:
        self._engine.open_qp(session.number, request, reply)

    def _create_srq(self, session: Session, request: Any, reply: Any) -> None:
        nic = self._by_node[self._engine.device_of_pd(session.number, request.pd)].nic
        if nic is not None and request.max_sge > nic.srq_sges(lib.SLUICE_MAX_SGE):
            raise OSError(errno.EINVAL, "more SGEs than max_srq_sge")
        self._engine.create_srq(session.number, request, reply)

    def _modify_srq(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.limit_srq(session.number, request.handle, request.limit)

    def _query_srq(self, session: Session, request: Any, reply: Any) -> None:
        self._engine.query_srq(session.number, request.handle, reply)

    def _destroy_srq(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.destroy_srq(session.number, request.handle)

    def _create_ah(self, session: Session, request: Any, reply: Any) -> None:
        device = self._by_node[self._engine.device_of_pd(session.number, request.pd)]
        if not address_fits(request.attr, device.gid_count) or request.attr.port_num != 1:
            raise OSError(errno.EINVAL, "an address handle needs a GID")
        gid = bytes(ffi.buffer(request.attr.dgid))
        if not any(gid):
            raise OSError(errno.EINVAL, "the unspecified address is nobody's")
        group = address_of(gid)
        if gid[0] == MULTICAST_IPV6 or (group is not None and group.is_multicast):
            self._create_ah_of_group(session, device, request, reply)
            return
        destination = self._destination(device, request.attr)
        admitted = destination is not None and self._gate.admits(self._address, destination)
        if device.is_of_nic(request.attr.sgid_index) and destination is not None:
            self._create_ah_by_nic(session, device, request, reply, destination, admitted)
            return
        peer = self._directory.tenant_of(gid) if admitted else None
        reply.handle = self._engine.create_ah(session.number, request, device.gid, peer)
        # Freed with its context, another may have had the handle before.
        self._forget_ah(session.number, reply.handle)
        if not admitted or not isinstance(destination, IPv4Address):
            self._forbidden.add((session.number, reply.handle))
            return
        try:
            self._lead(session.number, reply.handle, destination, peer)
        except OSError:
            self._engine.destroy_ah(session.number, reply.handle)
            raise

    def _create_ah_of_group(self, session: Session, device: VirtualDevice, request: Any, reply: Any) -> None:
        """Members may be anywhere; which of them hear the tenant is asked where they are (Gate.delivers)."""
        reply.handle = self._engine.create_ah(session.number, request, device.gid, None)
        self._forget_ah(session.number, reply.handle)
        if self._directory.remote is not None:
            self._directory.remote.trunks_to_all()

    def _lead(self, session: int, handle: int, destination: IPv4Address, peer: int | None) -> None:
        """The AH leads to this node's tenant, or to the node where the destination is, where that is known."""
        remote = self._directory.remote if peer is None else None
        trunk = None if remote is None else remote.trunk_to(destination)
        if peer is None and trunk is None:
            return
        self._engine.lead_ah(session, handle, peer, trunk)
        self.addresses.add(Connection(session, handle, destination, Flow(self._address, destination)))

    def resolve_ah(self, session: int, handle: int, gid: bytes) -> None:
        """An AH is used that leads nowhere: its destination may be known, and admitted, by now."""
        destination = address_of(gid)
        if destination is None or (session, handle) in self._forbidden:
            return
        if not self._gate.admits(self._address, destination):
            self._forbidden.add((session, handle))
            return
        with suppress(OSError):  # it was destroyed meanwhile, or there can't be one more
            self._lead(session, handle, destination, self._directory.tenant_at(destination))

    def _create_ah_by_nic(
        self,
        session: Session,
        device: VirtualDevice,
        request: Any,
        reply: Any,
        destination: IP,
        admitted: bool,
    ) -> None:
        """One whose source is a GID of the NIC's; who isn't admitted sends to nobody."""
        gid = bytes(ffi.buffer(request.attr.dgid))
        behind = self._behind(device, gid)
        admitted = admitted and not self._is_bypass(behind, destination)
        if admitted:
            self._reach(device, request.attr.sgid_index, gid)
        source = device.gids[request.attr.sgid_index]
        reply.handle = self._engine.create_ah(session.number, request, source, None)
        self._forget_ah(session.number, reply.handle)
        if not admitted:
            self._forbidden.add((session.number, reply.handle))
            return
        try:
            self._engine.ah_by_nic(session.number, reply.handle, behind)
        except OSError:
            self._engine.destroy_ah(session.number, reply.handle)
            raise
        flow = Flow(self._address, destination)
        self.addresses.add(Connection(session.number, reply.handle, destination, flow))

    def admit_neighbour(self, own: int, peer: int) -> None:
        """Answers the engine's question whether this tenant may send datagrams to that one."""
        address = self._directory.address_of_tenant(peer)
        admitted = address is not None and self._gate.admits(self._address, address)
        if address is not None:
            self.neighbours[peer] = Flow(self._address, address)
        self._engine.admit_neighbour(own, peer, admitted)

    def _destroy_ah(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.destroy_ah(session.number, request.handle)
        self._forget_ah(session.number, request.handle)

    def _forget_ah(self, session: int, handle: int) -> None:
        self.addresses.remove(session, handle)
        self._forbidden.discard((session, handle))

    def _attach_mcast(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.attach_qp(session.number, request.handle, bytes(ffi.buffer(request.gid)))

    def _detach_mcast(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.detach_qp(session.number, request.handle, bytes(ffi.buffer(request.gid)))

    def _open_xrcd(self, session: Session, request: Any, reply: Any) -> None:
        inode = None
        if request.fd >= 0:
            inode = session.inode_of(request.fd) or (request.dev, request.ino)
        reply.handle = self._engine.open_xrcd(session.number, request.context, inode, request.oflags)

    def _close_xrcd(self, session: Session, request: Any, _reply: Any) -> None:
        self._engine.close_xrcd(session.number, request.handle)

    def end_forbidden(self, own: int, admits: Callable[[Flow], bool]) -> list[Connection]:
        """Ends the connections of this tenant (its number) that are admitted no longer, and returns them."""
        ended = [one for one in self.connections.all() if not admits(one.flow)]
        for one in ended:
            self.connections.remove(one.session, one.handle)
            self._engine.fail_qp(one.session, one.handle)
        severed = [one for one in self.addresses.all() if not admits(one.flow)]
        # What was forbidden may not be any more: it is asked again when it is used.
        self._forbidden = {(one.session, one.handle) for one in severed}
        for one in severed:
            self.addresses.remove(one.session, one.handle)
            self._engine.sever_ah(one.session, one.handle)
        for peer, flow in list(self.neighbours.items()):
            if self._directory.address_of_tenant(peer) == flow.destination:
                self._engine.admit_neighbour(own, peer, admits(flow))
            else:
                del self.neighbours[peer]
        return ended + severed


def hello_token(frame: bytes) -> tuple[int, bytes] | None:
    """The ABI version and token of a HELLO; None where the frame is something else."""
    size = ffi.sizeof("struct sluice_hello_request")
    if len(frame) != size:
        return None
    request = ffi.from_buffer("struct sluice_hello_request *", frame)
    if request.header.op != lib.SLUICE_OP_HELLO or request.header.size != size:
        return None
    return int(request.abi_version), bytes(ffi.buffer(request.token))


def same_token(one: bytes, other: bytes) -> bool:
    return hmac.compare_digest(one, other)
