# SPDX-License-Identifier: Apache-2.0
"""Two nodes on one machine: network namespaces with a cable between them, and a router in each."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sluice.cli.temporary import temporary_router
from sluice.cluster import keys
from sluice.control.operator import RouterAbsent, ask

NETWORK = "192.0.2"
"""TEST-NET-1 of RFC 5737; seen in the namespaces alone."""
NAMES = ("alpha", "beta")
PATIENCE = 30.0


class NoNodes(RuntimeError):
    """Why there can't be two nodes here."""


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NoNodes("two nodes need the command ip: apt-get install iproute2") from None
    except subprocess.CalledProcessError as error:
        raise NoNodes(f"ip {' '.join(arguments)}: {error.stderr.strip()}") from None


@dataclass
class LocalNode:
    """A namespace (empty: the machine's own), and the state directory of its router."""

    name: str
    address: str
    namespace: str
    state_dir: Path

    def inside(self, *argv: str) -> list[str]:
        """The command that runs a command there."""
        return ["ip", "netns", "exec", self.namespace, *argv] if self.namespace else list(argv)

    def as_tenant(self, tenant: str, *argv: str) -> list[str]:
        sluice = [sys.executable, "-m", "sluice", "run", "--state-dir", str(self.state_dir), "--tenant", tenant]
        return self.inside(*sluice, "--", *argv)

    def listens(self, port: int) -> bool:
        rows = subprocess.run(self.inside("cat", "/proc/net/tcp", "/proc/net/tcp6"), capture_output=True, text=True)
        columns = [row.split() for row in rows.stdout.splitlines() if ": " in row]
        return any(row[3] == "0A" and row[1].endswith(f":{port:04X}") for row in columns)


def _linked(node: LocalNode) -> bool:
    try:
        peers = ask(node.state_dir, "status")["cluster"]["peers"].values()
    except RouterAbsent:
        return False
    return all(peer["alive"] for peer in peers)


def _start(nodes: list[LocalNode], scratch: Path) -> "list[subprocess.Popen[bytes]]":
    text = "nodes:\n"
    for node in nodes:
        public = keys.generate(scratch / f"{node.name}.key").public.decode()
        text += f'  {node.name}: {{address: {node.address}, public-key: "{public}"}}\n'
    (scratch / "cluster.yaml").write_text(text)
    routers = []
    for node in nodes:
        options = ["--cluster", str(scratch / "cluster.yaml"), "--node", node.name]
        options += ["--key", str(scratch / f"{node.name}.key"), "--state-dir", str(node.state_dir)]
        with (scratch / f"{node.name}.log").open("w") as log:
            command = node.inside(sys.executable, "-m", "sluice", "router", *options)
            routers.append(subprocess.Popen(command, stderr=log))
    deadline = time.monotonic() + PATIENCE
    while not all(map(_linked, nodes)):
        if time.monotonic() > deadline or any(router.poll() is not None for router in routers):
            logs = "".join((scratch / f"{node.name}.log").read_text() for node in nodes)
            _stop(routers)
            raise NoNodes(f"the routers of two nodes did not find each other:\n{logs}")
        time.sleep(0.02)
    return routers


def _stop(routers: "list[subprocess.Popen[bytes]]") -> None:
    for router in routers:
        router.terminate()
    for router in routers:
        router.wait()


@contextmanager
def one_node() -> Iterator[tuple[LocalNode, LocalNode]]:
    """This machine, twice."""
    with temporary_router() as state_dir:
        node = LocalNode("", "127.0.0.1", "", state_dir)
        yield node, node


@contextmanager
def two_nodes() -> Iterator[tuple[LocalNode, LocalNode]]:
    """alpha and beta, as long as the block lasts. NoNodes."""
    if os.geteuid() != 0:
        raise NoNodes("two nodes are two network namespaces, which only root may make: run it as root")
    scratch = Path(tempfile.mkdtemp(prefix="sluice-", dir="/tmp"))
    prefix = f"sluice{os.getpid()}"
    nodes = [
        LocalNode(name, f"{NETWORK}.{number}", f"{prefix}-{name}", scratch / name)
        for number, name in enumerate(NAMES, 1)
    ]
    try:
        for node in nodes:
            _ip("netns", "add", node.namespace)
        far = ("peer", "name", "eth0", "netns", nodes[1].namespace)
        _ip("link", "add", "eth0", "netns", nodes[0].namespace, "type", "veth", *far)
        for node in nodes:
            _ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", "eth0")
            _ip("-n", node.namespace, "link", "set", "eth0", "up")
            _ip("-n", node.namespace, "link", "set", "lo", "up")
        routers = _start(nodes, scratch)
        try:
            yield nodes[0], nodes[1]
        finally:
            _stop(routers)
    finally:
        for node in nodes:
            with suppress(NoNodes):
                _ip("netns", "del", node.namespace)
        shutil.rmtree(scratch, ignore_errors=True)
