# SPDX-License-Identifier: Apache-2.0
"""sluice demo: two tenants on this machine, perftest between them, and rates that change while it runs."""

import argparse
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sluice.cli.nodes import LocalNode, NoNodes, one_node, two_nodes
from sluice.cli.plot import Plot
from sluice.control.operator import ask
from sluice.policy.rate import format_rate, parse_rate

PHASES = (("no ceiling", None), ("ceiling 2Gbps", "2Gbps"), ("changed live to 500Mbps", "500Mbps"))
PHASE_SECONDS = 6.0
LEAST_SECONDS, MOST_SECONDS = 2.0, 3600.0
SAMPLE_SECONDS = 0.1
SETTLE_SECONDS = 1.0
"""Left out at the start of each phase: perftest's own lines cover whole seconds."""
PORT = 18519
MESSAGE = 65536


def add_to(commands: Any, state_dir: Path) -> None:
    command = commands.add_parser(
        "demo",
        help="see it work: two tenants, real perftest, rates changed live",
        description="Starts a router and two tenants on this machine, runs ib_write_bw between them without a "
        "ceiling, with one, and with one changed while it runs. Takes about 20 seconds and leaves nothing.",
    )
    command.add_argument(
        "--seconds",
        type=_seconds,
        default=PHASE_SECONDS,
        help=f"how long each of the {len(PHASES)} phases lasts (default: %(default)g; at least {LEAST_SECONDS:g})",
    )
    command.add_argument("--port", type=int, default=PORT, help="TCP port for perftest (default: %(default)s)")
    command.add_argument(
        "--nodes",
        type=int,
        choices=(1, 2),
        default=1,
        help="2: the tenants are on two nodes, which are network namespaces of this machine (needs root)",
    )
    command.set_defaults(run=run)


