# SPDX-License-Identifier: Apache-2.0
"""The command line: a file per command."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from sluice import __version__
from sluice.control.operator import RouterAbsent, RouterError, RouterSilent

COMMANDS = ("router", "run", "policy", "status", "top", "doctor", "keys", "demo")
"""Each a module of this package."""


def default_state_dir() -> Path:
    """/run/sluice for root, else a directory of the user's own."""
    if os.geteuid() == 0:
        return Path("/run/sluice")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "sluice" if runtime else Path(f"/tmp/sluice-{os.geteuid()}")


class Parser(argparse.ArgumentParser):
    """Of a command: an argument that it doesn't know is its own error, beside the usage that has the right one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def parser(arguments: list[str]) -> argparse.ArgumentParser:
    """Of the command that comes first, alone: the others' modules take longer to load than it may take."""
    sluice = Parser(prog="sluice", description="A software RDMA device for every container, metered and shaped.")
    sluice.add_argument("--version", action="version", version=f"sluice {__version__}")
    commands = sluice.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = [name for name in COMMANDS if arguments[:1] == [name]]
    for name in named or COMMANDS:
        import_module(f"sluice.cli.{name}").add_to(commands, default_state_dir())
    return sluice


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(arguments).parse_args(arguments)
    try:
        return int(options.run(options))
    except RouterSilent as error:
        print(f"sluice: {error}: {error.advice}", file=sys.stderr)
        return 1
    except (RouterAbsent, RouterError, ValueError) as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has seen enough (sluice status | head).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
