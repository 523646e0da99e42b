# SPDX-License-Identifier: Apache-2.0
"""sluice policy: see and change what tenants may use."""

import argparse
import json
from pathlib import Path
from typing import Any

from sluice.control.admin import ask
from sluice.policy.policy import load_policies

LIMITS = {
    "max": ("RATE", "ceiling in each direction, for instance 2Gbps"),
    "burst": ("SIZE", "how much may go at once after a pause, for instance 1MiB"),
    "max-mr-bytes": ("SIZE", "registered memory"),
    "max-mrs": ("COUNT", "memory regions"),
}


def add_to(commands: Any, state_dir: Path) -> None:
    command = commands.add_parser("policy", help="see and change rates and limits")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="all tenants' limits")
    show.add_argument("--json", action="store_true", help="for machines")
    show.set_defaults(run=run_show)
    change = actions.add_parser("set", help="change a tenant's limits, at once", description="'none' lifts a limit.")
    change.add_argument("tenant")
    for name, (metavar, text) in LIMITS.items():
        change.add_argument(f"--{name}", metavar=metavar, help=text)
    change.set_defaults(run=run_set)
    load = actions.add_parser("load", help="load a policy file: all of it or nothing")
    load.add_argument("file", type=Path)
    load.set_defaults(run=run_load)
    for action in (show, change, load):
        action.add_argument("--state-dir", type=Path, default=state_dir, help="default: %(default)s")


def run_show(options: argparse.Namespace) -> int:
    policies = ask(options.state_dir.absolute(), "policy-show")
    if options.json:
        print(json.dumps(policies, indent=2))
        return 0
    if not policies:
        print("no tenants")
    for name, fields in sorted(policies.items()):
        limits = "  ".join(f"{field} {value}" for field, value in fields.items())
        print(f"{name:<20} {limits or 'no limits'}")
    return 0


def run_set(options: argparse.Namespace) -> int:
    fields = {name: getattr(options, name.replace("-", "_")) for name in LIMITS}
    given = {name: value for name, value in fields.items() if value is not None}
    if not given:
        raise ValueError(f"nothing to set: give one of {', '.join('--' + name for name in LIMITS)}")
    now = ask(options.state_dir.absolute(), "policy-set", name=options.tenant, policy=given)
    print(f"{options.tenant}: " + ("  ".join(f"{field} {value}" for field, value in now.items()) or "no limits"))
    return 0


def run_load(options: argparse.Namespace) -> int:
    # Read here first: mistakes are told with the path as it was given.
    load_policies(options.file)
    loaded = ask(options.state_dir.absolute(), "policy-load", path=str(options.file.absolute()))
    print(f"loaded {len(loaded['tenants'])} tenants: {', '.join(loaded['tenants'])}")
    return 0
