# SPDX-License-Identifier: Apache-2.0
"""sluice status: what each tenant has and does."""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sluice.cli.terminal import BOLD, styled
from sluice.control.operator import ask
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


def table(rows: list[list[str]], left: int = 1) -> str:
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


def _operations(counters: dict[str, Any]) -> int:
    return int(counters["tx_messages"] + counters["reads"] + counters["atomics"])


def _throttled(new: list[int], old: list[int], seconds: float, limits: list[str]) -> str:
    """The share of the time in which work waited, and for what most."""
    waited = [after - before for after, before in zip(new, old, strict=True)]
    most = max(range(len(waited)), key=waited.__getitem__)
    if waited[most] == 0:
        return "-"
    return f"{min(100.0, waited[most] / seconds / 1e7):.0f}% {limits[most]}"


def _refused(counters: dict[str, Any], limits: list[str]) -> str:
    """How many verbs failed at a limit, and at which the last one did."""
    count = sum(counters["refused"])
    return f"{count} {limits[counters['last_refused'] - 1]}" if count else "-"


def _both(rates: list[int]) -> str:
    """A rate of each direction: one where they are alike."""
    texts = [format_rate(rate) if rate else "none" for rate in rates]
    return texts[0] if texts[0] == texts[1] else "/".join(texts)


def of_devices(status: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Each tenant on each of its devices: both names, the device's as the operator says it, and its status."""
    for name, tenant in sorted(status["tenants"].items()):
        for entry in tenant["devices"].values():
            yield (name, entry["device"]), {**entry, "processes": tenant["processes"]}


def several(status: dict[str, Any]) -> bool:
    """Whether a table needs a column for devices."""
    return len(status["devices"]) > 1


def tenant_rows(before: dict[str, Any], after: dict[str, Any]) -> list[list[str]]:
    """A line for each tenant, and each of its devices where the router has several; from two answers to "status"."""
    seconds = max(1e-9, (after["time_ns"] - before["time_ns"]) / 1e9)
    head = (
        "GROUP PROC QPS MRS MEMORY TX-RATE RX-RATE OPS/S ENGINE GUARANTEE CEILING WEIGHT THROTTLED "
        "TX-BYTES RX-BYTES OPS REFUSED ERRORS"
    )
    rows = [["TENANT", *["DEVICE"] * several(after), *head.split()]]
    earlier = dict(of_devices(before))
    for (name, device), entry in of_devices(after):
        new = entry["counters"]
        old = earlier.get((name, device), entry)["counters"]
        rate = {key: (new[key] - old[key]) / seconds for key in ("tx_bytes", "rx_bytes", "engine_ns")}
        rows.append(
            [
                name,
                *[device] * several(after),
                entry["group"] or "-",
                str(len(entry["processes"])),
                str(new["qps"]),
                str(new["mrs"]),
                format_size(new["mr_bytes"]),
                format_rate(8 * rate["tx_bytes"]),
                format_rate(8 * rate["rx_bytes"]),
                format_count((_operations(new) - _operations(old)) / seconds),
                f"{rate['engine_ns'] / 1e7:.1f}%",
                _both(new["min_bps"]),
                _both(new["max_bps"]),
                str(entry["weight"]),
                _throttled(new["throttled_ns"], old["throttled_ns"], seconds, after["limits"]),
                format_size(new["tx_bytes"]),
                format_size(new["rx_bytes"]),
                format_count(_operations(new)),
                _refused(new, after["limits"]),
                str(new["errors"]),
            ]
        )
    return rows


def group_rows(before: dict[str, Any], after: dict[str, Any]) -> list[list[str]]:
    """A line for each group of each device; none where there are no groups."""
    seconds = max(1e-9, (after["time_ns"] - before["time_ns"]) / 1e9)
    rows = []
    earlier = dict(of_devices(before))
    for device, of_device in after["devices"].items():
        for name, group in sorted(of_device["groups"].items()):
            moved = {"tx_bytes": 0, "rx_bytes": 0}
            for key, entry in of_devices(after):
                if entry["group"] == name and key[1] == device:
                    old = earlier.get(key, entry)["counters"]
                    for counter in moved:
                        moved[counter] += entry["counters"][counter] - old[counter]
            new = group["counters"]
            then = before["devices"][device]["groups"].get(name, group)["counters"]
            rows.append(
                [
                    name,
                    *[device] * several(after),
                    str(new["tenants"]),
                    format_rate(8 * moved["tx_bytes"] / seconds),
                    format_rate(8 * moved["rx_bytes"] / seconds),
                    _throttled(new["throttled_ns"], then["throttled_ns"], seconds, after["limits"]),
                    "  ".join(f"{field} {value}" for field, value in group["policy"].items()) or "none",
                ]
            )
    if not rows:
        return []
    return [["GROUP", *["DEVICE"] * several(after), "TENANTS", "TX-RATE", "RX-RATE", "THROTTLED", "LIMITS"], *rows]


def _qp_rows(status: dict[str, Any]) -> list[list[str]]:
    head = ["QP", "STATE", "PEER", "TX-BYTES", "RX-BYTES", "MESSAGES", "READS", "ATOMICS", "ERRORS"]
    rows = [["TENANT", *["DEVICE"] * several(status), *head]]
    for name, tenant in sorted(status["tenants"].items()):
        for qp in tenant["qps"]:
            rows.append(
                [
                    name,
                    *[tenant["devices"][qp["device"]]["device"]] * several(status),
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


def _peer_rows(status: dict[str, Any]) -> list[list[str]]:
    """A line for each other node, where there are any."""
    peers = (status["cluster"] or {"peers": {}})["peers"]
    rows = [["NODE", "ADDRESS", "ROUTER", "TENANTS"]]
    for name, peer in sorted(peers.items()):
        state = "other version" if peer["misunderstood"] else "up" if peer["alive"] else "down"
        rows.append([name, peer["address"], state, str(peer["tenants"])])
    return rows


def run(options: argparse.Namespace) -> int:
    state_dir = options.state_dir.absolute()
    before = ask(state_dir, "status")
    if options.json:
        print(json.dumps(before, indent=2))
        return 0
    peers = _peer_rows(before)
    if len(peers) > 1:
        head, *lines = table(peers, left=3).splitlines()
        print(styled(BOLD, head), *lines, "", sep="\n")
    if not before["tenants"]:
        print("the router runs; no tenants yet (sluice run --tenant NAME -- COMMAND)")
        return 0
    time.sleep(INTERVAL)
    after = ask(state_dir, "status")
    head, *lines = table(tenant_rows(before, after)).splitlines()
    print(styled(BOLD, head), *lines, sep="\n")
    groups = group_rows(before, after)
    if groups:
        head, *lines = table(groups).splitlines()
        print("", styled(BOLD, head), *lines, sep="\n")
    rows = _qp_rows(after)
    if len(rows) > 1 and (options.qps or len(rows) <= FEW_QPS + 1):
        head, *lines = table(rows).splitlines()
        print("", styled(BOLD, head), *lines, sep="\n")
    elif len(rows) > 1:
        print(f"\n{len(rows) - 1} queue pairs; --qps lists them")
    return 0
