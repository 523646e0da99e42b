# SPDX-License-Identifier: Apache-2.0
"""Which attributes ibv_modify_qp takes in which state (IBTA 11.2.5.2, man ibv_modify_qp), for each type of QP.

Numbers are those of rdma-core's enum ibv_qp_type, ibv_qp_state and ibv_qp_attr_mask.
"""

from enum import IntEnum, IntFlag
from typing import Any


class Type(IntEnum):
    RC = 2
    UC = 3
    UD = 4
    XRC_SEND = 9
    XRC_RECV = 10


class State(IntEnum):
    RESET = 0
    INIT = 1
    RTR = 2
    RTS = 3
    SQD = 4
    SQE = 5
    ERR = 6


class Attr(IntFlag):
    STATE = 1 << 0
    CUR_STATE = 1 << 1
    EN_SQD_ASYNC_NOTIFY = 1 << 2
    ACCESS_FLAGS = 1 << 3
    PKEY_INDEX = 1 << 4
    PORT = 1 << 5
    QKEY = 1 << 6
    AV = 1 << 7
    PATH_MTU = 1 << 8
    TIMEOUT = 1 << 9
    RETRY_CNT = 1 << 10
    RNR_RETRY = 1 << 11
    RQ_PSN = 1 << 12
    MAX_QP_RD_ATOMIC = 1 << 13
    ALT_PATH = 1 << 14
    MIN_RNR_TIMER = 1 << 15
    SQ_PSN = 1 << 16
    MAX_DEST_RD_ATOMIC = 1 << 17
    PATH_MIG_STATE = 1 << 18
    CAP = 1 << 19
    DEST_QPN = 1 << 20


NONE = Attr(0)
Table = dict[tuple[State, State], tuple[Attr, Attr]]
"""(from, to): attributes that must and that may be given, STATE aside.

RESET is entered from any state and ERR from any but RESET, with no attributes.
"""


def _datagram() -> Table:
    qkey = Attr.CUR_STATE | Attr.QKEY
    return {
        (State.RESET, State.INIT): (Attr.PKEY_INDEX | Attr.PORT | Attr.QKEY, NONE),
        (State.INIT, State.INIT): (NONE, Attr.PKEY_INDEX | Attr.PORT | Attr.QKEY),
        (State.INIT, State.RTR): (NONE, Attr.PKEY_INDEX | Attr.QKEY),
        (State.RTR, State.RTS): (Attr.SQ_PSN, qkey),
        (State.RTS, State.RTS): (NONE, qkey),
        (State.RTS, State.SQD): (NONE, Attr.EN_SQD_ASYNC_NOTIFY),
        (State.SQD, State.RTS): (NONE, qkey),
        (State.SQD, State.SQD): (NONE, Attr.PKEY_INDEX | Attr.QKEY),
        (State.SQE, State.RTS): (NONE, qkey),
    }


def _connected(requester: bool, responder: bool, reliable: bool) -> Table:
    """requester, responder: which of both sides of a reliable connection the QP has."""
    first = Attr.PKEY_INDEX | Attr.PORT | Attr.ACCESS_FLAGS
    address = Attr.AV | Attr.PATH_MTU | Attr.DEST_QPN | Attr.RQ_PSN
    answers = Attr.MAX_DEST_RD_ATOMIC | Attr.MIN_RNR_TIMER if responder else NONE
    times = Attr.TIMEOUT if reliable else NONE
    retries = Attr.RETRY_CNT | Attr.RNR_RETRY | Attr.MAX_QP_RD_ATOMIC if requester else NONE
    running = Attr.CUR_STATE | Attr.ACCESS_FLAGS | Attr.PATH_MIG_STATE
    if responder:
        running |= Attr.MIN_RNR_TIMER
    port = Attr.PORT if reliable else NONE
    table = {
        (State.RESET, State.INIT): (first, NONE),
        (State.INIT, State.INIT): (NONE, first),
        (State.INIT, State.RTR): (address | answers, Attr.ACCESS_FLAGS | Attr.PKEY_INDEX),
        (State.RTR, State.RTS): (Attr.SQ_PSN | times | retries, running),
        (State.RTS, State.RTS): (NONE, running),
        (State.RTS, State.SQD): (NONE, Attr.EN_SQD_ASYNC_NOTIFY),
        (State.SQD, State.RTS): (NONE, running),
        (State.SQD, State.SQD): (
            NONE,
            Attr.AV | Attr.PKEY_INDEX | Attr.ACCESS_FLAGS | Attr.PATH_MIG_STATE | port | answers | times | retries,
        ),
    }
    if not reliable:
        table[(State.SQE, State.RTS)] = (NONE, Attr.CUR_STATE | Attr.ACCESS_FLAGS)
    return table


