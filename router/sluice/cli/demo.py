# SPDX-License-Identifier: Apache-2.0
"""sluice demo: two tenants on this machine, perftest between them, and rates that change while it runs."""

import argparse
from pathlib import Path
from typing import Any


def add_to(commands: Any, state_dir: Path) -> None:
    command = commands.add_parser("demo", help="see it work: two tenants, real perftest, rates changed live")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    return 0
