# SPDX-License-Identifier: Apache-2.0
"""What ibv_modify_qp needs for the QP of an id (rdma_init_qp_attr(3)), state by state."""

import errno
from typing import Any

from sluice.control.cm.connection import Connection, Phase
from sluice.control.cm.identifier import QPT_RC, QPT_UC, Identifier
from sluice.control.cm.lookup import UDP_QKEY
from sluice.control.qp_state import Attr, State
from sluice.engine import ffi

MTU_4096 = 5
HOP_LIMIT = 64
ACK_TIMEOUT = 18
"""4.096 us * 2^18 = 1.07 s: Linux' CM comes to it from a RoCE path's packet life time."""
PACKET_LIFE_TIME = 16
REMOTE_WRITE, REMOTE_READ, REMOTE_ATOMIC = 2, 4, 8
QPT_XRC_SEND, QPT_XRC_RECV = 9, 10

SENDS_READS = (QPT_RC, QPT_XRC_SEND)
SERVES_READS = (QPT_RC, QPT_XRC_RECV)
KNOWS_PEER = (Phase.REQUEST_RECEIVED, Phase.REPLY_RECEIVED, Phase.REPLY_SENT, Phase.ESTABLISHED)


def fill_qp_attributes(identifier: Identifier, state: int, attr: Any) -> Attr:
    """Fills a struct sluice_qp_attr for the step to `state` and returns its mask.

    OSError EINVAL: the id has no device, or knows too little of its peer for this state.
    """
    if state > State.ERR:
        raise OSError(errno.EINVAL, "no state of a QP")
    if not identifier.bound:
        raise OSError(errno.EINVAL, "the id has no device yet")
    connection = identifier.end
    attr.qp_state = state
    attr.port_num = 1
    if not isinstance(connection, Connection):
        return _of_unconnected(identifier, attr)
    if state == State.INIT:
        return _to_init(identifier, connection, attr)
    if connection.phase not in KNOWS_PEER:
        raise OSError(errno.EINVAL, "the peer is not known")
    if state == State.RTR:
        return _to_rtr(identifier, connection, attr)
    if state == State.RTS:
        return _to_rts(identifier, connection, attr)
    raise OSError(errno.EINVAL, "only INIT, RTR and RTS have attributes of a connection")


def _of_unconnected(identifier: Identifier, attr: Any) -> Attr:
    mask = Attr.STATE | Attr.PKEY_INDEX | Attr.PORT
    if identifier.is_datagram:
        attr.qkey = UDP_QKEY
        return mask | Attr.QKEY
    return mask | Attr.ACCESS_FLAGS


def _to_init(identifier: Identifier, connection: Connection, attr: Any) -> Attr:
    attr.qp_access_flags = REMOTE_WRITE
    if identifier.qp_type != QPT_UC and serves(connection):
        attr.qp_access_flags |= REMOTE_READ | REMOTE_ATOMIC
    return Attr.STATE | Attr.PKEY_INDEX | Attr.PORT | Attr.ACCESS_FLAGS


def serves(connection: Connection) -> int:
    """Reads and atomics that this end serves at a time: its own word once it gave one, else what the peer asks for."""
    if connection.phase is Phase.REQUEST_RECEIVED:
        return connection.peer.initiator_depth
    if connection.phase is Phase.REPLY_RECEIVED:
        return min(connection.own.responder_resources, connection.peer.initiator_depth)
    return connection.own.responder_resources


def asks(connection: Connection) -> int:
    """Reads and atomics that this end may have outstanding."""
    if connection.phase is Phase.REQUEST_RECEIVED:
        return connection.peer.responder_resources
    if connection.phase is Phase.REPLY_RECEIVED:
        return min(connection.own.initiator_depth, connection.peer.responder_resources)
    return connection.own.initiator_depth


def _to_rtr(identifier: Identifier, connection: Connection, attr: Any) -> Attr:
    nic_gids = identifier.device.nic_gids
    path = connection.path
    attr.path_mtu = MTU_4096 if path is None else path.mtu
    # Which of its GIDs a connection starts from says which network it takes.
    attr.ah.sgid_index = nic_gids.index(path.source) if path and path.source in nic_gids else len(nic_gids)
    attr.dest_qp_num = connection.peer.qp_num
    attr.rq_psn = connection.peer_psn
    attr.ah.is_global = 1
    attr.ah.hop_limit = HOP_LIMIT
    attr.ah.traffic_class = identifier.traffic_class
    attr.ah.port_num = 1
    ffi.memmove(attr.ah.dgid, connection.peer_gid, 16)
    mask = Attr.STATE | Attr.AV | Attr.PATH_MTU | Attr.DEST_QPN | Attr.RQ_PSN
    if identifier.qp_type in SERVES_READS:
        attr.max_dest_rd_atomic = serves(connection)
        mask |= Attr.MAX_DEST_RD_ATOMIC | Attr.MIN_RNR_TIMER
    return mask


def _to_rts(identifier: Identifier, connection: Connection, attr: Any) -> Attr:
    attr.sq_psn = connection.psn
    mask = Attr.STATE | Attr.SQ_PSN
    if identifier.qp_type in (*SENDS_READS, QPT_XRC_RECV):
        usual = ACK_TIMEOUT if connection.path is None else connection.path.timeout
        attr.timeout = usual if identifier.ack_timeout is None else identifier.ack_timeout
        mask |= Attr.TIMEOUT
    if identifier.qp_type in SENDS_READS:
        attr.retry_cnt = connection.retry_count
        attr.rnr_retry = connection.peer.rnr_retry_count
        attr.max_rd_atomic = asks(connection)
        mask |= Attr.RETRY_CNT | Attr.RNR_RETRY | Attr.MAX_QP_RD_ATOMIC
    return mask
