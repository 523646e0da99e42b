# SPDX-License-Identifier: Apache-2.0
"""The shim's rdma_cm requests (SLUICE_OP_CM_* in csrc/abi.h): read, checked, handed to the session's Owner."""

import errno
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from sluice.control.cm.address import read_address, write_address
from sluice.control.cm.event import WRITTEN, EventType
from sluice.control.cm.identifier import (
    OPTION_ACK_TIMEOUT,
    OPTION_AFONLY,
    OPTION_REUSEADDR,
    OPTION_TOS,
    QPT_UD,
    Identifier,
)
from sluice.control.cm.lookup import Lookup
from sluice.control.cm.manager import CommunicationManager
from sluice.control.cm.message import Reason
from sluice.control.cm.owner import Owner
from sluice.control.cm.parameters import LOOKUP_REPLY_DATA, REJECT_DATA, REPLY_DATA, read_parameters, write_parameters
from sluice.control.cm.place import CmDevice, Party
from sluice.control.cm.qp_attributes import HOP_LIMIT, PACKET_LIFE_TIME, fill_qp_attributes
from sluice.control.cm.realm import PeerRealm
from sluice.control.session import Session
from sluice.control.verbs import Operation, ProtocolError
from sluice.engine import ffi, lib

LEVEL_ID = 0
"""RDMA_OPTION_ID."""
OPTIONS = {OPTION_TOS: "B", OPTION_REUSEADDR: "i", OPTION_AFONLY: "i", OPTION_ACK_TIMEOUT: "B"}
"""How their values lie in memory, for struct.unpack."""

SendDescriptor = Callable[[int, int], None]
"""Passes a descriptor for a cookie to the session's process. OSError where it doesn't take it."""
CmOperation = tuple[int, str, str, Callable[[Owner, Any, Any, SendDescriptor], None]]

HANDLE, HANDLE_REPLY = "struct sluice_handle_request", "struct sluice_handle_reply"
VALUE, ADDRESS = "struct sluice_cm_value_request", "struct sluice_cm_address_request"
PARAM, ROUTE_REPLY = "struct sluice_cm_param_request", "struct sluice_cm_route_reply"
EVENTS_REPLY = "struct sluice_cm_events_reply"


def _create_channel(owner: Owner, request: Any, reply: Any, send: SendDescriptor) -> None:
    reply.handle, fd = owner.create_channel()
    try:
        send(request.header.cookie, fd)
    except OSError as error:
        raise ProtocolError(f"the descriptor socket is not read: {error.strerror}") from None
    finally:
        os.close(fd)


def _destroy_channel(owner: Owner, request: Any, _reply: Any, _send: SendDescriptor) -> None:
    owner.destroy_channel(request.handle)


def _get_event(owner: Owner, request: Any, reply: Any, _send: SendDescriptor) -> None:
    queued = owner.next_event(request.handle)
    event, about = queued.event, queued.child or queued.about
    reply.uid = queued.membership.uid if queued.membership is not None else queued.about.uid
    reply.handle = about.handle
    reply.event = event.type
    reply.event_status = event.status
    write_parameters(reply.param, event.parameters)
    reply.ah.is_global = 1
    reply.ah.port_num = 1
    reply.ah.sgid_index = _gid_index(about)
    reply.ah.hop_limit = HOP_LIMIT
    reply.ah.traffic_class = event.traffic_class
    ffi.memmove(reply.ah.dgid, event.gid, 16)
    _write_route(about, reply.route)


def _gid_index(identifier: Identifier) -> int:
    """Of the GID from which datagrams to what was found start: a NIC's, or after those the tenant's own."""
    gids, end = identifier.device.nic_gids, identifier.end
    source = end.source if isinstance(end, Lookup) else None
    return gids.index(source) if source in gids else len(gids)


def _write_route(identifier: Identifier, route: Any) -> None:
    write_address(route.src, identifier.source)
    write_address(route.dst, identifier.destination)
    route.bound = 1 + identifier.device.number if identifier.bound else 0
    if identifier.bound:
        ffi.memmove(route.sgid, identifier.gid, 16)
    ffi.memmove(route.dgid, identifier.destination_gid, 16)
    route.paths = identifier.has_route
    route.traffic_class = identifier.traffic_class
    route.packet_life_time = PACKET_LIFE_TIME


def _create_id(owner: Owner, request: Any, reply: Any, _send: SendDescriptor) -> None:
    reply.handle = owner.create_id(request.uid, request.channel, request.port_space, request.qp_type).handle


def _destroy_id(owner: Owner, request: Any, reply: Any, _send: SendDescriptor) -> None:
    identifier = owner.identifier(request.handle)
    owner.remove(identifier)
    reply.events, reply.surplus = identifier.reported, identifier.channel.take_surplus()