TABLES: dict[Type, Table] = {
    Type.RC: _connected(requester=True, responder=True, reliable=True),
    Type.UC: _connected(requester=False, responder=False, reliable=False),
    Type.UD: _datagram(),
    Type.XRC_SEND: _connected(requester=True, responder=False, reliable=True),
    Type.XRC_RECV: _connected(requester=False, responder=True, reliable=True),
}

IGNORED: dict[Type, Attr] = {
    Type.XRC_SEND: Attr.MAX_DEST_RD_ATOMIC | Attr.MIN_RNR_TIMER,
    Type.XRC_RECV: Attr.MAX_QP_RD_ATOMIC | Attr.RETRY_CNT | Attr.RNR_RETRY,
}
"""The other side's attributes, which applications give as for RC: the kernel's uverbs take them off first."""

MAX_RD_ATOMIC = 128
MTU_4096 = 5
ACCESS = 0x1F
"""IBV_ACCESS_LOCAL_WRITE, REMOTE_WRITE, REMOTE_READ, REMOTE_ATOMIC, MW_BIND."""
MIGRATED = 0
"""IBV_MIG_MIGRATED: there are no alternate paths, which RoCE lacks."""
CURRENT = (State.RTR, State.RTS, State.SQD, State.SQE)
"""What cur_qp_state may be."""


def address_fits(ah: Any, gid_count: int) -> bool:
    """Whether a struct sluice_ah_attr leads somewhere. RoCE has no LIDs: it takes a GID."""
    return bool(ah.is_global) and ah.sgid_index < gid_count


def _values_fit(attr: Any, mask: Attr, gid_count: int) -> bool:
    checks = {
        Attr.CUR_STATE: attr.cur_qp_state in CURRENT,
        Attr.PORT: attr.port_num == 1,
        Attr.PKEY_INDEX: attr.pkey_index == 0,
        Attr.ACCESS_FLAGS: attr.qp_access_flags & ~ACCESS == 0,
        Attr.PATH_MTU: 1 <= attr.path_mtu <= MTU_4096,
        Attr.TIMEOUT: attr.timeout < 32,
        Attr.RETRY_CNT: attr.retry_cnt < 8,
        Attr.RNR_RETRY: attr.rnr_retry < 8,
        Attr.MIN_RNR_TIMER: attr.min_rnr_timer < 32,
        Attr.DEST_QPN: attr.dest_qp_num < 1 << 24,
        # Only 24 bits of a PSN count; applications give more, and real devices cut them off.
        Attr.MAX_QP_RD_ATOMIC: attr.max_rd_atomic <= MAX_RD_ATOMIC,
        Attr.MAX_DEST_RD_ATOMIC: attr.max_dest_rd_atomic <= MAX_RD_ATOMIC,
        Attr.PATH_MIG_STATE: attr.path_mig_state == MIGRATED,
        Attr.AV: address_fits(attr.ah, gid_count) and attr.ah.port_num in (0, 1),
    }
    return all(fits for bit, fits in checks.items() if mask & bit)


def allowed(kind: int, current: int, attr: Any, attr_mask: int, gid_count: int) -> bool:
    """Whether a QP of type `kind` in state `current` takes this change (attr: struct sluice_qp_attr)."""
    if attr_mask & ~sum(Attr) or kind not in TABLES:
        return False
    mask = Attr(attr_mask) & ~IGNORED.get(Type(kind), NONE)
    if mask & Attr.CUR_STATE and attr.cur_qp_state != current:
        return False
    target = attr.qp_state if mask & Attr.STATE else current
    if mask & Attr.STATE and (target == State.RESET or (target == State.ERR and current != State.RESET)):
        return mask == Attr.STATE
    try:
        transition = (State(current), State(target))
        required, optional = TABLES[Type(kind)][transition]
    except (ValueError, KeyError):
        return False
    given = mask & ~Attr.STATE
    return (
        given & required == required and given & ~(required | optional) == NONE and _values_fit(attr, mask, gid_count)
    )
