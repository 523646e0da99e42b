# SPDX-License-Identifier: Apache-2.0
"""sluice top: who uses the device now, who waits, and for what."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sluice.cli.status import group_rows, of_devices, several, table, tenant_rows
from sluice.cli.terminal import is_live
from sluice.control.operator import ask
from sluice.policy.rate import format_rate

COLUMNS = "TENANT DEVICE GROUP TX-RATE RX-RATE OPS/S ENGINE GUARANTEE CEILING WEIGHT THROTTLED REFUSED"


def add_to(commands: Any, state_dir: Path) -> None:
    command = commands.add_parser("top", help="who uses the device now; live", description="Ends with q or Ctrl-C.")
    command.add_argument("--state-dir", type=Path, default=state_dir, help="default: %(default)s")
    command.add_argument("--interval", type=seconds, default=1.0, metavar="SECONDS", help="default: %(default)s")
    command.add_argument("--count", type=int, metavar="N", help="how many times (default: until stopped)")
    command.add_argument("--json", action="store_true", help="a line for each time, for machines")
    command.set_defaults(run=run)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not an interval: write seconds from 0.05 to 3600")
    return value


def _machine(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Rates in bits per second by direction, shares from 0 to 1."""
    ns = max(1, after["time_ns"] - before["time_ns"])
    earlier = dict(of_devices(before))
    tenants: dict[str, dict[str, Any]] = {}
    for (name, device), entry in of_devices(after):
        new, old = entry["counters"], earlier.get((name, device), entry)["counters"]
        waited = zip(after["limits"], new["throttled_ns"], old["throttled_ns"], strict=True)
        machine = {
            "group": entry["group"],
            "rate_bps": [8e9 * (new[key] - old[key]) / ns for key in ("tx_bytes", "rx_bytes")],
            "engine": (new["engine_ns"] - old["engine_ns"]) / ns,
            "min_bps": new["min_bps"],
            "max_bps": new["max_bps"],
            "throttled": {limit: (now - then) / ns for limit, now, then in waited if now > then},
            "refused": {limit: count for limit, count in zip(after["limits"], new["refused"], strict=True) if count},
        }
        # The fields of a tenant's first device, and under devices those of each.
        tenants.setdefault(name, {**machine, "devices": {}})["devices"][device] = machine
    return {"time_ns": after["time_ns"], "seconds": ns / 1e9, "tenants": tenants}


def _screen(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The busiest tenants first."""
    ns = max(1, after["time_ns"] - before["time_ns"])
    busy = (after["worker"]["busy_ns"] - before["worker"]["busy_ns"]) / ns
    head, *rows = tenant_rows(before, after)
    earlier = dict(of_devices(before))
    moved = []
    for key, entry in of_devices(after):
        new, old = entry["counters"], earlier.get(key, entry)["counters"]
        moved.append(sum(new[counter] - old[counter] for counter in ("tx_bytes", "rx_bytes")))
    rows = [row for _, row in sorted(zip(moved, rows, strict=True), key=lambda both: (-both[0], both[1]))]
    kept = [head.index(column) for column in COLUMNS.split() if column in head]
    capacities = ", ".join(
        f"{name + ' ' if several(after) else ''}{format_rate(device['capacity_bps'])}"
        f"{'' if device['wire'] else ' (measured)'}"
        for name, device in after["devices"].items()
    )
    lines = [
        f"engine {100 * busy:.0f}% busy   capacity {capacities}   {len(after['tenants'])} tenants",
        "",
        *table([[row[index] for index in kept] for row in (head, *rows)], left=2 + several(after)).splitlines(),
    ]
    groups = group_rows(before, after)
    if groups:
        lines += ["", *table(groups).splitlines()]
    return lines


@contextmanager
def _terminal(live: bool) -> Iterator[None]:
    """The other screen, without a cursor; keys come one by one."""
    if not live:
        yield
        return
    import termios

    attributes = termios.tcgetattr(sys.stdin)
    quiet = [*attributes[:3], attributes[3] & ~(termios.ICANON | termios.ECHO), *attributes[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    sys.stdout.write("\033[?1049h\033[?25l")
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, attributes)
        sys.stdout.write("\033[?25h\033[?1049l")
        sys.stdout.flush()


def _asked_to_stop(live: bool, interval: float) -> bool:
    if not live:
        time.sleep(interval)
        return False
    import select

    readable, _, _ = select.select([sys.stdin], [], [], interval)
    return bool(readable) and sys.stdin.read(1) in ("q", "Q", "")


def run(options: argparse.Namespace) -> int:
    state_dir = options.state_dir.absolute()
    live = not options.json and is_live() and sys.stdin.isatty()
    before = ask(state_dir, "status")
    shown = 0
    with _terminal(live):
        while options.count is None or shown < options.count:
            if _asked_to_stop(live, options.interval):
                break
            after = ask(state_dir, "status")
            if options.json:
                print(json.dumps(_machine(before, after)), flush=True)
            elif live:
                size = shutil.get_terminal_size()
                lines = [line[: size.columns] for line in _screen(before, after)[: size.lines - 1]]
                sys.stdout.write("\033[H" + "".join(f"{line}\033[K\n" for line in lines) + "\033[J")
                sys.stdout.flush()
            else:
                print(*_screen(before, after), "", sep="\n", flush=True)
            before = after
            shown += 1
    return 0