def _migrate_id(owner: Owner, request: Any, reply: Any, _send: SendDescriptor) -> None:
    identifier, channel = owner.identifier(request.handle), owner.channel(request.value)
    if identifier.channel is not channel:
        old = identifier.channel
        identifier.move_to(channel)
        reply.surplus = old.take_surplus()
    reply.events = identifier.reported


def _bind(owner: Owner, request: Any, reply: Any, _send: SendDescriptor) -> None:
    identifier, address = owner.identifier(request.handle), read_address(request.src)
    if address is None:
        raise OSError(errno.EAFNOSUPPORT, "no address")
    identifier.bind(address)
    _write_route(identifier, reply.route)


def _resolve_addr(owner: Owner, request: Any, _reply: Any, _send: SendDescriptor) -> None:
    identifier, destination = owner.identifier(request.handle), read_address(request.dst)
    if destination is None:
        raise OSError(errno.EINVAL, "no destination")
    identifier.resolve_address(read_address(request.src), destination)


def _resolve_route(owner: Owner, request: Any, _reply: Any, _send: SendDescriptor) -> None:
    owner.identifier(request.handle).resolve_route()


def _query(owner: Owner, request: Any, reply: Any, _send: SendDescriptor) -> None:
    _write_route(owner.identifier(request.handle), reply.route)


def _listen(owner: Owner, request: Any, reply: Any, _send: SendDescriptor) -> None:
    identifier = owner.identifier(request.handle)
    # The application's int: zero and less mean "as many as there may be".
    identifier.listen(request.value if request.value < 1 << 31 else 0)
    _write_route(identifier, reply.route)


def _connect(owner: Owner, request: Any, _reply: Any, _send: SendDescriptor) -> None:
    owner.identifier(request.handle).connect(read_parameters(request.param, REPLY_DATA))


def _accept(owner: Owner, request: Any, _reply: Any, _send: SendDescriptor) -> None:
    identifier = owner.identifier(request.handle)
    if request.param.valid:
        most = LOOKUP_REPLY_DATA if identifier.qp_type == QPT_UD else REPLY_DATA
        identifier.accept(request.uid, read_parameters(request.param, most))
    else:
        identifier.ready()


def _reject(owner: Owner, request: Any, _reply: Any, _send: SendDescriptor) -> None:
    if request.private_data_len > REJECT_DATA:
        raise OSError(errno.EINVAL, f"more than {REJECT_DATA} bytes of private data")
    if request.reason not in (0, Reason.CONSUMER_DEFINED, Reason.VENDOR_OPTION_NOT_SUPPORTED):
        raise OSError(errno.EINVAL, "no reason of an application")
    data = bytes(ffi.buffer(request.private_data))[: request.private_data_len]
    owner.identifier(request.handle).reject(request.reason or Reason.CONSUMER_DEFINED, data)


def _disconnect(owner: Owner, request: Any, _reply: Any, _send: SendDescriptor) -> None:
    owner.identifier(request.handle).disconnect()


def _notify(owner: Owner, request: Any, _reply: Any, _send: SendDescriptor) -> None:
    owner.identifier(request.handle).notify(request.value)


def _set_option(owner: Owner, request: Any, _reply: Any, _send: SendDescriptor) -> None:
    identifier = owner.identifier(request.handle)
    data = bytes(ffi.buffer(request.optval))[: request.optlen]
    if request.level != LEVEL_ID or request.optname not in OPTIONS:
        raise OSError(errno.ENOSYS, "no such option")
    if request.optlen != struct.calcsize(OPTIONS[request.optname]):
        raise OSError(errno.EINVAL, "an option of another size")
    (value,) = struct.unpack(OPTIONS[request.optname], data)
    identifier.set_option(request.optname, value)


def _init_qp_attr(owner: Owner, request: Any, reply: Any, _send: SendDescriptor) -> None:
    identifier = owner.identifier(request.handle)
    reply.attr_mask = fill_qp_attributes(identifier, request.value, reply.attr)


def _join(owner: Owner, request: Any, reply: Any, _send: SendDescriptor) -> None:
    identifier, address = owner.identifier(request.handle), read_address(request.addr)
    if address is None:
        raise OSError(errno.EINVAL, "no group")
    reply.handle = identifier.join(request.uid, address, request.join_flags).handle


def _leave(owner: Owner, request: Any, reply: Any, _send: SendDescriptor) -> None:
    membership = owner.membership(request.handle)
    owner.remove_membership(membership)
    reply.events, reply.surplus = membership.reported, membership.identifier.channel.take_surplus()


