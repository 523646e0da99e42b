# SPDX-License-Identifier: Apache-2.0
"""The host's own librdmacm (rdma_cm(7)), opened when it is asked for: a router without a NIC needs none."""

import os
import socket
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import cffi

from sluice.device.host import IP, interface_of, on_interface

ADDR_RESOLVED, ADDR_ERROR, ROUTE_RESOLVED, ROUTE_ERROR, CONNECT_REQUEST, CONNECT_RESPONSE = range(6)
CONNECT_ERROR, UNREACHABLE, REJECTED, ESTABLISHED, DISCONNECTED, DEVICE_REMOVAL = range(6, 12)
"""enum rdma_cm_event_type."""

LIBRARY = "librdmacm.so.1"
PS_TCP, PS_UDP = 0x0106, 0x0111
RTR, RTS = 2, 3

_ffi = cffi.FFI()
# What is read of rdma_cma.h and verbs.h. Structs that the library makes may end early, those that it fills may not.
_ffi.cdef(
    """
    struct rdma_event_channel { int fd; };
    struct sockaddr_in { uint16_t family, port; uint8_t address[4], zero[8]; };
    struct sockaddr_in6 { uint16_t family, port; uint32_t flow; uint8_t address[16]; uint32_t interface; };
    union sockaddr { uint16_t family; struct sockaddr_in ipv4; struct sockaddr_in6 ipv6; uint8_t storage[128]; };
    struct rdma_cm_id {
        void *verbs; struct rdma_event_channel *channel; void *context; void *qp;
        union sockaddr src, dst;
        uint8_t sgid[16]; uint8_t dgid[16];
    };
    struct ibv_ah_attr {
        uint8_t dgid[16]; uint32_t flow_label; uint8_t sgid_index, hop_limit, traffic_class;
        uint16_t dlid; uint8_t sl, src_path_bits, static_rate, is_global, port_num;
    };
    struct rdma_conn_param {
        const void *private_data; uint8_t private_data_len, responder_resources, initiator_depth, flow_control;
        uint8_t retry_count, rnr_retry_count, srq; uint32_t qp_num;
    };
    struct rdma_ud_param {
        const void *private_data; uint8_t private_data_len, padding[7]; struct ibv_ah_attr ah_attr;
        uint32_t qp_num, qkey;
    };
    struct rdma_cm_event {
        struct rdma_cm_id *id; struct rdma_cm_id *listen_id; int event; int status;
        union { struct rdma_conn_param conn; struct rdma_ud_param ud; };
    };
    struct ibv_qp_attr {
        int qp_state, cur_qp_state, path_mtu, path_mig_state; uint32_t qkey, rq_psn, sq_psn, dest_qp_num;
        unsigned qp_access_flags; uint32_t cap[5]; struct ibv_ah_attr ah_attr, alt_ah_attr;
        uint16_t pkey_index, alt_pkey_index; uint8_t en_sqd_async_notify, sq_draining;
        uint8_t max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num;
        uint8_t timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout;
        uint32_t rate_limit, padding;
    };
    struct rdma_event_channel *rdma_create_event_channel(void);
    void rdma_destroy_event_channel(struct rdma_event_channel *channel);
    int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *context, int ps);
    int rdma_destroy_id(struct rdma_cm_id *id);
    int rdma_bind_addr(struct rdma_cm_id *id, union sockaddr *addr);
    int rdma_listen(struct rdma_cm_id *id, int backlog);
    int rdma_resolve_addr(struct rdma_cm_id *id, union sockaddr *src, union sockaddr *dst, int timeout_ms);
    int rdma_resolve_route(struct rdma_cm_id *id, int timeout_ms);
    int rdma_connect(struct rdma_cm_id *id, struct rdma_conn_param *param);
    int rdma_establish(struct rdma_cm_id *id);
    int rdma_accept(struct rdma_cm_id *id, struct rdma_conn_param *param);
    int rdma_reject(struct rdma_cm_id *id, const void *private_data, uint8_t private_data_len);
    int rdma_disconnect(struct rdma_cm_id *id);
    int rdma_get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **event);
    int rdma_ack_cm_event(struct rdma_cm_event *event);
    int ibv_close_device(void *context);
    int rdma_init_qp_attr(struct rdma_cm_id *id, struct ibv_qp_attr *attr, int *mask);
    """
)


