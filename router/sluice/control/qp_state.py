# SPDX-License-Identifier: Apache-2.0
"""Which attributes ibv_modify_qp takes in which state (IBTA 11.2.5.2, man ibv_modify_qp), for each type of QP.

Numbers are those of rdma-core's enum ibv_qp_type, ibv_qp_state and ibv_qp_attr_mask.
"""

from collections.abc import Callable
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


Check = Callable[[Any, int], bool]

# Plain numbers from here on: arithmetic on IntFlag takes longer than all else of a request.
_CHECKS: tuple[tuple[int, Check], ...] = tuple(
    (int(bit), fits)
    for bit, fits in (
        (Attr.CUR_STATE, lambda attr, _gids: attr.cur_qp_state in CURRENT),
        (Attr.PORT, lambda attr, _gids: attr.port_num == 1),
        (Attr.PKEY_INDEX, lambda attr, _gids: attr.pkey_index == 0),
        (Attr.ACCESS_FLAGS, lambda attr, _gids: attr.qp_access_flags & ~ACCESS == 0),
        (Attr.PATH_MTU, lambda attr, _gids: 1 <= attr.path_mtu <= MTU_4096),
        (Attr.TIMEOUT, lambda attr, _gids: attr.timeout < 32),
        (Attr.RETRY_CNT, lambda attr, _gids: attr.retry_cnt < 8),
        (Attr.RNR_RETRY, lambda attr, _gids: attr.rnr_retry < 8),
        (Attr.MIN_RNR_TIMER, lambda attr, _gids: attr.min_rnr_timer < 32),
        (Attr.DEST_QPN, lambda attr, _gids: attr.dest_qp_num < 1 << 24),
        # Only 24 bits of a PSN count; applications give more, and real devices cut them off.
        (Attr.MAX_QP_RD_ATOMIC, lambda attr, _gids: attr.max_rd_atomic <= MAX_RD_ATOMIC),
        (Attr.MAX_DEST_RD_ATOMIC, lambda attr, _gids: attr.max_dest_rd_atomic <= MAX_RD_ATOMIC),
        (Attr.PATH_MIG_STATE, lambda attr, _gids: attr.path_mig_state == MIGRATED),
        (Attr.AV, lambda attr, gids: address_fits(attr.ah, gids) and attr.ah.port_num == 1 and any(attr.ah.dgid)),
    )
)
_TRANSITIONS = {
    (int(kind), int(source), int(target)): (int(required), int(optional))
    for kind, table in TABLES.items()
    for (source, target), (required, optional) in table.items()
}
_IGNORED = {int(kind): int(IGNORED.get(kind, NONE)) for kind in TABLES}
_ALL = sum(int(bit) for bit in Attr)
_STATE, _CUR_STATE, _RESET, _ERR = int(Attr.STATE), int(Attr.CUR_STATE), int(State.RESET), int(State.ERR)


def allowed(kind: int, current: int, attr: Any, attr_mask: int, gid_count: int) -> bool:
    """Whether a QP of type `kind` in state `current` takes this change (attr: struct sluice_qp_attr)."""
    if attr_mask & ~_ALL or kind not in _IGNORED:
        return False
    mask = attr_mask & ~_IGNORED[kind]
    if mask & _CUR_STATE and attr.cur_qp_state != current:
        return False
    if not mask and current in (_RESET, _ERR):
        return True  # nothing to change, as in any state that leads to itself
    target = attr.qp_state if mask & _STATE else current
    if mask & _STATE and (target == _RESET or (target == _ERR and current != _RESET)):
        return mask == _STATE
    transition = _TRANSITIONS.get((kind, current, target))
    if transition is None:
        return False
    required, optional = transition
    given = mask & ~_STATE
    if given & required != required or given & ~(required | optional):
        return False
    return all(fits(attr, gid_count) for bit, fits in _CHECKS if mask & bit)
