# SPDX-License-Identifier: Apache-2.0
"""Isolation under attack: a victim with a guarantee beside attackers, and how exact rates and shares are.

    make bench-isolation                         everything, as tables (about nine minutes)
    benchmarks/isolation/isolation.py --json     the same for machines
    benchmarks/isolation/isolation.py attacks    only some parts: attacks, rates, changes, shares, cost, decisions
    benchmarks/isolation/isolation.py --plots d  also as SVG files in d/

All load comes from load.c, which sleeps between completions: on a machine with few
cores, applications that spin would measure each other. The victim is measured alone
and beside each attack, by turns, in one run of one router. Attackers' processes take
only the time of cores that nobody else wants (SCHED_IDLE): what is measured is how
Sluice shares its engine, not how the kernel shares cores, which is what CPU requests
are for. --even-cores lets them compete for cores as well.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cffi

sys.path.insert(0, str(Path(__file__).parents[1]))
from local import Bench, _free_port, _wait_for_listener
from sluice.cli.temporary import temporary_router
from sluice.control.operator import ask
from sluice.engine.counters import Counters
from sluice.policy.rate import format_rate, format_size
from sluice.shim import with_shim

BUILD = Path(os.environ.get("SLUICE_BUILD", "build"))
LOAD = BUILD / "benchmarks/load"
GUARANTEE = 5 * 10**9
SECONDS = 2.0


@dataclass
class Load:
    """What a tenant does: load.c's arguments."""

    kind: str
    size: int
    depth: int
    qps: int = 1


@dataclass
class Attack:
    """Attackers, each a tenant; toward: who is at the other end, None for a tenant of the attacker's own."""

    name: str
    load: Load
    attackers: int = 1
    toward: str | None = None


ATTACKS = [
    Attack("bandwidth hog, 1 MiB on 16 QPs", Load("write", 1 << 20, 16, 16)),
    Attack("small-message flood, 8 B", Load("write", 8, 1024, 8), 2),
    Attack("READ flood out of the victim's node", Load("read", 1 << 20, 16, 4), 2, "victim-peer"),
    Attack("READ flood into the victim's node", Load("read", 1 << 20, 16, 4), 2),
    Attack("incast, 8 tenants on the victim's peer", Load("write", 65536, 32), 8, "victim-peer"),
    Attack("MR storm, 64 KiB", Load("mr", 65536, 1), 2),
    Attack("QP storm", Load("qp", 8, 1), 2),
    Attack("completion-event storm", Load("events", 8, 256, 4), 2),
    Attack("atomic flood on one word", Load("atomic", 8, 1024, 4), 2),
]
ALONE = Attack("alone", Load("write", 8, 1), 0)
LATENCY = Load("latency", 8, 1)


class Isolation(Bench):
    """even_cores: attackers compete for cores with everybody else."""

    def __init__(self, state_dir: Path, rounds: int, even_cores: bool) -> None:
        super().__init__(state_dir, rounds)
        self.even_cores = even_cores


class Runner:
    """Starts loads as tenants; they are connected before any starts."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    @contextmanager
    def ready(
        self, tenant: str, peer: str, load: Load, seconds: float, prefix: Sequence[str] = ()
    ) -> Iterator["subprocess.Popen[str]"]:
        """prefix: a command that runs both ends' programs."""
        port = str(_free_port())
        server = self._bench.tenant(peer, *prefix, str(LOAD), port)
        _wait_for_listener(int(port), server)
        arguments = [load.kind, str(load.size), str(load.depth), str(load.qps), str(seconds)]
        client = self._bench.tenant(tenant, *prefix, str(LOAD), port, "client", *arguments, stdin=subprocess.PIPE)
        assert client.stdout is not None
        line = client.stdout.readline()
        if line.strip() != "ready":
            raise RuntimeError(f"{tenant}: {line}{client.communicate()[0]}")
        try:
            yield client
        finally:
            client.communicate(timeout=60)
            server.communicate(timeout=60)


def _start(client: "subprocess.Popen[str]") -> None:
    assert client.stdin is not None
    client.stdin.write("\n")
    client.stdin.flush()


def _result(client: "subprocess.Popen[str]") -> dict[str, float]:
    assert client.stdout is not None
    fields = client.stdout.readline().split()
    return dict(zip(fields[::2], map(float, fields[1::2]), strict=True))


