# SPDX-License-Identifier: Apache-2.0
"""sluice keys: the key by which a node's router is known to the others."""

import argparse
from pathlib import Path
from typing import Any

from sluice.cluster.keys import generate, load


def default_key() -> Path:
    return Path("/etc/sluice/node.key")


def add_to(commands: Any, _state_dir: Path) -> None:
    command = commands.add_parser("keys", help="make and show a node's key")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("generate", help="make a key file and print its public key")
    make.set_defaults(run=run_generate)
    show = actions.add_parser("show", help="print the public key of a key file")
    show.set_defaults(run=run_show)
    for action in (make, show):
        action.add_argument("file", type=Path, nargs="?", default=default_key(), help="default: %(default)s")


def run_generate(options: argparse.Namespace) -> int:
    print(generate(options.file).public.decode())
    return 0


def run_show(options: argparse.Namespace) -> int:
    print(load(options.file).public.decode())
    return 0
