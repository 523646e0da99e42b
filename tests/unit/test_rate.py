# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice.policy.rate import MAX_RATE, MIN_RATE, format_rate, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "bps"),
    [
        ("500Mbps", 5e8),
        ("2Gbps", 2e9),
        ("10G", 1e10),
        ("1.5Gbps", 1.5e9),
        ("800kbps", 8e5),
        ("0.1 Gbps", 1e8),
    ],
)
def test_rates(text: str, bps: float) -> None:
    assert parse_rate(text) == bps


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("500", "no unit"),
        ("fast", "is not a rate"),
        ("-1Gbps", "is not a rate"),
        ("5Gibps", "the unit 'Gibps'"),
        ("1bps", "out of range"),
        ("1000000Tbps", "out of range"),
        ("", "is not a rate"),
    ],
)
def test_what_is_no_rate(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse_rate(text)


def test_sizes() -> None:
    assert parse_size("64KiB") == 65536
    assert parse_size("2GB") == 2 * 10**9
    with pytest.raises(ValueError, match="no unit"):
        parse_size("64")


@given(st.integers(MIN_RATE, MAX_RATE))
def test_a_written_rate_is_read_back(bps: int) -> None:
    assert parse_rate(format_rate(bps)) == pytest.approx(bps, rel=0.006)
