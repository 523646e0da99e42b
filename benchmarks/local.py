# SPDX-License-Identifier: Apache-2.0
"""Two tenants of one node: Sluice beside its limits and its peers, all measured in this run.

    make bench                    everything, as a table (about three minutes)
    benchmarks/local.py --json    the same for machines

perftest runs unmodified, as the tenants a and b. What it is compared with:

memcpy  one thread's copy between two shared mappings (limits/memcpy.c)
relay   three processes and one futex: what a message through a third process costs (limits/relay.c)
UCX     ucx_perftest over UCX's own shared memory: the initiator copies by itself, nobody meters it

Sluice and what it is compared with take turns, and each figure is the median of all rounds.
"""

import argparse
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from figure import MIB, Figure, medians, show
from sluice.cli.temporary import temporary_router
from sluice.control.operator import ask

BUILD = Path(os.environ.get("SLUICE_BUILD", "build")) / "benchmarks"
UCX_TLS = "posix,cma,self,tcp"
"""Shared memory for the data; tcp is only how its two processes meet."""
UCX_SLUICE_TLS = "rc_verbs,ud_verbs,self"
"""RC for the data; UD is what its wire-up goes over."""


class Bench:
    """Runs programs as tenants of one router."""

    def __init__(self, state_dir: Path, rounds: int) -> None:
        self.state_dir = state_dir
        self.rounds = rounds
        self._sluice = [sys.executable, "-m", "sluice", "run", "--state-dir", str(state_dir)]

    def tenant(self, name: str, *argv: str, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self._sluice, "--tenant", name, "--", *argv],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def perftest(self, tool: str, *options: str) -> list[float]:
        """The columns of perftest's last line."""
        port = _free_port()
        argv = [tool, "-F", "-p", str(port), *options]
        server = self.tenant("b", *argv)
        _wait_for_listener(port, server)
        client = self.tenant("a", *argv, "127.0.0.1")
        text, _ = client.communicate(timeout=120)
        server.communicate(timeout=120)
        rows = [line.split() for line in text.splitlines() if re.match(r"\s*\d+\s+\d+\s+[\d.]+\s", line)]
        if client.returncode or not rows:
            raise RuntimeError(f"{' '.join(argv)}:\n{text}")
        return [float(column) for column in rows[-1]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_listener(port: int, server: "subprocess.Popen[str]") -> None:
    while server.poll() is None:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[1].endswith(f":{port:04X}"):
                return
        time.sleep(0.02)
    raise RuntimeError(f"a server ended early:\n{server.communicate()[0]}")


def _limit(name: str, *arguments: str) -> list[float]:
    output = subprocess.run([BUILD / name, *arguments], check=True, capture_output=True, text=True).stdout
    return [float(number) for number in re.findall(r"[\d.]*\d", re.sub(r"[a-z]\w*", "", output))]


Start = Callable[..., "subprocess.Popen[str]"]
"""Starts a program with its arguments; both outputs come on stdout."""


def _ucx(test: str, size: int, count: int, server_of: Start, client_of: Start) -> float:
    """GB/s of one of ucx_perftest's tests."""
    port = str(_free_port())
    argv = ["ucx_perftest", "-t", test, "-s", str(size), "-n", str(count), "-w", "1000", "-p", port]
    server = server_of(*argv)
    _wait_for_listener(int(port), server)
    client = client_of(*argv, "-f", "127.0.0.1")
    text, _ = client.communicate(timeout=120)
    server.communicate(timeout=60)
    if client.returncode:
        raise RuntimeError(f"{' '.join(argv)}:\n{text}")
    return float(text.splitlines()[-1].split()[5]) * MIB / 1e9


def _by_itself(*argv: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"UCX_TLS": UCX_TLS}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _ucx_put(size: int) -> float:
    return _ucx("ucp_put_bw", size, max(1000, 10 * 1000**3 // size), _by_itself, _by_itself)


def ucx(bench: Bench) -> list[Figure]:
    """UCX's tag matching over Sluice, beside the same over its own shared memory."""
    if not shutil.which("ucx_perftest"):
        return []
    settings = ("env", f"UCX_TLS={UCX_SLUICE_TLS}", "UCX_NET_DEVICES=sluice0:1")

    def over_sluice() -> float:
        return _ucx(
            "tag_bw",
            MIB,
            5000,
            lambda *argv: bench.tenant("b", *settings, *argv),
            lambda *argv: bench.tenant("a", *settings, *argv),
        )

    ours, peer = medians(bench.rounds, over_sluice, lambda: _ucx("tag_bw", MIB, 5000, _by_itself, _by_itself))
    return [Figure("UCX tag_bw 1 MiB", ours, "GB/s", "UCX shared memory", 0.8, True, peer)]


def bandwidth(bench: Bench) -> list[Figure]:
    figures = []
    for size, name in ((65536, "64 KiB"), (MIB, "1 MiB")):
        count = str(50 * 1000**3 // size)  # about a second
        measures: list[Callable[[], float]] = [
            lambda size=size, count=count: (  # type: ignore[misc]
                bench.perftest("ib_write_bw", "-s", str(size), "-n", count)[3] * MIB / 1e9
            ),
            lambda size=size: _limit("memcpy", str(size))[0],  # type: ignore[misc]
        ]
        if shutil.which("ucx_perftest"):
            measures.append(lambda size=size: _ucx_put(size))  # type: ignore[misc]
        ours, *peers = medians(bench.rounds, *measures)
        for peer, against, bound in zip(peers, ("memcpy", "UCX put_bw"), (0.85, 1.0), strict=False):
            figures.append(Figure(f"WRITE {name}", ours, "GB/s", against, bound, True, peer))
    return figures


def messages(bench: Bench) -> list[Figure]:
    def rate() -> float:
        return bench.perftest("ib_write_bw", "-s", "8", "-l", "64", "-n", "10000000")[4]

    def limited() -> float:
        ask(bench.state_dir, "policy-set", name="a", policy={"max": "10Tbps"})
        try:
            return rate()
        finally:
            ask(bench.state_dir, "policy-set", name="a", policy={"max": "none"})

    def one_by_one() -> float:
        return bench.perftest("ib_send_bw", "-s", "8", "-n", "1000000")[4]

    free, metered, single = medians(bench.rounds, rate, limited, one_by_one)
    return [
        Figure("WRITE 8 B, lists of 64", free, "M/s", "", 5, True),
        Figure("the same, without / with a ceiling", free, "M/s", "a ceiling never met", 0.97, True, metered),
        # Both ends spin, and the worker has no core of its own where there are two.
        Figure("SEND 8 B, posted one by one", single, "M/s", "", 0.5, True),
    ]


def latency(bench: Bench) -> list[Figure]:
    rounds: dict[str, list[tuple[float, float]]] = {"write": [], "send": []}
    relay = []
    for _ in range(bench.rounds):
        # It takes one of several speeds each time it starts, by where the kernel wakes it.
        relay += [_limit("relay")[0] for _ in range(5)]
        for operation, values in rounds.items():
            columns = bench.perftest(f"ib_{operation}_lat", "-s", "8", "-n", "20000")
            values.append((columns[4], columns[7]))
    limit = statistics.median(relay)
    figures = []
    for operation, values in rounds.items():
        typical, p99 = (statistics.median(column) for column in zip(*values, strict=True))
        name = f"{operation.upper()} latency 8 B"
        figures.append(Figure(name, typical, "us", "relay", 1.5, False, limit))
        figures.append(Figure(f"{name}, p99", p99, "us", "", 20, False))
    return figures


def control(bench: Bench) -> list[Figure]:
    pid = ask(bench.state_dir, "status")["pid"]
    child = bench.tenant("c", str(BUILD / "control"))
    most = before = _maps(pid)
    while child.poll() is None:
        most = max(most, _maps(pid))
        time.sleep(0.05)
    text, _ = child.communicate(timeout=60)
    fields = text.split()
    took = dict(zip(fields[::2], map(float, fields[1::2]), strict=True))
    figures = [
        Figure("ibv_reg_mr 4 KiB", took["reg_mr_4k"], "us", "", 100, False),
        Figure("ibv_reg_mr 1 GiB untouched", took["reg_mr_1g"] / 1000, "ms", "", 20, False),
        Figure("create QP to RTS", took["connect"], "us", "", 500, False),
    ]
    for name, what in (("live", "10,000 live"), ("loop", "again and again"), ("new", "just allocated")):
        figures.append(Figure(f"ibv_reg_mr 64 KiB, {what}", took[f"reg_{name}"], "us", "", 60, False))
        figures.append(Figure(f"ibv_dereg_mr 64 KiB, {what}", took[f"dereg_{name}"], "us", "", 60, False))
    # A session's own few, and a window for each GiB of addresses that it uses.
    figures.append(Figure("router's maps meanwhile, more than before", most - before, "", "", 16, False))
    return figures


def _maps(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("\n")


def idle(bench: Bench, seconds: float = 5.0) -> list[Figure]:
    child = bench.tenant("c", str(BUILD / "control"), "idle", "1000", stdin=subprocess.PIPE)
    assert child.stdout is not None
    line = child.stdout.readline()
    if line.strip() != "ready":
        raise RuntimeError(f"1,000 QPs: {line}{child.communicate()[0]}")
    pid = ask(bench.state_dir, "status")["pid"]
    before = _cpu_seconds(pid)
    time.sleep(seconds)
    used = (_cpu_seconds(pid) - before) / seconds
    child.communicate("", timeout=60)
    return [Figure("router with 1,000 idle QPs", 100 * used, "% of a core", "", 0.5, False)]


def _cpu_seconds(pid: int) -> float:
    """Of all threads, from the scheduler's nanoseconds: clock ticks are too coarse."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


PARTS: dict[str, Callable[[Bench], list[Figure]]] = {
    "bandwidth": bandwidth,
    "messages": messages,
    "latency": latency,
    "control": control,
    "idle": idle,
    "ucx": ucx,
}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=f"Parts: {', '.join(PARTS)}.",
    )
    arguments.add_argument("--json", action="store_true", help="for machines")
    arguments.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: %(default)s)")
    arguments.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    options = arguments.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        arguments.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    figures: list[Figure] = []
    if not shutil.which("ucx_perftest"):
        print("left out: UCX, as ucx_perftest is not installed (apt-get install ucx-utils)", file=sys.stderr)
    with temporary_router() as state_dir:
        bench = Bench(state_dir, options.rounds)
        for number, (name, part) in enumerate(PARTS.items(), 1):
            if options.parts and name not in options.parts:
                continue
            print(f"[{number}/{len(PARTS)}] {name} …", file=sys.stderr, flush=True)
            figures += part(bench)
    show(figures, options.json)


if __name__ == "__main__":
    main()
