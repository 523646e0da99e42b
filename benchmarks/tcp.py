#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two nodes and the tcp transport: Sluice beside iperf3 and UCX over the same veth pair, all measured in this run.

    make bench-tcp                everything, as a table (about three minutes; as root)
    benchmarks/tcp.py --json      the same for machines

perftest runs unmodified, as the tenants a (node alpha) and b (beta). What it is compared with:

iperf3  one TCP stream
UCX     ucx_perftest over UCX's own tcp

Sluice and what it is compared with take turns, and each figure is the median of all rounds.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from figure import MIB, Figure, medians, show
from sluice.cli.nodes import LocalNode, NoNodes, two_nodes
from sluice.control.operator import ask

PORT = 18600
BUILD = Path(os.environ.get("SLUICE_BUILD", "build")) / "benchmarks"
IDLE = 1000
LISTS = ("-s", "8", "-l", "64", "-n", "2000000")
SMALL = ("-s", "8", "-n", "5000")


class Bench:
    """Runs a server on beta, then its client on alpha."""

    def __init__(self, alpha: LocalNode, beta: LocalNode, rounds: int) -> None:
        self.alpha = alpha
        self.beta = beta
        self.rounds = rounds
        self._port = PORT

    def pair(self, server_of: Callable[[str], list[str]], client_of: Callable[[str], list[str]]) -> str:
        """Both get the port; returns what the client prints."""
        server, client = self.start(server_of, client_of)
        text, _ = client.communicate(timeout=120)
        server.communicate(timeout=120)
        if client.returncode:
            raise RuntimeError(f"{' '.join(client_of(str(self._port)))}:\n{text}")
        return text

    def start(
        self, server_of: Callable[[str], list[str]], client_of: Callable[[str], list[str]]
    ) -> "tuple[subprocess.Popen[str], subprocess.Popen[str]]":
        self._port += 1
        server = _start(server_of(str(self._port)))
        while not self.beta.listens(self._port):
            if server.poll() is not None:
                raise RuntimeError(f"a server ended early:\n{server.communicate()[0]}")
            time.sleep(0.02)
        return server, _start(client_of(str(self._port)))

    def perftest(self, tool: str, *options: str) -> list[float]:
        """The columns of perftest's last line."""
        text = self.pair(
            lambda port: self.beta.as_tenant("b", tool, "-F", "-p", port, *options),
            lambda port: self.alpha.as_tenant("a", tool, "-F", "-p", port, *options, self.beta.address),
        )
        rows = [line.split() for line in text.splitlines() if re.match(r"\s*\d+\s+\d+\s+[\d.]+\s", line)]
        if not rows:
            raise RuntimeError(text)
        return [float(column) for column in rows[-1]]

    def bandwidth(self, tool: str, size: int, *options: str) -> float:
        """GB/s."""
        count = str(max(400, 3 * 10**9 // size))
        return self.perftest(tool, "-s", str(size), "-n", count, *options)[3] * MIB / 1e9

    def ucx(self, test: str, size: int, count: int) -> list[str]:
        """The columns of ucx_perftest's last line, over its own tcp."""
        argv = ["env", "UCX_TLS=tcp,self", "UCX_NET_DEVICES=eth0", "ucx_perftest", "-t", test]
        argv += ["-s", str(size), "-n", str(count), "-w", "200"]
        text = self.pair(
            lambda port: self.beta.inside(*argv, "-p", port),
            lambda port: self.alpha.inside(*argv, "-p", port, "-f", self.beta.address),
        )
        return text.splitlines()[-1].split()

    def ucx_bandwidth(self, test: str, size: int) -> float:
        """GB/s."""
        return float(self.ucx(test, size, max(400, 3 * 10**9 // size))[5]) * MIB / 1e9

    def iperf3(self) -> float:
        """GB/s of one stream."""
        text = self.pair(
            lambda port: self.beta.inside("iperf3", "-s", "-1", "-p", port),
            lambda port: self.alpha.inside("iperf3", "-J", "-t", "2", "-p", port, "-c", self.beta.address),
        )
        return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 8e9


def _start(argv: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def bandwidth(bench: Bench) -> list[Figure]:
    peers: list[tuple[str, float, Callable[[], float]]] = []
    if shutil.which("iperf3"):
        peers.append(("iperf3", 0.9, bench.iperf3))
    if shutil.which("ucx_perftest"):
        peers.append(("UCX put_bw", 1.0, lambda: bench.ucx_bandwidth("ucp_put_bw", MIB)))
        peers.append(("UCX tag_bw", 0.8, lambda: bench.ucx_bandwidth("tag_bw", MIB)))
    write, read, *measured = medians(
        bench.rounds,
        # READ waits for events where it can: four processes share the cores. perftest has none for WRITE.
        lambda: bench.bandwidth("ib_write_bw", MIB),
        lambda: bench.bandwidth("ib_read_bw", MIB, "-e"),
        *(measure for _, _, measure in peers),
    )
    figures = [
        Figure("WRITE 1 MiB", write, "GB/s", against, bound, True, peer)
        for (against, bound, _), peer in zip(peers, measured, strict=True)
    ]
    figures.append(Figure("READ 1 MiB", read, "GB/s", "WRITE", 1.0, True, write))
    if shutil.which("ucx_perftest"):
        ours, peer = medians(
            bench.rounds,
            lambda: bench.bandwidth("ib_write_bw", 65536),
            lambda: bench.ucx_bandwidth("ucp_put_bw", 65536),
        )
        figures.append(Figure("WRITE 64 KiB", ours, "GB/s", "UCX put_bw", 1.0, True, peer))
    return figures


def messages(bench: Bench) -> list[Figure]:
    (rate,) = medians(bench.rounds, lambda: bench.perftest("ib_write_bw", *LISTS)[4])
    return [Figure("WRITE 8 B, lists of 64", rate, "M/s", "", 1, True)]


def latency(bench: Bench) -> list[Figure]:
    def ours() -> float:
        return bench.perftest("ib_write_lat", *SMALL)[4]

    if not shutil.which("ucx_perftest"):
        (value,) = medians(bench.rounds, ours)
        return [Figure("WRITE latency 8 B", value, "us", "", 100, False)]
    value, peer = medians(bench.rounds, ours, lambda: float(bench.ucx("ucp_put_lat", 8, 5000)[1]))
    return [Figure("WRITE latency 8 B", value, "us", "UCX put_lat", 1.3, False, peer)]


@dataclass
class Memory:
    """In KiB: what both routers have, and the kernel for sockets."""

    routers: float
    kernel: float

    def more_than(self, other: "Memory") -> "Memory":
        return Memory(self.routers - other.routers, self.kernel - other.kernel)


def _fields(path: str, separator: str) -> dict[str, str]:
    rows = (line.partition(separator) for line in Path(path).read_text().splitlines())
    return {name: value.strip() for name, _, value in rows}


def memory(bench: Bench) -> Memory:
    """Slabs are where sockets lie, with inodes, files and epoll entries; TCP's pages are what their buffers hold."""
    routers = 0
    for node in (bench.alpha, bench.beta):
        pid = ask(node.state_dir, "status")["pid"]
        routers += int(_fields(f"/proc/{pid}/status", ":")["VmRSS"].split()[0])
    slab = int(_fields("/proc/meminfo", ":")["Slab"].split()[0])
    tcp = subprocess.run(bench.alpha.inside("cat", "/proc/net/sockstat"), check=True, capture_output=True, text=True)
    words = re.findall(r"TCP: .* mem (\d+)", tcp.stdout)
    return Memory(routers, slab + int(words[0]) * os.sysconf("SC_PAGESIZE") / 1024)


@contextmanager
def idle_connections(bench: Bench, count: int) -> Iterator[None]:
    """Of tenants that do nothing else."""
    argv = [str(BUILD / "idle"), str(count)]
    ends = bench.start(
        lambda port: bench.beta.as_tenant("idle-b", *argv, port),
        lambda port: bench.alpha.as_tenant("idle-a", *argv, port, bench.beta.address),
    )
    for end in ends:
        assert end.stdout is not None
        line = end.stdout.readline()
        if line.strip() != "ready":
            raise RuntimeError(f"{count} connections: {line}{end.communicate()[0]}")
    try:
        yield
    finally:
        for end in ends:
            end.communicate("", timeout=60)


def medians_by_turns(bench: Bench, measures: list[Callable[[], float]]) -> tuple[list[float], list[float]]:
    """Of each measure, with others idle and alone: each round both, as a machine has slower minutes."""
    crowded: list[list[float]] = []
    alone: list[list[float]] = []
    for _ in range(bench.rounds):
        with idle_connections(bench, IDLE):
            crowded.append([measure() for measure in measures])
        alone.append([measure() for measure in measures])
    return _medians(crowded), _medians(alone)


def _medians(rounds: list[list[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def crowd(bench: Bench) -> list[Figure]:
    measures: list[tuple[str, str, bool, Callable[[], float]]] = [
        ("WRITE 1 MiB", "GB/s", True, lambda: bench.bandwidth("ib_write_bw", MIB)),
        ("WRITE 8 B, lists of 64", "M/s", True, lambda: bench.perftest("ib_write_bw", *LISTS)[4]),
        ("WRITE latency 8 B", "us", False, lambda: bench.perftest("ib_write_lat", *SMALL)[4]),
    ]
    # What is allocated once, such as the tenants' sessions, is not a connection's.
    with idle_connections(bench, 1):
        before = memory(bench)
    with idle_connections(bench, IDLE):
        each = memory(bench).more_than(before)
    crowded, alone = medians_by_turns(bench, [measure for *_, measure in measures])
    figures = [
        # Alone and in the crowd are the same but for noise.
        Figure(f"{what}, {IDLE:,} others idle", ours, unit, "alone", 0.95 if higher else 1.05, higher, peer)
        for (what, unit, higher, _), ours, peer in zip(measures, crowded, alone, strict=True)
    ]
    node = 2 * IDLE
    return [
        *figures,
        Figure("idle connection, each node: router", each.routers / node, "KiB", "", 32, False),
        Figure("idle connection, each node: with sockets", (each.routers + each.kernel) / node, "KiB", "", 32, False),
    ]


def zerocopy(bench: Bench) -> list[Figure]:
    """Whether the transport should use MSG_ZEROCOPY: a plain stream in its pieces, with and without."""
    program = str(BUILD / "zerocopy")

    def stream(how: str) -> float:
        text = bench.pair(
            lambda port: bench.beta.inside(program, port),
            lambda port: bench.alpha.inside(program, port, bench.beta.address, how),
        )
        shares.append(float(text.split()[1]))
        return float(text.split()[0])

    shares: list[float] = []
    with_it, without = medians(bench.rounds, lambda: stream("zerocopy"), lambda: stream("copy"))
    return [
        # The kernel's own copy is what there is to win: from here on it would.
        Figure("a stream with MSG_ZEROCOPY", with_it, "GB/s", "without", 0, True, without),
        Figure("of its pieces copied after all", max(shares), "%", "", 0, True),
    ]


PARTS: dict[str, Callable[[Bench], list[Figure]]] = {
    "bandwidth": bandwidth,
    "messages": messages,
    "latency": latency,
    "crowd": crowd,
    "zerocopy": zerocopy,
}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog=f"Parts: {', '.join(PARTS)}."
    )
    arguments.add_argument("--json", action="store_true", help="for machines")
    arguments.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: %(default)s)")
    arguments.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    options = arguments.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        arguments.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for program, package in (("iperf3", "iperf3"), ("ucx_perftest", "ucx-utils")):
        if not shutil.which(program):
            print(f"left out: {program}, which is not installed (apt-get install {package})", file=sys.stderr)
    figures: list[Figure] = []
    try:
        with two_nodes() as (alpha, beta):
            bench = Bench(alpha, beta, options.rounds)
            for number, (name, part) in enumerate(PARTS.items(), 1):
                if options.parts and name not in options.parts:
                    continue
                print(f"[{number}/{len(PARTS)}] {name} …", file=sys.stderr, flush=True)
                figures += part(bench)
    except NoNodes as error:
        sys.exit(str(error))
    show(figures, options.json)


if __name__ == "__main__":
    main()
