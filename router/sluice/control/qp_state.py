# SPDX-License-Identifier: Apache-2.0
"""Which attributes ibv_modify_qp takes in which state (IBTA 11.2.5.2, man ibv_modify_qp).

Numbers are those of rdma-core's enum ibv_qp_state and enum ibv_qp_attr_mask.
"""

from enum import IntEnum, IntFlag
from typing import Any


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
_RTS_OPTIONAL = Attr.CUR_STATE | Attr.ACCESS_FLAGS | Attr.MIN_RNR_TIMER | Attr.PATH_MIG_STATE

RC: dict[tuple[State, State], tuple[Attr, Attr]] = {
    (State.RESET, State.INIT): (Attr.PKEY_INDEX | Attr.PORT | Attr.ACCESS_FLAGS, NONE),
    (State.INIT, State.INIT): (NONE, Attr.PKEY_INDEX | Attr.PORT | Attr.ACCESS_FLAGS),
    (State.INIT, State.RTR): (
        Attr.AV | Attr.PATH_MTU | Attr.DEST_QPN | Attr.RQ_PSN | Attr.MAX_DEST_RD_ATOMIC | Attr.MIN_RNR_TIMER,
        Attr.ACCESS_FLAGS | Attr.PKEY_INDEX,
    ),
    (State.RTR, State.RTS): (
        Attr.TIMEOUT | Attr.RETRY_CNT | Attr.RNR_RETRY | Attr.SQ_PSN | Attr.MAX_QP_RD_ATOMIC,
        _RTS_OPTIONAL,
    ),
    (State.RTS, State.RTS): (NONE, _RTS_OPTIONAL),
    (State.RTS, State.SQD): (NONE, Attr.EN_SQD_ASYNC_NOTIFY),
    (State.SQD, State.RTS): (NONE, _RTS_OPTIONAL),
    (State.SQD, State.SQD): (
        NONE,
        Attr.PKEY_INDEX
        | Attr.PORT
        | Attr.AV
        | Attr.MAX_QP_RD_ATOMIC
        | Attr.MAX_DEST_RD_ATOMIC
        | Attr.TIMEOUT
        | Attr.RETRY_CNT
        | Attr.RNR_RETRY
        | Attr.ACCESS_FLAGS
        | Attr.MIN_RNR_TIMER
        | Attr.PATH_MIG_STATE,
    ),
}
"""(from, to): attributes that must and that may be given, STATE aside.

RESET is entered from any state and ERR from any but RESET, with no attributes.
"""

MAX_RD_ATOMIC = 128
MTU_4096 = 5
REMOTE_AND_LOCAL = 0x1F
"""IBV_ACCESS_LOCAL_WRITE, REMOTE_WRITE, REMOTE_READ, REMOTE_ATOMIC, MW_BIND."""


def _values_fit(attr: Any, mask: Attr, gid_count: int) -> bool:
    ah = attr.ah
    checks = {
        Attr.PORT: attr.port_num == 1,
        Attr.PKEY_INDEX: attr.pkey_index == 0,
        Attr.ACCESS_FLAGS: attr.qp_access_flags & ~REMOTE_AND_LOCAL == 0,
        Attr.PATH_MTU: 1 <= attr.path_mtu <= MTU_4096,
        Attr.TIMEOUT: attr.timeout < 32,
        Attr.RETRY_CNT: attr.retry_cnt < 8,
        Attr.RNR_RETRY: attr.rnr_retry < 8,
        Attr.MIN_RNR_TIMER: attr.min_rnr_timer < 32,
        Attr.DEST_QPN: attr.dest_qp_num < 1 << 24,
        # Only 24 bits of a PSN count; applications give more, and real devices cut them off.
        Attr.MAX_QP_RD_ATOMIC: attr.max_rd_atomic <= MAX_RD_ATOMIC,
        Attr.MAX_DEST_RD_ATOMIC: attr.max_dest_rd_atomic <= MAX_RD_ATOMIC,
        # RoCE has no LIDs: an address vector without a GID leads nowhere.
        Attr.AV: bool(ah.is_global) and ah.sgid_index < gid_count and ah.port_num in (0, 1),
    }
    return all(fits for bit, fits in checks.items() if mask & bit)


def allowed(current: int, attr: Any, attr_mask: int, gid_count: int) -> bool:
    """Whether an RC QP in state `current` takes this change (attr: struct sluice_qp_attr)."""
    if attr_mask & ~sum(Attr):
        return False
    mask = Attr(attr_mask)
    if mask & Attr.CUR_STATE and attr.cur_qp_state != current:
        return False
    target = attr.qp_state if mask & Attr.STATE else current
    if mask & Attr.STATE and (target == State.RESET or (target == State.ERR and current != State.RESET)):
        return mask & ~(Attr.STATE | Attr.CUR_STATE) == NONE
    try:
        transition = (State(current), State(target))
    except ValueError:
        return False
    if transition not in RC:
        return False
    required, optional = RC[transition]
    given = mask & ~Attr.STATE
    return (
        given & required == required
        and given & ~(required | optional | Attr.CUR_STATE) == NONE
        and _values_fit(attr, mask, gid_count)
    )
