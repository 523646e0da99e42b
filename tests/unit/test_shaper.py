# SPDX-License-Identifier: Apache-2.0
"""Properties of the shaper: the engine's own C code in virtual time (simulation.h), whatever hypothesis thinks of."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cffi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
BUILD = Path(os.environ.get("SLUICE_BUILD", "build")).absolute()
LIBRARY = BUILD / "tests/unit/libsimulation.so"

GBPS = 10**9
MS = 10**6
SECOND = 10**9
YEAR = 365 * 86400 * SECOND
ENGINE_BPS = 200 * GBPS

pytestmark = pytest.mark.skipif(
    not LIBRARY.exists(), reason=f"{LIBRARY} is not built: run `make test`, or set SLUICE_BUILD"
)

SHARE = """
struct sluice_share { uint64_t min_bps[2]; uint64_t max_bps[2]; uint64_t burst[2]; uint64_t weight; };
"""


def _load() -> tuple[Any, Any]:
    ffi = cffi.FFI()
    text = (HERE / "simulation.h").read_text()
    lines = [line for line in text[text.index("*/", 40) + 2 :].splitlines() if not line.startswith("#")]
    ffi.cdef(SHARE + "\n".join(lines))
    return ffi, ffi.dlopen(str(LIBRARY))


FFI: Any = None
LIB: Any = None
if LIBRARY.exists():
    FFI, LIB = _load()


class Simulation:
    def __init__(self, capacity: int, wire: bool, start: int, tenants: int = 64) -> None:
        self._simulation = LIB.simulation_open(tenants, capacity, wire, ENGINE_BPS, start)

    def __getattr__(self, name: str) -> Any:
        function = getattr(LIB, f"simulation_{name}")
        return lambda *arguments: function(self._simulation, *arguments)


@contextmanager
def simulation(capacity: int, wire: bool = False, start: int = SECOND) -> Iterator[Simulation]:
    made = Simulation(capacity, wire, start)
    yield made
    made.close()


def share(least: int = 0, most: int = 0, burst: int = 0, weight: int = 100) -> Any:
    return FFI.new(
        "struct sluice_share *",
        {"min_bps": (least, least), "max_bps": (most, most), "burst": (burst, burst), "weight": weight},
    )


rates = st.one_of(st.integers(10**6, 10**8), st.integers(10**8, 100 * GBPS))
bursts = st.one_of(st.just(0), st.integers(4096, 1 << 24))
sizes = st.one_of(st.integers(1, 4096), st.integers(4096, 8 << 20))
costs = st.integers(20, 3000)
weights = st.integers(1, 10000)
directions = st.sampled_from([0, 1])
starts = st.one_of(st.integers(1, SECOND), st.integers(1, 290 * YEAR))
tenants = st.lists(st.tuples(rates, bursts, sizes, costs, weights, directions), min_size=1, max_size=8)


@given(tenants, starts, st.booleans(), st.lists(st.integers(0, 20 * MS), max_size=5))
@settings(deadline=None, max_examples=150)
def test_never_above_the_ceiling_in_any_window(
    wanted: list[tuple[int, int, int, int, int, int]], start: int, wire: bool, pauses: list[int]
) -> None:
    with simulation(50 * GBPS, wire, start) as run:
        group = run.group(share(most=20 * GBPS))
        for number, (rate, burst, size, cost, weight, direction) in enumerate(wanted):
            run.tenant(group if number % 2 else -1, share(most=rate, burst=burst, weight=weight), 0, 0)
            run.demand(number, direction, size, cost)
        for pause in [0, *pauses]:
            run.run(5 * MS)
            run.step(pause)
        for number, (_, _, _, _, _, direction) in enumerate(wanted):
            assert run.excess(number, direction) <= run.burst(number, direction) + 1
        for direction in (0, 1):
            assert run.group_excess(group, direction) <= run.group_burst(group, direction) + 1
            assert run.device_excess(direction) <= run.device_burst(direction) + 1


@given(rates, sizes, st.lists(st.tuples(st.integers(0, 60 * MS), st.integers(MS, 20 * MS)), max_size=5), starts)
@settings(deadline=None, max_examples=100)
def test_what_the_machine_missed_is_made_good(rate: int, size: int, stalls: list[tuple[int, int]], start: int) -> None:
    """Up to 64 ms in all, for who wanted more all the while, and never at more than 4/3 of the rate."""
    with simulation(200 * GBPS, False, start) as run:
        run.tenant(-1, share(most=rate), 0, 0)
        run.demand(0, 0, size, 0)
        chunk = run.burst(0, 0) - rate * 64 * MS // (8 * SECOND)
        run.run(20 * MS)
        missed = length = 0
        run.reset()
        for stall, stretch in stalls:
            if missed + stall > 60 * MS:
                break
            run.step(stall)
            run.run(stretch)
            missed += stall
            length += stall + stretch
        run.run(300 * MS)
        length += 300 * MS
        allowed = rate * length // (8 * SECOND)
        assert allowed - 2 * chunk - 2 <= run.bytes(0, 0) <= allowed + 2 * chunk + 2
        assert run.excess(0, 0) <= run.burst(0, 0) + 1
        assert run.peak_excess(0, 0) <= rate * 8 * MS // (3 * 8 * SECOND) + chunk + 2


@given(rates, sizes, st.lists(st.tuples(st.integers(0, 300 * MS), st.integers(0, MS)), max_size=8), starts)
@settings(deadline=None, max_examples=100)
def test_who_rests_saves_up_no_more_than_a_short_delay(
    rate: int, size: int, rests: list[tuple[int, int]], start: int
) -> None:
    with simulation(200 * GBPS, False, start) as run:
        run.tenant(-1, share(most=rate), 0, 0)
        run.reset()
        for rest, stretch in rests:
            run.demand(0, 0, 0, 0)
            run.run(rest)
            run.demand(0, 0, size, 0)
            run.run(stretch)
        run.run(20 * MS)
        assert run.excess(0, 0) <= run.burst(0, 0) - rate * 44 * MS // (8 * SECOND) + 1


@given(tenants, starts, st.booleans())
@settings(deadline=None, max_examples=150)
def test_work_conserving_and_nobody_starves(
    wanted: list[tuple[int, int, int, int, int, int]], start: int, wire: bool
) -> None:
    with simulation(50 * GBPS, wire, start) as run:
        for number, (rate, burst, size, cost, weight, direction) in enumerate(wanted):
            run.tenant(-1, share(most=rate, burst=burst, weight=weight), 0, 0)
            run.demand(number, direction, size, cost)
        # What the lightest waits while the others have one turn of the dearest kind for each of their weights.
        lightest = min(weight for *_, weight, _ in wanted)
        patience = sum(1 + weight // lightest for *_, weight, _ in wanted) * 40_000 + 200 * MS
        run.run(min(patience, 2 * SECOND))
        assert run.idle_mistakes() == 0
        if patience <= 2 * SECOND:
            for number, (*_, direction) in enumerate(wanted):
                assert run.bytes(number, direction) > 0


@given(
    st.lists(st.tuples(st.integers(1, 100), sizes, weights), min_size=1, max_size=6),
    st.lists(st.tuples(sizes, costs, weights), max_size=6),
    st.integers(0, 10 * MS),
    starts,
)
@settings(deadline=None, max_examples=150)
def test_guarantees_are_met_whenever_they_are_wanted(
    promised: list[tuple[int, int, int]], others: list[tuple[int, int, int]], quiet: int, start: int
) -> None:
    """Shares of 90 % of the capacity, whatever others do; also for who comes back after a pause."""
    capacity = 50 * GBPS
    total = sum(part for part, _, _ in promised)
    with simulation(capacity, False, start) as run:
        least = []
        for part, _, weight in promised:
            least.append(capacity * 9 * part // (10 * total))
            run.tenant(-1, share(least=least[-1], weight=weight), 0, 0)
        for number, (size, cost, weight) in enumerate(others, len(promised)):
            run.tenant(-1, share(weight=weight), 0, 0)
            run.demand(number, 0, size, cost)
        run.run(MS + quiet)
        for number, (_, size, _) in enumerate(promised):
            run.demand(number, 0, max(size, 65536), 100)
        run.run(50 * MS)
        for number, rate in enumerate(least):
            # A turn of each of the others, and its own deadline.
            late = (len(promised) + 2) * 65536 + rate // 8 * 20_000 // SECOND
            assert run.lag(number, 0) <= late


@given(st.lists(weights, min_size=2, max_size=8), sizes, costs, starts)
@settings(deadline=None, max_examples=100)
def test_shares_go_by_weight(parts: list[int], size: int, cost: int, start: int) -> None:
    with simulation(50 * GBPS, False, start) as run:
        for number, weight in enumerate(parts):
            run.tenant(-1, share(weight=weight), 0, 0)
            run.demand(number, number % 2, size, cost)
        run.run(20 * MS)
        run.reset()
        run.run(200 * MS)
        total = sum(run.engine_ns(number) for number in range(len(parts)))
        for number, weight in enumerate(parts):
            fair = total * weight / sum(parts)
            # A turn more or less: 64 KiB at the engine's speed, or one message.
            assert abs(run.engine_ns(number) - fair) <= 30_000 + 0.001 * fair


@given(rates, sizes, st.lists(st.tuples(st.integers(-(10**9), 10**9), st.integers(1, 3 * MS)), max_size=8), starts)
@settings(deadline=None, max_examples=100)
def test_clock_steps(rate: int, size: int, steps: list[tuple[int, int]], start: int) -> None:
    """A clock that jumps forth earns a burst at most; one that jumps back stops nobody for longer than it jumped."""
    with simulation(50 * GBPS, True, start + 20 * SECOND) as run:
        run.tenant(-1, share(most=rate), 0, 0)
        run.demand(0, 0, size, 100)
        for jump, stretch in steps:
            run.step(jump)
            run.reset()
            run.run(stretch)
            assert run.bytes(0, 0) <= rate * stretch // (8 * SECOND) + run.burst(0, 0) + 1
        # As far behind as it may be by now.
        run.run(2 * SECOND - sum(jump for jump, _ in steps if jump < 0))
        run.reset()
        run.run(100 * MS)
        assert run.bytes(0, 0) > 0


@given(rates, st.lists(rates, min_size=1, max_size=4), sizes)
@settings(deadline=None, max_examples=50)
def test_a_change_of_policy_acts_at_once(before: int, changes: list[int], size: int) -> None:
    with simulation(200 * GBPS) as run:
        run.tenant(-1, share(most=before), 0, 0)
        run.demand(0, 0, size, 100)
        for rate in changes:
            run.run(3 * MS)
            run.share(0, share(most=rate))
            run.run(10 * MS)
            assert run.excess(0, 0) <= run.burst(0, 0) + 1
            allowed = min(rate, ENGINE_BPS // 40) // 8 * 10 * MS // SECOND
            assert run.bytes(0, 0) + 70_000 >= allowed * 0.5 or size < 4096
