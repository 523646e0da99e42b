# SPDX-License-Identifier: Apache-2.0
"""Throughput over time in a terminal: a picture that grows; plain lines where there is no terminal."""

import math
import shutil
import sys
import time

from sluice.policy.rate import format_rate

LOW, HIGH = 1e8, 1e12
"""Bits per second at the bottom and the top; the scale is logarithmic."""
ROWS = 12
BLOCKS = " ▁▂▃▄▅▆▇█"
LABEL_WIDTH = 9


class Plot:
    """add() takes rates in bits per second: by the counters, and as perftest reports."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._columns = max(20, shutil.get_terminal_size().columns - LABEL_WIDTH - 1)
        self._rates: list[float] = []
        self._phases: list[tuple[int, str]] = []
        self._drawn = False
        self._start = time.monotonic()
        self._next_line = 1.0

    def phase(self, label: str) -> None:
        self._phases.append((len(self._rates), label))
        if not self._live:
            print(f"-- {label}", flush=True)

    def add(self, rate: float, reported: float) -> None:
        elapsed = time.monotonic() - self._start
        self._rates.append(rate)
        if self._live:
            self._draw(elapsed, rate, reported)
        elif elapsed >= self._next_line:
            self._next_line += 1
            print(
                f"{elapsed:5.1f} s   counters {format_rate(rate):>9}   perftest {format_rate(reported):>9}", flush=True
            )

    def _draw(self, elapsed: float, rate: float, reported: float) -> None:
        shown = self._rates[-self._columns :]
        heights = [self._height(value) for value in shown]
        lines = []
        for row in range(ROWS - 1, -1, -1):
            cells = "".join(BLOCKS[max(0, min(8, round((height - row) * 8)))] for height in heights)
            lines.append(f"{self._scale(row):>{LABEL_WIDTH}}│{cells}")
        lines.append(" " * LABEL_WIDTH + "└" + self._axis(len(shown)))
        lines.append(f"{elapsed:5.1f} s   counters {format_rate(rate):>9}   perftest {format_rate(reported):>9}")
        up = f"\033[{len(lines)}A" if self._drawn else ""
        self._drawn = True
        sys.stdout.write(up + "".join(f"\033[2K{line}\n" for line in lines))
        sys.stdout.flush()

    def _axis(self, shown: int) -> str:
        """Where each phase began."""
        axis = ["─"] * self._columns
        for start, label in self._phases:
            column = start - (len(self._rates) - shown)
            if column >= 0:
                text = f"╵{label} "[: self._columns - column]
                axis[column : column + len(text)] = text
        return "".join(axis)

    @staticmethod
    def _height(rate: float) -> float:
        """In rows."""
        if rate <= LOW:
            return 0.0
        return ROWS * math.log(rate / LOW) / math.log(HIGH / LOW)

    @staticmethod
    def _scale(row: int) -> str:
        """A label where a power of ten begins."""
        decades = math.log10(HIGH / LOW)
        here, above = row * decades / ROWS, (row + 1) * decades / ROWS
        power = math.ceil(here - 1e-9)
        return format_rate(LOW * 10**power) if power < above - 1e-9 else ""

    def end(self) -> None:
        if self._live:
            print()
