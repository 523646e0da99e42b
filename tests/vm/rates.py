# SPDX-License-Identifier: Apache-2.0
"""How fast tenants send, and how near to a rate, while they do: python rates.py STATE_DIR SECONDS TENANT[=RATE]…

Says "watching", and begins a second after all of them have sent something since. Then a line for each: what it sent,
in Mbit/s, and with a RATE how far off its windows of 100 ms and of 1 s were, on average and at worst.
"""

import statistics
import sys
import time
from bisect import bisect_left
from pathlib import Path

from sluice.engine.counters import Counters
from sluice.policy.rate import parse_rate

WINDOWS_MS = (100, 1000)
EVERY_SECONDS = 0.005
BEGIN_SECONDS = 1.0


def samples(counters: Counters, numbers: list[int], seconds: float) -> tuple[list[int], list[list[int]]]:
    """When (ns), and how many bytes each had sent by then."""
    times: list[int] = []
    values: list[list[int]] = [[] for _ in numbers]
    row = counters.tenants["tx_bytes"]
    end = time.monotonic_ns() + int(seconds * 1e9)
    while (now := time.monotonic_ns()) < end:
        times.append(now)
        for number, sent in zip(numbers, values, strict=True):
            sent.append(int(row[number]))
        time.sleep(EVERY_SECONDS)
    return times, values


def errors(times: list[int], sent: list[int], bps: float, ms: int) -> list[float]:
    """|measured / asked - 1| of each window that begins with a reading."""
    off = []
    for index, start in enumerate(times):
        until = bisect_left(times, start + ms * 10**6)
        if until == len(times):
            break
        span = times[until] - start
        # A reading that came late makes the window longer; far too late, another one.
        if span <= ms * 1.2e6:
            off.append(abs(8e9 * (sent[until] - sent[index]) / span / bps - 1))
    return off


def wait_for(counters: Counters, numbers: list[int]) -> None:
    before = {number: int(counters.tenants["tx_bytes"][number]) for number in numbers}
    print("watching", flush=True)
    while any(int(counters.tenants["tx_bytes"][number]) == before[number] for number in numbers):
        time.sleep(EVERY_SECONDS)
    time.sleep(BEGIN_SECONDS)


def main(state_dir: Path, seconds: float, wanted: list[str]) -> None:
    counters = Counters(state_dir / "counters")
    asked = {int(text.partition("=")[0]): text.partition("=")[2] for text in wanted}
    wait_for(counters, list(asked))
    times, values = samples(counters, list(asked), seconds)
    for (number, rate), sent in zip(asked.items(), values, strict=True):
        mbps = 8e3 * (sent[-1] - sent[0]) / (times[-1] - times[0])
        line = f"tenant {number}: {mbps:.1f} Mbit/s"
        for ms in WINDOWS_MS if rate else ():
            off = errors(times, sent, parse_rate(rate), ms)
            if off:
                mean, worst = 100 * statistics.mean(off), 100 * max(off)
                line += f"; windows of {ms} ms: off by {mean:.2f} %, at worst {worst:.2f} %"
        print(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