@contextmanager
def _attackers(
    runner: Runner, attack: Attack | None, seconds: float, prefix: Sequence[str]
) -> Iterator[list[dict[str, float]]]:
    """The list gets the attackers' own results at the end."""
    found: list[dict[str, float]] = []
    with ExitStack() as stack:
        clients = []
        for number in range(attack.attackers if attack else 0):
            assert attack is not None
            peer = attack.toward or f"attacker{number}-peer"
            clients.append(stack.enter_context(runner.ready(f"attacker{number}", peer, attack.load, seconds, prefix)))
        for client in clients:
            _start(client)
        yield found
        found += [_result(client) for client in clients]


@dataclass
class Victim:
    """bps: of WRITEs of 64 KiB. p50, p99, p999: us of a WRITE of 8 B. attackers: their operations per second."""

    attack: str
    bps: float
    p50: float
    p99: float
    p999: float
    attackers: float


def _victim(runner: Runner, attack: Attack | None, prefix: Sequence[str], load: Load) -> tuple[dict[str, float], float]:
    """The victim's own result, and the attackers' operations per second."""
    seconds = SECONDS + 0.8
    with (
        runner.ready("victim", "victim-peer", load, SECONDS) as victim,
        _attackers(runner, attack, seconds, prefix) as attackers,
    ):
        time.sleep(0.3)
        _start(victim)
        measured = _result(victim)
    return measured, sum(result["operations"] for result in attackers) / seconds


def attacks(bench: Isolation) -> list[Victim]:
    """
    Latency is the median of as many rounds as asked for. In each the victim is alone again before each attack: a
    machine that others use as well has slow minutes.
    """
    runner = Runner(bench)
    ask(bench.state_dir, "tenant-add", name="victim", policy={"min": f"{GUARANTEE}bps"})
    prefix = () if bench.even_cores else ("chrt", "--idle", "0")
    waits: dict[str, list[dict[str, float]]] = {attack.name: [] for attack in (ALONE, *ATTACKS)}
    for turn in range(bench.rounds):
        print(f"  latency, round {turn + 1} of {bench.rounds}", file=sys.stderr, flush=True)
        for attack in ATTACKS:
            waits[ALONE.name].append(_victim(runner, None, prefix, LATENCY)[0])
            waits[attack.name].append(_victim(runner, attack, prefix, LATENCY)[0])
    found = []
    for attack in (ALONE, *ATTACKS):
        print(f"  {attack.name}", file=sys.stderr, flush=True)
        bandwidth, operations = _victim(runner, attack if attack.attackers else None, prefix, Load("write", 65536, 16))
        p50, p99, p999 = (
            statistics.median(wait[part] for wait in waits[attack.name]) for part in ("p50", "p99", "p999")
        )
        found.append(Victim(attack.name, 8 * bandwidth["bytes"] / SECONDS, p50, p99, p999, operations))
    ask(bench.state_dir, "policy-set", name="victim", policy={"min": "none"})
    return found


@dataclass
class Error:
    """Of a ceiling, in windows: by milliseconds, the mean and the worst of |measured/asked - 1|."""

    bps: float
    size: int
    mean: dict[int, float] = field(default_factory=dict)
    worst: dict[int, float] = field(default_factory=dict)
    above: dict[int, float] = field(default_factory=dict)


WINDOWS_MS = {10: 0.05, 100: 0.01, 1000: 0.005}


