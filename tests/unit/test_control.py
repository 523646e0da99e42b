# SPDX-License-Identifier: Apache-2.0
"""The state table, the directory, and the counters' types."""

from ipaddress import IPv4Network
from types import SimpleNamespace

import pytest
from sluice.cluster.directory import AddressError, Directory
from sluice.control.qp_state import RC, Attr, State, allowed
from sluice.device.virtual import VirtualDevice
from sluice.engine import ffi
from sluice.engine.counters import QP, TENANT


def attributes(**changed: int) -> SimpleNamespace:
    ah = SimpleNamespace(is_global=1, sgid_index=0, port_num=1)
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
            "cur_qp_state",
            "qp_state",
        ],
        0,
    )
    return SimpleNamespace(**{**values, "port_num": 1, "path_mtu": 5, "ah": ah, **changed})


@pytest.mark.parametrize("transition", RC, ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
def test_required_attributes_are_required(transition: tuple[State, State]) -> None:
    source, target = transition
    required, optional = RC[transition]
    attr = attributes(qp_state=target)
    assert allowed(source, attr, Attr.STATE | required, 1)
    assert allowed(source, attr, Attr.STATE | required | (optional & ~Attr.CUR_STATE), 1)
    for bit in required:
        assert not allowed(source, attr, (Attr.STATE | required) & ~bit, 1)
    for bit in Attr:
        if not bit & (required | optional | Attr.STATE | Attr.CUR_STATE):
            assert not allowed(source, attr, Attr.STATE | required | bit, 1)


def test_any_state_goes_to_reset_and_err() -> None:
    for state in State:
        assert allowed(state, attributes(qp_state=State.RESET), Attr.STATE, 1)
        assert allowed(state, attributes(qp_state=State.ERR), Attr.STATE, 1) == (state != State.RESET)
        assert not allowed(state, attributes(qp_state=State.ERR), Attr.STATE | Attr.PORT, 1)


def test_no_short_cuts() -> None:
    everything = sum(Attr) & ~Attr.CUR_STATE
    for source, target in ((State.RESET, State.RTR), (State.INIT, State.RTS), (State.ERR, State.RTS)):
        assert not allowed(source, attributes(qp_state=target), everything, 1)
    assert not allowed(State.RESET, attributes(qp_state=77), Attr.STATE, 1)
    assert not allowed(State.RESET, attributes(qp_state=1), 1 << 30, 1)


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
    required, _ = RC[(state, target)]
    assert bit & required
    assert not allowed(state, attributes(qp_state=target, **{field: value}), Attr.STATE | required, 1)


def test_the_directory_knows_who_has_a_gid() -> None:
    directory = Directory(pool=IPv4Network("10.0.0.0/29"))
    addresses = [directory.assign(tenant) for tenant in range(6)]
    assert len(set(addresses)) == 6
    assert directory.tenant_of(VirtualDevice(addresses[3]).gid) == 3
    with pytest.raises(AddressError, match="in use"):
        directory.assign(7)
    directory.release(addresses[3])
    assert directory.tenant_of(VirtualDevice(addresses[3]).gid) is None
    assert directory.assign(8) == addresses[3]
    assert directory.tenant_of(bytes(16)) is None


def test_counters_have_the_layout_of_the_header_file() -> None:
    assert ffi.sizeof("struct sluice_tenant_counters") == TENANT.itemsize
    assert ffi.sizeof("struct sluice_qp_counters") == QP.itemsize
    assert TENANT.names is not None and "tx_bytes" in TENANT.names
