# SPDX-License-Identifier: Apache-2.0
"""The command line: a file per command."""

import argparse
import os
import sys
from pathlib import Path

from sluice import __version__
from sluice.cli import demo, doctor, keys, policy, router, run, status, top
from sluice.control.admin import RouterAbsent, RouterError


def default_state_dir() -> Path:
    """/run/sluice for root, else a directory of the user's own."""
    if os.geteuid() == 0:
        return Path("/run/sluice")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "sluice" if runtime else Path(f"/tmp/sluice-{os.geteuid()}")


def parser() -> argparse.ArgumentParser:
    sluice = argparse.ArgumentParser(
        prog="sluice", description="A software RDMA device for every container, metered and shaped."
    )
    sluice.add_argument("--version", action="version", version=f"sluice {__version__}")
    commands = sluice.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (router, run, policy, status, top, doctor, keys, demo):
        command.add_to(commands, default_state_dir())
    return sluice


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (RouterAbsent, RouterError, ValueError) as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has seen enough (sluice status | head).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