def _write_event(owner: Owner, request: Any, _reply: Any, _send: SendDescriptor) -> None:
    if request.event not in WRITTEN:
        raise OSError(errno.EINVAL, "an event that is not the application's to write")
    owner.identifier(request.handle).write_event(EventType(request.event), request.event_status, request.arg)


OPERATIONS: list[CmOperation] = [
    (lib.SLUICE_OP_CM_CREATE_CHANNEL, HANDLE, HANDLE_REPLY, _create_channel),
    (lib.SLUICE_OP_CM_DESTROY_CHANNEL, HANDLE, HANDLE_REPLY, _destroy_channel),
    (lib.SLUICE_OP_CM_GET_EVENT, HANDLE, "struct sluice_cm_event_reply", _get_event),
    (lib.SLUICE_OP_CM_CREATE_ID, "struct sluice_cm_create_id_request", HANDLE_REPLY, _create_id),
    (lib.SLUICE_OP_CM_DESTROY_ID, HANDLE, EVENTS_REPLY, _destroy_id),
    (lib.SLUICE_OP_CM_MIGRATE_ID, VALUE, EVENTS_REPLY, _migrate_id),
    (lib.SLUICE_OP_CM_BIND, ADDRESS, ROUTE_REPLY, _bind),
    (lib.SLUICE_OP_CM_RESOLVE_ADDR, ADDRESS, HANDLE_REPLY, _resolve_addr),
    (lib.SLUICE_OP_CM_RESOLVE_ROUTE, VALUE, HANDLE_REPLY, _resolve_route),
    (lib.SLUICE_OP_CM_QUERY, HANDLE, ROUTE_REPLY, _query),
    (lib.SLUICE_OP_CM_LISTEN, VALUE, ROUTE_REPLY, _listen),
    (lib.SLUICE_OP_CM_CONNECT, PARAM, HANDLE_REPLY, _connect),
    (lib.SLUICE_OP_CM_ACCEPT, PARAM, HANDLE_REPLY, _accept),
    (lib.SLUICE_OP_CM_REJECT, "struct sluice_cm_reject_request", HANDLE_REPLY, _reject),
    (lib.SLUICE_OP_CM_DISCONNECT, HANDLE, HANDLE_REPLY, _disconnect),
    (lib.SLUICE_OP_CM_NOTIFY, VALUE, HANDLE_REPLY, _notify),
    (lib.SLUICE_OP_CM_SET_OPTION, "struct sluice_cm_option_request", HANDLE_REPLY, _set_option),
    (lib.SLUICE_OP_CM_INIT_QP_ATTR, VALUE, "struct sluice_cm_qp_attr_reply", _init_qp_attr),
    (lib.SLUICE_OP_CM_JOIN, "struct sluice_cm_join_request", HANDLE_REPLY, _join),
    (lib.SLUICE_OP_CM_LEAVE, HANDLE, EVENTS_REPLY, _leave),
    (lib.SLUICE_OP_CM_WRITE_EVENT, "struct sluice_cm_write_event_request", HANDLE_REPLY, _write_event),
]


class TenantCm:
    """rdma_cm of one tenant's sessions."""

    def __init__(self, cm: CommunicationManager, tenant: int) -> None:
        self._cm = cm
        self._tenant = tenant
        self._owners: dict[int, Owner] = {}

    def set_devices(self, address: IPv4Address, devices: Sequence[CmDevice]) -> None:
        """Where the tenant is, before which no session is greeted, and what it has, or has now."""
        self._address = address
        self._devices = tuple(devices) or (CmDevice(),)
        for owner in self._owners.values():
            owner.party = replace(owner.party, devices=self._devices)

    def operations(self) -> list[Operation]:
        return [(op, request, reply, self._carry_out(run)) for op, request, reply, run in OPERATIONS]

    def _carry_out(self, run: Callable[[Owner, Any, Any, SendDescriptor], None]) -> Callable[[Session, Any, Any], None]:
        return lambda session, request, reply: run(self._owner(session), request, reply, session.send_descriptor)

    def _owner(self, session: Session) -> Owner:
        owner = self._owners.get(session.number)
        if owner is None:
            realm = PeerRealm(session.connection, self._tenant, self._cm.host)
            owner = Owner(self._cm, Party(self._tenant, self._address, realm, self._devices))
            self._owners[session.number] = owner
        return owner

    def status(self) -> dict[str, Any]:
        owners = self._owners.values()
        return {
            "ids": sum(owner.count()[0] for owner in owners),
            "memberships": sum(owner.count()[1] for owner in owners),
            "listening": [address for owner in owners for address in owner.listening()],
        }

    def end_session(self, session: Session) -> None:
        """Peers of its connections see disconnects."""
        owner = self._owners.pop(session.number, None)
        if owner is not None:
            owner.close()