def _seconds(text: str) -> float:
    value = float(text)
    if not LEAST_SECONDS <= value <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text}: from {LEAST_SECONDS:g} to {MOST_SECONDS:g}")
    return value


ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends it early, a terminal that is closed too; it leaves nothing then either."""


@dataclass
class Phase:
    """What was asked, what the counters say, what perftest says; bits per second."""

    label: str
    asked: str | None
    samples: list[float] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0
    perftest: list[float] = field(default_factory=list)

    @property
    def measured(self) -> float:
        return 8 * self.bytes / self.seconds if self.seconds else 0.0

    @property
    def reported(self) -> float:
        return sum(self.perftest) / len(self.perftest) if self.perftest else 0.0


class Perftest:
    """ib_write_bw without end. Its lines are read from a terminal: into a pipe it would print them late."""

    def __init__(self, port: int) -> None:
        self.reported = 0.0
        self.lines = 0
        self._common = ["ib_write_bw", "-p", str(port), "-s", str(MESSAGE), "--run_infinitely", "-D", "1"]
        # Posted ahead, as it computes for 0.2 s before it prints a line.
        self._common += ["-t", "512", "-Q", "16"]
        self._children: list[subprocess.Popen[bytes]] = []
        self.output = ""

    def _start(self, node: LocalNode, tenant: str, *more: str, stdout: int) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(
            node.as_tenant(tenant, *self._common, "--report_gbits", *more),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
        )
        self._children.append(child)
        return child

    def start(self, sender: LocalNode, receiver: LocalNode, port: int) -> None:
        server = self._start(receiver, "receiver", stdout=subprocess.DEVNULL)
        while server.poll() is None and not receiver.listens(port):
            time.sleep(0.02)
        master, slave = pty.openpty()
        self._start(sender, "sender", receiver.address, stdout=slave)
        os.close(slave)
        threading.Thread(target=self._read, args=(master,), daemon=True).start()

    def _read(self, master: int) -> None:
        text = ""
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:  # the last process has closed its end
                return
            text += data.decode(errors="replace")
            *whole, text = text.split("\n")
            for line in whole:
                self.output += line + "\n"
                columns = line.split()
                if len(columns) == 5 and columns[0] == str(MESSAGE) and re.fullmatch(r"[\d.]+", columns[3]):
                    self.reported = float(columns[3]) * 1e9
                    self.lines += 1

    def failed(self) -> bool:
        return any(child.poll() is not None for child in self._children)

    def stop(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self._children:
            child.wait()


def _sent(state_dir: Path) -> tuple[int, int]:
    """Nanoseconds, and bytes that the sender has sent until then."""
    status = ask(state_dir, "status")
    tenant = status["tenants"].get("sender")
    return status["time_ns"], tenant["counters"]["tx_bytes"] if tenant else 0


def _run_phase(state_dir: Path, perftest: Perftest, phase: Phase, plot: Plot, seconds: float) -> None:
    start = time.monotonic()
    first = last = _sent(state_dir)
    lines = perftest.lines
    while time.monotonic() - start < seconds:
        time.sleep(SAMPLE_SECONDS)
        _ended.check()
        if perftest.failed():
            raise RuntimeError(f"perftest ended early:\n{perftest.output}")
        now = _sent(state_dir)
        rate = 8e9 * (now[1] - last[1]) / (now[0] - last[0])
        settled = time.monotonic() - start > SETTLE_SECONDS
        if not settled:
            first = now
        if perftest.lines > lines:
            lines = perftest.lines
            # A line speaks of the second before it: the first of a phase is half of the last one.
            if time.monotonic() - start > 2 * SETTLE_SECONDS:
                phase.perftest.append(perftest.reported)
        last = now
        plot.add(rate, perftest.reported)
    phase.bytes, phase.seconds = last[1] - first[1], (last[0] - first[0]) / 1e9


def _summary(phases: list[Phase]) -> None:
    print(f"\n{'phase':<26}{'asked':>12}{'measured':>12}{'perftest':>12}{'error':>9}")
    for phase in phases:
        error = "-" if phase.asked is None else f"{100 * (phase.measured / parse_rate(phase.asked) - 1):+.2f} %"
        reported = format_rate(phase.reported) if phase.perftest else "-"
        print(f"{phase.label:<26}{phase.asked or 'none':>12}{format_rate(phase.measured):>12}{reported:>12}{error:>9}")


def run(options: argparse.Namespace) -> int:
    if shutil.which("ib_write_bw") is None:
        print("sluice: the demo needs perftest: apt-get install perftest", file=sys.stderr)
        return 1
    phases = [Phase(label, asked) for label, asked in PHASES]
    for number in ENDS:
        # Who started it may have it go on without a terminal (nohup).
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _ended)
    try:
        with two_nodes() if options.nodes == 2 else one_node() as (sender, receiver):
            failed = _show(sender, receiver, phases, options)
    except NoNodes as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 1
    if failed:
        return 1
    _summary(phases)
    if (os.cpu_count() or 1) <= 2:
        print(
            "\nThe dips are perftest's: it computes for 0.2 s before it prints a line, and this machine has two cores."
        )
    return 0


class _Ended:
    """number: the signal that asked for the end, 0 for none yet.

    It is raised where it comes, once: who asks again must not stop what takes the nodes away. And by check(), as what
    is raised while an object is destroyed is lost.
    """

    number = 0

    def __call__(self, number: int, _frame: object) -> None:
        if not self.number:
            self.number = number
            raise SystemExit(128 + number)

    def check(self) -> None:
        if self.number:
            raise SystemExit(128 + self.number)


_ended = _Ended()


def _show(sender: LocalNode, receiver: LocalNode, phases: list[Phase], options: argparse.Namespace) -> bool:
    """Runs all phases. Returns whether perftest failed."""
    if sender is receiver:
        print("Two tenants, 'sender' and 'receiver', each with an RDMA device sluice0 of its own;")
    else:
        print("Two tenants, 'sender' on node alpha and 'receiver' on node beta: two network namespaces with a veth")
        print("pair between them, a router in each, no RDMA NIC;")
    print(f"Debian's ib_write_bw runs between them, unmodified, for {len(phases) * options.seconds:g} seconds.\n")
    state_dir = sender.state_dir
    perftest = Perftest(options.port)
    plot = Plot(len(phases) * options.seconds)
    try:
        perftest.start(sender, receiver, options.port)
        while _sent(state_dir)[1] == 0:
            if perftest.failed():
                print(f"sluice: perftest did not run:\n{perftest.output}", file=sys.stderr)
                return True
            _ended.check()
            time.sleep(0.05)
        for phase in phases:
            if phase.asked is not None:
                ask(state_dir, "policy-set", name="sender", policy={"max": phase.asked})
            plot.phase(phase.label)
            _run_phase(state_dir, perftest, phase, plot, options.seconds)
    finally:
        plot.end()
        perftest.stop()
    return False
