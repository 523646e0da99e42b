# SPDX-License-Identifier: Apache-2.0
"""sluice router: run the router until SIGTERM or SIGINT."""

import argparse
import asyncio
import logging
import resource
import shlex
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sluice.cli.keys import default_key
from sluice.cluster.join import Joins, Membership, host_name
from sluice.control.admin import Admin
from sluice.control.router import AlreadyRunning, Router
from sluice.device.node import find_devices, with_capacities
from sluice.engine.engine import Engine
from sluice.metrics.collector import Metrics
from sluice.metrics.server import HttpServer, json_page, metrics_page, parse_address, text_page
from sluice.policy.rate import parse_rate
from sluice.policy.watch import Watch

if TYPE_CHECKING:
    from sluice.kubernetes.node import KubernetesNode
    from sluice.kubernetes.settings import Settings

log = logging.getLogger(__name__)


def add_to(commands: Any, state_dir: Path) -> None:
    command = commands.add_parser("router", help="run the router of this node")
    command.add_argument(
        "--state-dir", type=Path, default=state_dir, help="sockets and counters (default: %(default)s)"
    )
    command.add_argument("--config", type=Path, metavar="FILE", help="policy file; watched")
    command.add_argument(
        "--capacity",
        type=capacity,
        action="append",
        default=[],
        metavar="[DEVICE=]RATE",
        help="the device's rate in each direction, which all its traffic keeps to; without DEVICE: of each (default: "
        "traffic is not limited, and guarantees come to half of what this machine is measured to copy at most)",
    )
    command.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="auto|none|NIC[:PORT]|software:NAME",
        help="an RDMA NIC of the node, for peers on other hosts; auto: all that are active; "
        "none: no NIC (the default); software: a device without a NIC. May be repeated; each is a device of its own",
    )
    cluster = command.add_argument_group("a node of a cluster")
    cluster.add_argument("--cluster", type=Path, metavar="FILE", help="cluster file, the same on all nodes; watched")
    cluster.add_argument("--node", default=host_name(), help="which of its nodes this is (default: %(default)s)")
    cluster.add_argument("--key", type=Path, default=default_key(), help="this node's key (default: %(default)s)")
    command.add_argument("--kubernetes", type=Path, metavar="FILE", help="be a node of a Kubernetes cluster (settings)")
    command.add_argument(
        "--http", metavar="[ADDRESS:]PORT", help="serve /metrics, /nics, /healthz and /readyz here (default: nowhere)"
    )
    command.add_argument("--verbose", action="store_true", help="log every session")
    command.set_defaults(run=run)


def capacity(text: str) -> tuple[str, int]:
    name, _, rate = text.rpartition("=")
    try:
        return name, parse_rate(rate)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


async def serve(options: argparse.Namespace) -> None:
    membership: Joins | None = None
    settings = None if options.kubernetes is None else _kubernetes_settings(options.kubernetes)
    members = None
    if options.cluster is not None:
        membership = Membership(options.cluster.absolute(), options.node, options.key.absolute())
    elif settings is not None and settings.address is not None:
        from sluice.kubernetes.members import KubernetesMembership

        key = options.state_dir.absolute() / "node.key"
        membership = among = KubernetesMembership(settings.node, settings.address, settings.port, key)
        members = among.members
    chosen = find_devices(options.device)
    if settings is None:
        devices = with_capacities(chosen, dict(options.capacity))
    else:
        from sluice.kubernetes.devices import devices_of

        devices = devices_of(settings.nics, chosen, dict(options.capacity), settings.paced)
    # Each tenant gets a part of what the router may have open (csrc/tenant.h): as much as there can be.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    router = Router(options.state_dir.absolute(), membership, devices, shlex.join(["sluice", *sys.argv[1:]]))
    # After the worker was started, which keeps its own part.
    Engine.yield_cores()
    watch: Watch | None = None
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        if options.config is not None:
            # Before it is read: what changes meanwhile is read again.
            watch = Watch(options.config.absolute(), lambda: reload(router, options.config))
            router.load_policies(options.config, whole=True)
        admin = Admin(router, stopped.set)
        async with AsyncExitStack() as parts:
            parts.callback(admin.close)
            node = None
            if settings is not None:
                from sluice.kubernetes.node import join

                node = await join(router, settings, members)
                parts.push_async_callback(node.close)
            if options.http is not None:
                parts.callback(_serve_http(router, options.http, node).close)
            log.warning("router ready: %s", router.state_dir)
            await stopped.wait()
    finally:
        if watch is not None:
            watch.close()
        router.close()


def _kubernetes_settings(file: Path) -> "Settings":
    try:
        from sluice.kubernetes import node  # noqa: F401
        from sluice.kubernetes.settings import load_settings
    except ImportError as error:
        raise ValueError(f"--kubernetes needs more: pip install 'sluice[kubernetes]' ({error})") from None
    return load_settings(file)


def _serve_http(router: Router, where: str, node: "KubernetesNode | None") -> HttpServer:
    metrics = Metrics(router)
    if node is not None:
        from sluice.kubernetes.metrics import collect

        metrics.add(lambda: collect(node))
    pages = {
        "/metrics": metrics_page(metrics.text),
        "/nics": json_page(lambda: [] if node is None else node.attachments.nics()),
        "/healthz": text_page(lambda: "" if node is None else node.healthy()),
        "/readyz": text_page(lambda: "" if node is None else node.ready()),
    }
    try:
        return HttpServer(*parse_address(where), pages)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"--http {where}") from None


def reload(router: Router, config: Path) -> None:
    """What the file says now; where it is wrong, all stays as it was."""
    try:
        names = router.load_policies(config, whole=True)
    except (ValueError, OSError) as error:
        log.error("the policy file is not applied, all stays as it was: %s", error)
    else:
        log.warning("%s: applied, %d tenants", config, len(names))


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
        # Of a copy that fails, where it was to go.
        where = error.filename2 or error.filename or options.state_dir
        print(f"sluice: {where}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0
