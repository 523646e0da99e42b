# SPDX-License-Identifier: Apache-2.0
"""sluice policy: see and change what tenants and groups may use."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sluice.control.operator import ask
from sluice.policy.file import load_policies
from sluice.policy.policy import SHARE_FIELDS, TENANT_FIELDS, GroupPolicy, Policy, PolicyError


def add_to(commands: Any, state_dir: Path) -> None:
    command = commands.add_parser("policy", help="see and change rates and limits")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="all limits")
    show.add_argument("--json", action="store_true", help="for machines")
    show.set_defaults(run=run_show)
    change = actions.add_parser("set", help="change a tenant's limits, at once", description="'none' lifts a limit.")
    change.add_argument("tenant")
    _add_fields(change, TENANT_FIELDS)
    change.set_defaults(run=run_set)
    group = actions.add_parser(
        "group",
        help="make, change or remove a group",
        description="Tenants join with 'sluice policy set TENANT --group NAME'. 'none' lifts a limit.",
    )
    group.add_argument("group")
    group.add_argument("--remove", action="store_true", help="it has no tenants any more")
    _add_fields(group, SHARE_FIELDS)
    group.set_defaults(run=run_group)
    load = actions.add_parser("load", help="load a policy file: all of it or nothing")
    load.add_argument("file", type=Path)
    load.set_defaults(run=run_load)
    for action in (change, group):
        action.add_argument(
            "--device", default="", metavar="NAME", help="on which of the router's (default: the first)"
        )
    for action in (show, change, group, load):
        action.add_argument("--state-dir", type=Path, default=state_dir, help="default: %(default)s")


def _add_fields(parser: argparse.ArgumentParser, fields: Mapping[str, Any]) -> None:
    for name, field in fields.items():
        parser.add_argument(f"--{name}", dest=f"limit_{name}", metavar=field.metavar, help=field.help)


def _given(options: argparse.Namespace, fields: Mapping[str, Any]) -> dict[str, str]:
    values = {name: getattr(options, f"limit_{name}") for name in fields}
    return {name: value for name, value in values.items() if value is not None}


def _line(fields: Mapping[str, str]) -> str:
    return "  ".join(f"{field} {value}" for field, value in fields.items()) or "no limits"


def run_show(options: argparse.Namespace) -> int:
    policies = ask(options.state_dir.absolute(), "policy-show")
    if options.json:
        print(json.dumps(policies, indent=2))
        return 0
    devices = policies["devices"]
    for device, of_device in devices.items():
        if len(devices) > 1:
            print(f"device {device}")
        print(f"capacity {of_device['capacity']}")
        for kind in ("groups", "tenants"):
            for name, fields in sorted(of_device[kind].items()):
                print(f"{kind[:-1]} {name:<20} {_line(fields)}")
        if not of_device["tenants"]:
            print("no tenants")
    return 0


def run_set(options: argparse.Namespace) -> int:
    given = _given(options, TENANT_FIELDS)
    if not given:
        raise PolicyError(f"nothing to set: give one of {', '.join('--' + name for name in TENANT_FIELDS)}")
    Policy().changed({name: value for name, value in given.items() if not name.startswith("min")})
    now = ask(options.state_dir.absolute(), "policy-set", name=options.tenant, policy=given, device=options.device)
    print(f"{options.tenant}: {_line(now)}")
    return 0


def run_group(options: argparse.Namespace) -> int:
    state_dir = options.state_dir.absolute()
    if options.remove:
        ask(state_dir, "group-remove", name=options.group, device=options.device)
        print(f"{options.group}: removed")
        return 0
    given = _given(options, SHARE_FIELDS)
    GroupPolicy().changed({name: value for name, value in given.items() if not name.startswith("min")})
    now = ask(state_dir, "group-set", name=options.group, policy=given, device=options.device)
    print(f"{options.group}: {_line(now)}")
    return 0


def run_load(options: argparse.Namespace) -> int:
    # Read here first: mistakes are told with the path as it was given.
    load_policies(options.file)
    loaded = ask(options.state_dir.absolute(), "policy-load", path=str(options.file.absolute()))
    print(f"loaded: {', '.join(loaded['tenants']) or 'no tenants'}")
    return 0
