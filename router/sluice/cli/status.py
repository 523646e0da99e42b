# SPDX-License-Identifier: Apache-2.0
"""sluice status: what each tenant has and does."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from sluice.control.admin import ask
from sluice.policy.rate import format_count, format_rate, format_size

INTERVAL = 0.2
"""Seconds between the two readings that make a rate."""
FEW_QPS = 32

STATES = ("RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR")


def add_to(commands: Any, state_dir: Path) -> None:
    command = commands.add_parser("status", help="what each tenant has and does")
    command.add_argument("--state-dir", type=Path, default=state_dir, help="default: %(default)s")
    command.add_argument("--json", action="store_true", help="counters as they are, for machines")
    command.add_argument("--qps", action="store_true", help=f"each queue pair, also where there are over {FEW_QPS}")
    command.set_defaults(run=run)


def _table(rows: list[list[str]], left: int = 1) -> str:
    """Columns as wide as needed; the first `left` ones are text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _operations(counters: dict[str, int]) -> int:
    return counters["tx_messages"] + counters["reads"] + counters["atomics"]


def _tenant_rows(before: dict[str, Any], after: dict[str, Any]) -> list[list[str]]:
    seconds = (after["time_ns"] - before["time_ns"]) / 1e9
    head = "TENANT PROC QPS MRS MEMORY TX-RATE RX-RATE OPS/S TX-BYTES RX-BYTES MESSAGES OPS CEILING THROTTLED ERRORS"
    rows = [head.split()]
    for name, tenant in sorted(after["tenants"].items()):
        new = tenant["counters"]
        old = before["tenants"].get(name, tenant)["counters"]
        rate = {key: (new[key] - old[key]) / seconds for key in ("tx_bytes", "rx_bytes", "throttled_ns")}
        rows.append(
            [
                name,
                str(new["sessions"]),
                str(new["qps"]),
                str(new["mrs"]),
                format_size(new["mr_bytes"]),
                format_rate(8 * rate["tx_bytes"]),
                format_rate(8 * rate["rx_bytes"]),
                format_count((_operations(new) - _operations(old)) / seconds),
                format_size(new["tx_bytes"]),
                format_size(new["rx_bytes"]),
                format_count(new["tx_messages"]),
                format_count(_operations(new)),
                format_rate(new["max_bps"]) if new["max_bps"] else "none",
                f"{min(100.0, rate['throttled_ns'] / 1e7):.0f}%",
                str(new["errors"]),
            ]
        )
    return rows


def _qp_rows(status: dict[str, Any]) -> list[list[str]]:
    rows = [["TENANT", "QP", "STATE", "PEER", "TX-BYTES", "RX-BYTES", "MESSAGES", "READS", "ATOMICS", "ERRORS"]]
    for name, tenant in sorted(status["tenants"].items()):
        for qp in tenant["qps"]:
            rows.append(
                [
                    name,
                    f"{qp['qp_num']:#08x}",
                    STATES[qp["state"]],
                    f"{qp['peer_qp_num']:#08x}" if qp["peer_qp_num"] else "-",
                    format_size(qp["tx_bytes"]),
                    format_size(qp["rx_bytes"]),
                    format_count(qp["tx_messages"]),
                    format_count(qp["reads"]),
                    format_count(qp["atomics"]),
                    str(qp["errors"]),
                ]
            )
    return rows


def run(options: argparse.Namespace) -> int:
    state_dir = options.state_dir.absolute()
    before = ask(state_dir, "status")
    if options.json:
        print(json.dumps(before, indent=2))
        return 0
    if not before["tenants"]:
        print("the router runs; no tenants yet (sluice run --tenant NAME -- COMMAND)")
        return 0
    time.sleep(INTERVAL)
    after = ask(state_dir, "status")
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    head, *lines = _table(_tenant_rows(before, after)).splitlines()
    print(f"{bold}{head}{plain}", *lines, sep="\n")
    rows = _qp_rows(after)
    if len(rows) > 1 and (options.qps or len(rows) <= FEW_QPS + 1):
        head, *lines = _table(rows).splitlines()
        print("", f"{bold}{head}{plain}", *lines, sep="\n")
    elif len(rows) > 1:
        print(f"\n{len(rows) - 1} queue pairs; --qps lists them")
    return 0