@dataclass(frozen=True)
class ConnParam:
    """struct rdma_conn_param."""

    private_data: bytes
    responder_resources: int
    initiator_depth: int
    flow_control: int
    retry_count: int
    rnr_retry_count: int
    srq: bool
    qp_num: int
    qkey: int = 0
    """Of a datagram service, of which only this, qp_num and private_data are meant."""


@dataclass(frozen=True)
class CmEvent:
    """struct rdma_cm_event. id: whose it is; of a request, the new one, and the listener's."""

    id: int
    event: int
    status: int
    param: ConnParam
    listener: int = 0


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(_ffi.errno, os.strerror(_ffi.errno))


def _socket_address(address: IP, port: int) -> Any:
    place = _ffi.new("union sockaddr *")
    if isinstance(address, IPv6Address):
        place.family, into = socket.AF_INET6, place.ipv6
        into.interface = interface_of(address)
    else:
        place.family, into = socket.AF_INET, place.ipv4
    into.port, into.address = socket.htons(port), address.packed
    return place


def _read_address(place: Any) -> tuple[IP, int]:
    if place.family == socket.AF_INET6:
        return on_interface(IPv6Address(bytes(place.ipv6.address)), place.ipv6.interface), socket.ntohs(place.ipv6.port)
    return IPv4Address(bytes(place.ipv4.address)), socket.ntohs(place.ipv4.port)


def _data(param: Any) -> bytes:
    return bytes(_ffi.buffer(param.private_data, param.private_data_len)) if param.private_data else b""


def _connection(conn: Any) -> ConnParam:
    return ConnParam(
        _data(conn),
        conn.responder_resources,
        conn.initiator_depth,
        conn.flow_control,
        conn.retry_count,
        conn.rnr_retry_count,
        bool(conn.srq),
        conn.qp_num,
    )


def _datagram(ud: Any) -> ConnParam:
    return ConnParam(_data(ud), 0, 0, 0, 0, 0, False, ud.qp_num, ud.qkey)


@cache
def _image() -> bytes:
    """The library's file. Asked for by name the loader would give a copy of it, once there is one. OSError."""
    loaded = _ffi.dlopen(LIBRARY)
    with open("/proc/self/maps") as maps:
        paths = [line.split(maxsplit=5)[5].strip() for line in maps if f"/{LIBRARY.partition('.')[0]}." in line]
    _ffi.dlclose(loaded)
    return Path(paths[0]).read_bytes()


def _own_copy() -> tuple[Any, int]:
    """The library, loaded once more than it may be already: with a state of its own, since it is another file.

    The devices that it has open are among that state, and each of them is to be let go by itself. The descriptor is its
    file's, to be closed after it: the loader knows libraries by their path as well. OSError.
    """
    copy = os.memfd_create(LIBRARY)
    try:
        os.write(copy, _image())
        return _ffi.dlopen(f"/proc/self/fd/{copy}"), copy
    except OSError:
        os.close(copy)
        raise


