# SPDX-License-Identifier: Apache-2.0
"""Throughput over time: a picture that grows in a terminal; elsewhere plain lines, and the picture at the end."""

import math
import shutil
import sys
import time

from sluice.cli.terminal import YELLOW, is_live, styled
from sluice.policy.rate import format_rate

LOW, HIGH = 1e8, 1e12
"""Bits per second at the bottom and the top; the scale is logarithmic."""
ROWS = 12
BLOCKS = " ▁▂▃▄▅▆▇█"
LABEL_WIDTH = 9


class Plot:
    """A picture of so many seconds, one column a slice of them.

    add() takes rates in bits per second: by the counters (columns) and as perftest
    reports (dots).
    """

    def __init__(self, seconds: float) -> None:
        self._live = is_live(60, ROWS + 4)
        self._columns = max(20, shutil.get_terminal_size().columns - LABEL_WIDTH - 1)
        self._slice = seconds / self._columns
        self._rates: list[list[float]] = [[] for _ in range(self._columns)]
        self._reported = [0.0] * self._columns
        self._phases: list[tuple[int, str]] = []
        self._drawn = False
        self._start = 0.0
        self._next_line = 1.0

    def _column(self, elapsed: float) -> int:
        return min(self._columns - 1, int(elapsed / self._slice))

    def phase(self, label: str) -> None:
        """The first one starts the clock."""
        self._start = self._start or time.monotonic()
        self._phases.append((self._column(time.monotonic() - self._start), label))
        if not self._live:
            print(f"-- {label}", flush=True)

    def add(self, rate: float, reported: float) -> None:
        elapsed = time.monotonic() - self._start
        column = self._column(elapsed)
        self._rates[column].append(rate)
        self._reported[column] = reported
        line = f"{elapsed:5.1f} s   counters {format_rate(rate):>9}   perftest {format_rate(reported):>9}"
        if self._live:
            self._redraw(line)
        elif elapsed >= self._next_line:
            self._next_line += 1
            print(line, flush=True)

    def _redraw(self, line: str) -> None:
        lines = [*self._picture(), line]
        up = f"\033[{len(lines)}A" if self._drawn else ""
        self._drawn = True
        sys.stdout.write(up + "".join(f"\033[2K{line}\n" for line in lines))
        sys.stdout.flush()

    def _picture(self) -> list[str]:
        heights = self._heights()
        dots = [int(self._height(reported)) if reported else -1 for reported in self._reported]
        dot = styled(YELLOW, "•")
        lines = []
        for row in range(ROWS - 1, -1, -1):
            cells = (
                dot if at == row else BLOCKS[max(0, min(8, round((height - row) * 8)))]
                for height, at in zip(heights, dots, strict=True)
            )
            lines.append(f"{self._scale(row):>{LABEL_WIDTH}}│{''.join(cells).rstrip()}")
        return [*lines, " " * LABEL_WIDTH + "└" + self._axis()]

    def _heights(self) -> list[float]:
        """A slice that saw no sample, as on a wide terminal, looks like the one before it."""
        heights: list[float] = []
        last = self._column(time.monotonic() - self._start)
        for column, rates in enumerate(self._rates):
            if rates:
                heights.append(self._height(sum(rates) / len(rates)))
            else:
                heights.append(heights[-1] if heights and column < last else 0.0)
        return heights

    def _axis(self) -> str:
        """Where each phase began."""
        axis = ["─"] * self._columns
        for column, label in self._phases:
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
        if not self._live:
            print(*self._picture(), sep="\n")
        print("\ncolumns: the router's counters; dots: what perftest reports, a second at a time")
