# SPDX-License-Identifier: Apache-2.0
"""sluice router: run the router until SIGTERM or SIGINT."""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from sluice.cli.keys import default_key
from sluice.cluster.join import Membership, host_name
from sluice.control.admin import Admin
from sluice.control.router import AlreadyRunning, Router

log = logging.getLogger(__name__)


def add_to(commands: Any, state_dir: Path) -> None:
    command = commands.add_parser("router", help="run the router of this node")
    command.add_argument(
        "--state-dir", type=Path, default=state_dir, help="sockets and counters (default: %(default)s)"
    )
    command.add_argument("--config", type=Path, metavar="FILE", help="policy file to load at start")
    cluster = command.add_argument_group("a node of a cluster")
    cluster.add_argument("--cluster", type=Path, metavar="FILE", help="cluster file, the same on all nodes; watched")
    cluster.add_argument("--node", default=host_name(), help="which of its nodes this is (default: %(default)s)")
    cluster.add_argument("--key", type=Path, default=default_key(), help="this node's key (default: %(default)s)")
    command.add_argument("--verbose", action="store_true", help="log every session")
    command.set_defaults(run=run)


async def serve(options: argparse.Namespace) -> None:
    membership = None
    if options.cluster is not None:
        membership = Membership(options.cluster.absolute(), options.node, options.key.absolute())
    router = Router(options.state_dir.absolute(), membership)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        if options.config is not None:
            router.load_policies(options.config)
        admin = Admin(router, stopped.set)
        log.warning("router ready: %s", router.state_dir)
        await stopped.wait()
        admin.close()
    finally:
        router.close()


def run(options: argparse.Namespace) -> int:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(message)s",
    )
    try:
        asyncio.run(serve(options))
    except AlreadyRunning as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"sluice: {error.filename or options.state_dir}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0
