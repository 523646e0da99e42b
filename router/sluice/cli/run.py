# SPDX-License-Identifier: Apache-2.0
"""sluice run: run a command as a tenant."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from sluice.cli.isolation import run_command
from sluice.control.operator import RouterAbsent, RouterDead, RouterSilent, ask
from sluice.policy.policy import TENANT_FIELDS, Policy, check_name
from sluice.shim import with_shim

ROUTER_START_SECONDS = 20
LIMITS = ("min", "max", "burst", "weight", "group")
"""sluice policy set has the others."""


def add_to(commands: Any, state_dir: Path) -> None:
    command = commands.add_parser(
        "run",
        help="run a command as a tenant",
        description="Runs a command that sees the tenant's RDMA device, sluice0, and no other "
        "(sluice1 and so on where it has several). "
        "Commands with one tenant name share its devices and their limits. "
        "Starts a router in the background where none runs.",
    )
    command.add_argument("--state-dir", type=Path, default=state_dir, help="the router's (default: %(default)s)")
    command.add_argument("--tenant", metavar="NAME", help="default: a tenant of its own, gone afterwards")
    command.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="NAME",
        help="which of the router's devices the tenant has; may be repeated; limits hold on each (default: the first)",
    )
    for name in LIMITS:
        field = TENANT_FIELDS[name]
        command.add_argument(f"--{name}", metavar=field.metavar, help=field.help)
    command.add_argument(
        "--ip", metavar="ADDRESS", type=address, help="the tenant's address (default: one that is free)"
    )
    command.add_argument(
        "--no-isolate",
        action="store_true",
        help="as root: no mount, PID and IPC namespaces for the command",
    )
    command.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    command.set_defaults(run=run)


def address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 address: write one as 10.1.0.5") from None


def _has_options(command: str) -> bool:
    """Whether a router's command said more than where its state is."""
    words = [word for word in shlex.split(command)[2:] if word != "--verbose"]
    return (bool(words) and not words[0].startswith("--state-dir")) or len(words) > 2


def ensure_router(state_dir: Path) -> None:
    """Starts a router in the background where there is none. RouterAbsent: it doesn't come up, or it isn't this one's.

    One that died is started again where it had no options: without them tenants would be without what it kept them to.
    """
    arguments = ["router", "--state-dir", str(state_dir)]
    try:
        ask(state_dir, "ping")
        return
    except RouterSilent:
        raise
    except RouterDead as error:
        if _has_options(error.command):
            raise
    except RouterAbsent:
        pass
    state_dir.mkdir(parents=True, exist_ok=True)
    log = state_dir / "router.log"
    with log.open("ab") as output:
        router = subprocess.Popen(
            [sys.executable, "-m", "sluice", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + ROUTER_START_SECONDS
    while time.monotonic() < deadline:
        try:
            ask(state_dir, "ping", timeout=1)
        except RouterAbsent:
            if router.poll() is not None:
                # Another sluice run may have been faster: then that router answers by now.
                break
            time.sleep(0.05)
        else:
            print(f"sluice: started a router in the background (pid {router.pid}, log {log})", file=sys.stderr)
            return
    try:
        ask(state_dir, "ping", timeout=1)
    except RouterAbsent:
        raise RouterAbsent(f"no router runs and none could be started: see {log}") from None


def run(options: argparse.Namespace) -> int:
    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not argv:
        print("sluice: which command? sluice run --tenant NAME -- COMMAND …", file=sys.stderr)
        return 2
    state_dir = options.state_dir.absolute()
    name = check_name(options.tenant or f"run-{os.getpid()}")
    given = {name: getattr(options, name) for name in LIMITS}
    limits = {name: value for name, value in given.items() if value is not None}
    Policy().changed(limits)
    ensure_router(state_dir)
    wanted = None if options.ip is None else str(options.ip)
    answer = ask(state_dir, "tenant-add", name=name, policy=limits, address=wanted, devices=options.device)

    environment = with_shim(os.environ)
    isolate = os.geteuid() == 0 and not options.no_isolate
    try:
        return run_command(argv, environment, state_dir, Path(answer["path"]), isolate)
    finally:
        if options.tenant is None:
            # In a namespace all its processes have ended, if not all that is noticed yet; else some may go on with it.
            try:
                ask(state_dir, "tenant-remove", name=name, force=isolate)
            except RuntimeError as error:
                print(f"sluice: {error}", file=sys.stderr)