def _samples(counters: Counters, number: int, seconds: float, every: float = 0.001) -> tuple[list[int], list[int]]:
    """When (ns) and how many bytes had been sent; readings that were interrupted are left out."""
    times, values = [], []
    row = counters.tenants[number : number + 1]["tx_bytes"]
    end = time.monotonic_ns() + int(seconds * 1e9)
    while (before := time.monotonic_ns()) < end:
        value = int(row[0])
        after = time.monotonic_ns()
        if after - before < 20_000:
            times.append((before + after) // 2)
            values.append(value)
        time.sleep(every)
    return times, values


def _window_errors(times: list[int], values: list[int], bps: float, error: Error) -> None:
    for ms in WINDOWS_MS:
        off = []
        for index in range(len(times)):
            until = bisect_left(times, times[index] + ms * 10**6)
            if until == len(times):
                break
            span = times[until] - times[index]
            # A reading that came late makes the window longer; far too late, another one.
            if span <= ms * 1.2e6:
                off.append(8e9 * (values[until] - values[index]) / span / bps - 1)
        if off:
            error.mean[ms] = statistics.mean(map(abs, off))
            error.worst[ms] = max(map(abs, off))
            error.above[ms] = max(off)


def rates(bench: Isolation) -> list[Error]:
    runner = Runner(bench)
    counters = Counters(bench.state_dir / "counters")
    ask(bench.state_dir, "tenant-add", name="shaped", policy={})
    errors = []
    for bps in (10**7, 10**8, 10**9, 5 * 10**9, 2 * 10**10):
        for size in (64, 4096, 65536, 8 << 20):
            # 64 B at 20 Gb/s would be 39 million messages a second: no machine of this size makes them.
            if bps / 8 / size > 4e6:
                continue
            ask(bench.state_dir, "policy-set", name="shaped", policy={"max": f"{bps}bps"})
            # Small ones enough for a process to be late by a millisecond: a ceiling can't be met by who doesn't ask.
            depth = 4 if size > 1 << 20 else 64 if size > 1024 else 4096
            with runner.ready("shaped", "shaped-peer", Load("write", size, depth), 2.6) as client:
                number = _number_of(bench, counters, client, "shaped")
                time.sleep(0.3)
                error = Error(bps, size)
                _window_errors(*_samples(counters, number, 2.1), bps, error)
                _result(client)
            errors.append(error)
    ask(bench.state_dir, "policy-set", name="shaped", policy={"max": "none"})
    return errors


@dataclass
class Change:
    """Rounds, from the request of another ceiling: until no window of 2 ms was above it, until it was answered."""

    asked: str
    ms: list[float]
    answer: list[float]


def changes(bench: Isolation) -> list[Change]:
    runner = Runner(bench)
    counters = Counters(bench.state_dir / "counters")
    ask(bench.state_dir, "tenant-add", name="changed", policy={})
    found = []
    for high, low in ((10**10, 10**9), (10**9, 10**8)):
        change = Change(f"{format_rate(high)} to {format_rate(low)}", [], [])
        for _ in range(2 * bench.rounds):
            ask(bench.state_dir, "policy-set", name="changed", policy={"max": f"{high}bps"})
            with runner.ready("changed", "changed-peer", Load("write", 65536, 64), 1.2) as client:
                number = _number_of(bench, counters, client, "changed")
                time.sleep(0.3)
                with ThreadPoolExecutor(1) as pool:
                    sampled = pool.submit(_samples, counters, number, 0.3, 0.0002)
                    time.sleep(0.1)
                    asked = time.monotonic_ns()
                    ask(bench.state_dir, "policy-set", name="changed", policy={"max": f"{low}bps"})
                    change.answer.append((time.monotonic_ns() - asked) / 1e6)
                    change.ms.append(_settled_ms(*sampled.result(), asked, low))
                _result(client)
        found.append(change)
    ask(bench.state_dir, "policy-set", name="changed", policy={"max": "none"})
    return found


def _settled_ms(times: list[int], values: list[int], asked: int, bps: float) -> float:
    """A window may have what a bucket makes good after the machine stood still (csrc/bucket.h), and a chunk."""
    last = asked
    for index, start in enumerate(times):
        until = bisect_left(times, start + 2 * 10**6)
        if until == len(times):
            break
        span = times[until] - start
        if start >= asked and values[until] - values[index] > bps / 8e9 * (span * 4 / 3 + 2 * 10**6) + 65536:
            last = start
    return (last - asked) / 1e6


def _number_of(bench: Bench, counters: Counters, client: "subprocess.Popen[str]", name: str) -> int:
    """Starts the load; the tenant's row is the one whose bytes grow."""
    before = counters.tenants["tx_bytes"].copy()
    _start(client)
    while True:
        grown = counters.tenants["tx_bytes"] - before
        if grown.max() > 0:
            return int(grown.argmax())
        time.sleep(0.01)


@dataclass
class Shares:
    """Tenants that want all they can get: bps and parts of the engine's time, and Jain's index of each by weight."""

    weights: list[int]
    bps: list[float]
    engine: list[float]
    jain: float
    engine_jain: float


def _jain(values: list[float], weights: list[int]) -> float:
    even = [value / weight for value, weight in zip(values, weights, strict=True)]
    return sum(even) ** 2 / (len(even) * sum(value * value for value in even))


def shares(bench: Isolation) -> list[Shares]:
    runner = Runner(bench)
    found = []
    for weights in ([100] * 4, [100, 200, 400]):
        with ExitStack() as stack:
            clients = []
            for number, weight in enumerate(weights):
                name = f"share{number}"
                ask(bench.state_dir, "tenant-add", name=name, policy={"weight": str(weight)})
                load = Load("write", 1 << 20, 64, 8)
                clients.append(stack.enter_context(runner.ready(name, f"{name}-peer", load, 2 * SECONDS)))
            for client in clients:
                _start(client)
            time.sleep(0.5)
            first = ask(bench.state_dir, "status")
            time.sleep(SECONDS)
            second = ask(bench.state_dir, "status")
            for client in clients:
                _result(client)
        ns = second["time_ns"] - first["time_ns"]
        bps, engine = [], []
        for number in range(len(weights)):
            before, after = (status["tenants"][f"share{number}"]["counters"] for status in (first, second))
            bps.append(8e9 * (after["tx_bytes"] - before["tx_bytes"]) / ns)
            engine.append((after["engine_ns"] - before["engine_ns"]) / ns)
        found.append(Shares(weights, bps, engine, _jain(bps, weights), _jain(engine, weights)))
    return found


@dataclass
class Cost:
    """What all together get, bps of WRITEs of 64 KiB and messages per second of 8 B: [no limits, all kinds, ratio]."""

    tenants: int
    bps: tuple[float, float, float]
    messages: tuple[float, float, float]


CEILINGS_NEVER_MET = {"min": "1Mbps", "max": "10Tbps", "weight": "200", "max-ops": "1000M"}
CROWDS = (1, 10, 1000)
"""How many tenants send at a time."""


@contextmanager
def _crowd(bench: Isolation, tenants: int, load: Load) -> Iterator[None]:
    """Each tenant a process that sends to itself, for as long as this lasts."""
    arguments = [load.kind, str(load.size), str(load.depth), str(load.qps), "3600"]
    with ExitStack() as stack:
        clients = []
        for number in range(tenants):
            path = ask(bench.state_dir, "tenant-add", name=f"crowd{number}", policy={})["path"]
            # Without `sluice run`, whose Python a thousand times is more than most machines have memory for.
            client = subprocess.Popen(
                [LOAD, "-", "client", *arguments],
                env=with_shim(os.environ) | {"SLUICE_TENANT_DIR": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(client.communicate)
            stack.callback(client.kill)
            clients.append(client)
        for client in clients:
            assert client.stdout is not None
            if client.stdout.readline().strip() != "ready":
                raise RuntimeError(f"one of {tenants} tenants did not come up")
        for client in clients:
            _start(client)
        yield


def cost(bench: Isolation) -> list[Cost]:
    counters = Counters(bench.state_dir / "counters")

    def rate(field: str) -> float:
        before, start = int(counters.tenants[field].sum()), time.monotonic()
        time.sleep(1)
        return (int(counters.tenants[field].sum()) - before) / (time.monotonic() - start)

    def compare(tenants: int, load: Load, field: str) -> tuple[float, float, float]:
        rates: tuple[list[float], list[float]] = ([], [])
        with _crowd(bench, tenants, load):
            # In turns, and each with its neighbour: a machine's speed drifts by more than what is looked for.
            for turn in range(6 * bench.rounds):
                busy = (turn + turn // 2) % 2
                policy = CEILINGS_NEVER_MET if busy else dict.fromkeys(CEILINGS_NEVER_MET, "none")
                for number in range(tenants):
                    ask(bench.state_dir, "policy-set", name=f"crowd{number}", policy=policy)
                rates[busy].append(rate(field))
        ratios = [limited / free for free, limited in zip(*rates, strict=True)]
        return statistics.median(rates[0]), statistics.median(rates[1]), statistics.median(ratios)

    found = []
    for tenants in CROWDS:
        print(f"  {tenants:,} tenants", file=sys.stderr, flush=True)
        idle, busy, ratio = compare(tenants, Load("write", 65536, 16), "tx_bytes")
        messages = compare(tenants, Load("write", 8, 1024), "tx_messages")
        found.append(Cost(tenants, (8 * idle, 8 * busy, ratio), messages))
        for number in range(tenants):
            ask(bench.state_dir, "tenant-remove", name=f"crowd{number}")
    return found


@dataclass
class Decision:
    tenants: int
    ns: float


def decisions(_bench: Isolation) -> list[Decision]:
    """Time of a decision and its charge, all tenants with guarantees and work, in the simulation of the tests."""
    ffi = cffi.FFI()
    header = (Path(__file__).parents[2] / "tests/unit/simulation.h").read_text()
    ffi.cdef(
        "struct sluice_share { uint64_t min_bps[2]; uint64_t max_bps[2]; uint64_t burst[2]; uint64_t weight; };"
        + "\n".join(line for line in header[header.index("*/", 40) + 2 :].splitlines() if not line.startswith("#"))
    )
    lib: Any = ffi.dlopen(str((BUILD / "tests/unit/libsimulation.so").absolute()))
    found = []
    for count in (1, 10, 100, 1000, 10000):
        simulation = lib.simulation_open(count, 10**11, 0, 10**12, 10**9)
        share = ffi.new("struct sluice_share *", {"min_bps": (100000, 100000), "weight": 100})
        for number in range(count):
            lib.simulation_tenant(simulation, -1, share, 0, 0)
            lib.simulation_demand(simulation, number, 0, 65536, 100)
        lib.simulation_run(simulation, 20 * 10**6)
        lib.simulation_reset(simulation)
        start = time.perf_counter_ns()
        lib.simulation_run(simulation, 200 * 10**6)
        found.append(Decision(count, (time.perf_counter_ns() - start) / lib.simulation_turns(simulation)))
        lib.simulation_close(simulation)
    return found


PARTS: dict[str, Callable[[Isolation], list[Any]]] = {
    "attacks": attacks,
    "rates": rates,
    "changes": changes,
    "shares": shares,
    "cost": cost,
    "decisions": decisions,
}


def _bar(value: float, full: float, width: int = 24) -> str:
    return "█" * max(0, min(width, round(width * value / full)))


def _show(part: str, rows: list[Any]) -> None:
    print(f"\n{part}, {os.cpu_count()} cores")
    if part == "attacks":
        alone = rows[0]
        print(
            f"{'':<40}{'rate':>9}{'of min':>8}{'p50':>8}{'p99':>8}{'p99.9':>9} us"
            f"{'p99/alone':>11}{'':>11}{'attackers':>13}"
        )
        for row in rows:
            ratio = row.p99 / alone.p99
            kept = "  kept" if row.bps >= 0.97 * GUARANTEE and ratio <= 2 else "  NOT KEPT"
            print(
                f"{row.attack:<40}{format_rate(row.bps):>9}{row.bps / GUARANTEE:>8.2f}{row.p50:>8.1f}{row.p99:>8.1f}"
                f"{row.p999:>9.1f}   {ratio:>11.2f}{kept:<11}{row.attackers / 1e3:>9.1f} k/s"
                f"  {_bar(row.bps / GUARANTEE, 20, 16)}"
            )
    elif part == "rates":
        print(f"{'ceiling':>9}{'size':>8}" + "".join(f"{f'{ms} ms: mean/worst/above':>30}" for ms in WINDOWS_MS))
        for row in rows:
            cells = "".join(
                f"{100 * row.mean[ms]:>14.2f}{100 * row.worst[ms]:>7.2f}{100 * row.above[ms]:>7.2f} %"
                if ms in row.mean
                else f"{'-':>30}"
                for ms in WINDOWS_MS
            )
            print(f"{format_rate(row.bps):>9}{format_size(row.size):>8}{cells}")
    elif part == "changes":
        for row in rows:
            print(
                f"{row.asked:<20} in force after {statistics.median(row.ms):.1f} ms, at most {max(row.ms):.1f} ms; "
                f"answered after {statistics.median(row.answer):.1f} ms, at most {max(row.answer):.1f} ms"
            )
    elif part == "shares":
        for row in rows:
            engine = ", ".join(f"{100 * part:.1f} %" for part in row.engine)
            print(
                f"weights {row.weights}: {', '.join(map(format_rate, row.bps))}, Jain {row.jain:.4f}; "
                f"of the engine's time {engine}, Jain {row.engine_jain:.4f}"
            )
    elif part == "cost":
        for row in rows:
            changes = [100 * (ratio - 1) for _, _, ratio in (row.bps, row.messages)]
            print(
                f"{row.tenants:>6,} tenants at work, limits of all kinds against none: 64 KiB "
                f"{format_rate(row.bps[1])} against {format_rate(row.bps[0])} ({changes[0]:+.1f} %), 8 B "
                f"{row.messages[1] / 1e6:.2f} against {row.messages[0] / 1e6:.2f} M/s ({changes[1]:+.1f} %)"
            )
    else:
        for row in rows:
            print(f"{row.tenants:>6} tenants{row.ns:>8.0f} ns")


def _draw(results: dict[str, list[Any]], folder: Path) -> None:
    """SVG files, where matplotlib is installed: pip install sluice[bench]."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    if "attacks" in results:
        rows = results["attacks"]
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4), sharey=True)
        names = [row.attack for row in rows]
        left.barh(names, [row.bps / 1e9 for row in rows])
        left.axvline(GUARANTEE / 1e9, color="black")
        left.set_xlabel("the victim's Gbit/s; line: its guarantee")
        right.barh(names, [row.p99 for row in rows])
        right.axvline(2 * rows[0].p99, color="black")
        right.set_xlabel("the victim's p99 in us; line: twice alone")
        left.invert_yaxis()
        figure.tight_layout()
        figure.savefig(folder / "attacks.svg")
    if "rates" in results:
        figure, axes = pyplot.subplots(1, len(WINDOWS_MS), figsize=(12, 4))
        for axis, (ms, goal) in zip(axes, WINDOWS_MS.items(), strict=True):
            for size in sorted({row.size for row in results["rates"]}):
                rows = [row for row in results["rates"] if row.size == size and ms in row.mean]
                axis.semilogx(
                    [row.bps for row in rows], [100 * row.mean[ms] for row in rows], "o-", label=format_size(size)
                )
            axis.axhline(100 * goal, color="black")
            axis.set_ylim(bottom=0)
            axis.set_xlabel("ceiling, bit/s")
            axis.set_title(f"mean error in windows of {ms} ms, %")
            axis.legend()
        figure.tight_layout()
        figure.savefig(folder / "rates.svg")
    if "decisions" in results:
        figure, axis = pyplot.subplots(figsize=(6, 4))
        axis.semilogx([row.tenants for row in results["decisions"]], [row.ns for row in results["decisions"]], "o-")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("tenants, all with guarantees and work")
        axis.set_ylabel("ns a decision")
        figure.tight_layout()
        figure.savefig(folder / "decisions.svg")


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog=f"Parts: {', '.join(PARTS)}."
    )
    arguments.add_argument("--json", action="store_true", help="for machines")
    arguments.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw (needs matplotlib)")
    arguments.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="of latency; changes twice, the cost three times as many (default: %(default)s)",
    )
    arguments.add_argument("--even-cores", action="store_true", help="attackers compete for cores, too")
    arguments.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    options = arguments.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        arguments.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.plots and not importlib.util.find_spec("matplotlib"):
        arguments.error("--plots needs matplotlib: pip install 'sluice[bench]'")
    results: dict[str, list[Any]] = {}
    with temporary_router() as state_dir:
        bench = Isolation(state_dir, options.rounds, options.even_cores)
        for name, part in PARTS.items():
            if options.parts and name not in options.parts:
                continue
            print(f"{name} …", file=sys.stderr, flush=True)
            results[name] = part(bench)
            if not options.json:
                _show(name, results[name])
    if options.json:
        print(
            json.dumps(
                {"cores": os.cpu_count()} | {name: [asdict(row) for row in rows] for name, rows in results.items()}
            )
        )
    if options.plots:
        _draw(results, options.plots)


if __name__ == "__main__":
    main()
