# SPDX-License-Identifier: Apache-2.0
"""State tables of all types of QP (IBTA 11.2.5.2)."""

from types import SimpleNamespace

import pytest
from sluice.control.qp_state import CURRENT, IGNORED, TABLES, Attr, State, Type, allowed

TRANSITIONS = [(kind, *transition) for kind, table in TABLES.items() for transition in table]


def attributes(**changed: int) -> SimpleNamespace:
    ah = SimpleNamespace(is_global=1, sgid_index=0, port_num=1, dgid=bytes(10) + b"\xff\xff\x0a\x00\x00\x01")
    values = dict.fromkeys(
        [
            "pkey_index",
            "qp_access_flags",
            "timeout",
            "retry_cnt",
            "rnr_retry",
            "min_rnr_timer",
            "dest_qp_num",
            "max_rd_atomic",
            "max_dest_rd_atomic",
            "path_mig_state",
            "cur_qp_state",
            "qp_state",
        ],
        0,
    )
    return SimpleNamespace(**{**values, "port_num": 1, "path_mtu": 5, "ah": ah, **changed})


@pytest.mark.parametrize(("kind", "source", "target"), TRANSITIONS, ids=lambda value: value.name)
def test_required_attributes_are_required(kind: Type, source: State, target: State) -> None:
    required, optional = TABLES[kind][(source, target)]
    attr = attributes(qp_state=target, cur_qp_state=source)
    assert allowed(kind, source, attr, Attr.STATE | required, 1)
    assert allowed(kind, source, attr, Attr.STATE | required | optional, 1)
    for bit in required:
        assert not allowed(kind, source, attr, (Attr.STATE | required) & ~bit, 1)
    for bit in Attr:
        if not bit & (required | optional | Attr.STATE | IGNORED.get(kind, Attr(0))):
            assert not allowed(kind, source, attr, Attr.STATE | required | bit, 1)


def test_any_state_goes_to_reset_and_all_but_reset_to_err() -> None:
    for kind in Type:
        for state in State:
            assert allowed(kind, state, attributes(qp_state=State.RESET), Attr.STATE, 1)
            to_err = attributes(qp_state=State.ERR)
            assert allowed(kind, state, to_err, Attr.STATE, 1) == (state != State.RESET)
            assert not allowed(kind, state, to_err, Attr.STATE | Attr.PORT, 1)


def test_no_short_cuts() -> None:
    everything = sum(Attr) & ~Attr.CUR_STATE
    for kind in Type:
        for source, target in (
            (State.RESET, State.RTR),
            (State.INIT, State.RTS),
            (State.ERR, State.RTS),
            (State.RTS, State.SQE),
        ):
            assert not allowed(kind, source, attributes(qp_state=target), everything, 1)
        assert not allowed(kind, State.RESET, attributes(qp_state=77), Attr.STATE, 1)
        assert not allowed(kind, State.RESET, attributes(qp_state=1), 1 << 30, 1)
    assert not allowed(8, State.RESET, attributes(qp_state=State.INIT), Attr.STATE | Attr.PORT, 1)


def test_only_unreliable_qps_come_back_from_sqe() -> None:
    back = attributes(qp_state=State.RTS)
    assert [kind for kind in Type if allowed(kind, State.SQE, back, Attr.STATE, 1)] == [Type.UC, Type.UD]


def test_the_assumed_state_must_be_the_real_one() -> None:
    for assumed in State:
        attr = attributes(qp_state=State.RTS, cur_qp_state=assumed)
        expected = assumed == State.RTS
        assert allowed(Type.UC, State.RTS, attr, Attr.STATE | Attr.CUR_STATE, 1) == expected
    assert State.INIT not in CURRENT


@pytest.mark.parametrize(
    ("field", "value", "bit", "state", "target"),
    [
        ("port_num", 2, Attr.PORT, State.RESET, State.INIT),
        ("pkey_index", 1, Attr.PKEY_INDEX, State.RESET, State.INIT),
        ("path_mtu", 6, Attr.PATH_MTU, State.INIT, State.RTR),
        ("dest_qp_num", 1 << 24, Attr.DEST_QPN, State.INIT, State.RTR),
        ("min_rnr_timer", 32, Attr.MIN_RNR_TIMER, State.INIT, State.RTR),
        ("timeout", 32, Attr.TIMEOUT, State.RTR, State.RTS),
        ("retry_cnt", 8, Attr.RETRY_CNT, State.RTR, State.RTS),
        ("rnr_retry", 8, Attr.RNR_RETRY, State.RTR, State.RTS),
    ],
)
def test_values_out_of_range(field: str, value: int, bit: Attr, state: State, target: State) -> None:
    for kind in Type:
        required, _ = TABLES[kind][(state, target)]
        attr = attributes(qp_state=target, **{field: value})
        assert allowed(kind, state, attr, Attr.STATE | required, 1) == (not bit & required)


@pytest.mark.parametrize(("port", "dgid"), [(0, b"\xfe" * 16), (2, b"\xfe" * 16), (1, bytes(16))])
def test_a_way_has_a_port_and_a_gid(port: int, dgid: bytes) -> None:
    required, _ = TABLES[Type.RC][(State.INIT, State.RTR)]
    attr = attributes(qp_state=State.RTR)
    assert allowed(Type.RC, State.INIT, attr, Attr.STATE | required, 1)
    attr.ah.port_num, attr.ah.dgid = port, dgid
    assert not allowed(Type.RC, State.INIT, attr, Attr.STATE | required, 1)