class RdmaCm:
    """One event channel, and ids on it, which are numbers here. OSError with the library's errno."""

    def __init__(self) -> None:
        """OSError: the library can't be loaded, or the kernel has no rdma_cm."""
        self._lib, self._file = _own_copy()
        self._channel = self._lib.rdma_create_event_channel()
        if not self._channel:
            error = _ffi.errno
            self._unload()
            raise OSError(error, os.strerror(error))
        os.set_blocking(self._channel.fd, False)
        self._datagrams: set[int] = set()
        """Ids of datagram services."""
        self._devices: set[int] = set()
        """Those that ids were on, as the library has them open."""

    @property
    def fd(self) -> int:
        """Readable while events wait."""
        return int(self._channel.fd)

    @staticmethod
    def _id(number: int) -> Any:
        return _ffi.cast("struct rdma_cm_id *", number)

    def create(self, port_space: int = PS_TCP) -> int:
        place = _ffi.new("struct rdma_cm_id **")
        _checked(self._lib.rdma_create_id(self._channel, place, _ffi.NULL, port_space))
        number = int(_ffi.cast("uintptr_t", place[0]))
        if port_space == PS_UDP:
            self._datagrams.add(number)
        return number

    def destroy(self, number: int) -> None:
        """All events of it must have been taken."""
        device = int(_ffi.cast("uintptr_t", self._id(number).verbs))
        if device:
            self._devices.add(device)
        self._datagrams.discard(number)
        self._lib.rdma_destroy_id(self._id(number))

    def listen(self, number: int, address: IP, port: int, backlog: int) -> None:
        _checked(self._lib.rdma_bind_addr(self._id(number), _socket_address(address, port)))
        _checked(self._lib.rdma_listen(self._id(number), backlog))

    def resolve_address(self, number: int, address: IP, port: int, milliseconds: int) -> None:
        destination = _socket_address(address, port)
        _checked(self._lib.rdma_resolve_addr(self._id(number), _ffi.NULL, destination, milliseconds))

    def resolve_route(self, number: int, milliseconds: int) -> None:
        _checked(self._lib.rdma_resolve_route(self._id(number), milliseconds))

    def _param(self, param: ConnParam) -> tuple[Any, Any]:
        """With what it refers to."""
        data = _ffi.new("uint8_t[]", param.private_data)
        raw = _ffi.new("struct rdma_conn_param *")
        raw.private_data, raw.private_data_len = data, len(param.private_data)
        raw.responder_resources, raw.initiator_depth = param.responder_resources, param.initiator_depth
        raw.flow_control, raw.retry_count = param.flow_control, param.retry_count
        raw.rnr_retry_count, raw.srq, raw.qp_num = param.rnr_retry_count, param.srq, param.qp_num
        return raw, data

    def connect(self, number: int, param: ConnParam) -> None:
        raw, _data = self._param(param)
        _checked(self._lib.rdma_connect(self._id(number), raw))

    def establish(self, number: int) -> None:
        _checked(self._lib.rdma_establish(self._id(number)))

    def accept(self, number: int, param: ConnParam) -> None:
        raw, _data = self._param(param)
        _checked(self._lib.rdma_accept(self._id(number), raw))

    def reject(self, number: int, private_data: bytes) -> None:
        _checked(self._lib.rdma_reject(self._id(number), private_data, len(private_data)))

    def disconnect(self, number: int) -> None:
        _checked(self._lib.rdma_disconnect(self._id(number)))

    def qp_attributes(self, number: int, state: int) -> Any:
        """A struct ibv_qp_attr with what the connection says of it in this state."""
        attr, mask = _ffi.new("struct ibv_qp_attr *"), _ffi.new("int *")
        attr.qp_state = state
        _checked(self._lib.rdma_init_qp_attr(self._id(number), attr, mask))
        return attr

    def addresses(self, number: int) -> tuple[tuple[IP, int], tuple[IP, int]]:
        """Its own and its peer's address and port."""
        place = self._id(number)
        return _read_address(place.src), _read_address(place.dst)

    def gids(self, number: int) -> tuple[bytes, bytes]:
        """Its own and its peer's."""
        place = self._id(number)
        return bytes(place.sgid), bytes(place.dgid)

    def next_event(self) -> CmEvent | None:
        """None: none waits."""
        place = _ffi.new("struct rdma_cm_event **")
        if self._lib.rdma_get_cm_event(self._channel, place):
            return None
        raw = place[0]
        number, listener = (int(_ffi.cast("uintptr_t", one)) for one in (raw.id, raw.listen_id))
        if listener in self._datagrams:
            self._datagrams.add(number)
        param = _datagram(raw.ud) if number in self._datagrams else _connection(raw.conn)
        event = CmEvent(number, raw.event, raw.status, param, listener)
        self._lib.rdma_ack_cm_event(raw)
        return event

    def close(self) -> None:
        """All ids must be destroyed.

        The library keeps devices open for as long as the process lives, and so keeps the kernel from removing them:
        they are closed here, and the library that doesn't know it is unloaded.
        """
        self._lib.rdma_destroy_event_channel(self._channel)
        if self._devices:
            verbs: Any = _ffi.dlopen("libibverbs.so.1")
            for device in self._devices:
                verbs.ibv_close_device(_ffi.cast("void *", device))
        self._unload()

    def _unload(self) -> None:
        _ffi.dlclose(self._lib)
        os.close(self._file)
