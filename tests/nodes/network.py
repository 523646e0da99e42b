# SPDX-License-Identifier: Apache-2.0
"""Nodes of a cluster as network namespaces of this machine, joined by a bridge and veth pairs. Needs root."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, wait_until
from sluice.cluster import keys
from sluice.control.operator import RouterAbsent, ask
from wire import MTU, Wire

NETWORK = "192.0.2"
_clusters = itertools.count()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Node:
    """A network namespace with a router in it."""

    def __init__(self, cluster: "Cluster", name: str, number: int) -> None:
        self.cluster = cluster
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self.namespace = f"{cluster.prefix}{name}"
        self.link = f"{cluster.prefix}{number}"
        self.state_dir = Path(tempfile.mkdtemp(prefix="sluice-", dir="/tmp"))
        self.process: subprocess.Popen[bytes] | None = None
        self.options: tuple[str, ...] = ()
        self._children: list[subprocess.Popen[str]] = []
        _ip("netns", "add", self.namespace)
        if cluster.wire is None:
            _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
            _ip("link", "set", self.link, "master", cluster.bridge, "up")
        else:
            cluster.wire.plug(self.namespace, "eth0")
            self.ip("link", "set", "eth0", "mtu", str(MTU))
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> None:
        _ip("-n", self.namespace, *arguments)

    def inside(self, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]

    def cut(self) -> None:
        """The cable is pulled."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        _ip("link", "set", self.link, "up")

    def start(self) -> None:
        log = (self.state_dir / "log").open("a")
        options = ["--cluster", str(self.cluster.file), "--node", self.name, "--key", str(self.cluster.key(self.name))]
        self.process = subprocess.Popen(
            self.inside(
                *(sys.executable, "-m", "sluice", "router", "--verbose", "--state-dir", str(self.state_dir)),
                *(*options, *self.options),
            ),
            stderr=log,
        )
        wait_until(lambda: self._answers() or self._ended(), f"node {self.name}'s router")

    def _answers(self) -> bool:
        try:
            self.ask("ping")
        except RouterAbsent:
            return False
        return True

    def _ended(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.logged()
        return False

    def kill(self) -> None:
        """The router dies without a word."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def ask(self, op: str, **fields: Any) -> Any:
        return ask(self.state_dir, op, timeout=PATIENCE, **fields)

    def status(self, tenant: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")["tenants"][tenant]
        return found

    def run(self, tenant: str, *argv: str | Path, options: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        """A command as a tenant of this node; both outputs on stdout."""
        command = [sys.executable, "-m", "sluice", "run", "--state-dir", str(self.state_dir), "--tenant", tenant]
        child = subprocess.Popen(
            self.inside(*command, *options, "--", *map(str, argv)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._children.append(child)
        return child

    def listening(self, port: int) -> bool:
        output = subprocess.run(self.inside("cat", "/proc/net/tcp"), check=True, capture_output=True, text=True).stdout
        rows = [line.split() for line in output.splitlines()[1:]]
        return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)

    def logged(self) -> str:
        return (self.state_dir / "log").read_text()

    def close(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    child.kill()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(PATIENCE) == 0, self.logged()
        _ip("netns", "del", self.namespace)
        shutil.rmtree(self.state_dir)


class Cluster:
    """Nodes by name: alpha, beta, … options: more of `sluice router`'s, by node. wire: None for one without faults."""

    def __init__(
        self, *names: str, options: Mapping[str, tuple[str, ...]] | None = None, wire: Wire | None = None
    ) -> None:
        # A namespace goes away some time after it was deleted, with its devices: names are not used again.
        self.prefix = f"sl{os.getpid() % 100000}{chr(ord('a') + next(_clusters) % 26)}"
        self.wire = wire
        self.bridge = f"{self.prefix}0"
        self.dir = Path(tempfile.mkdtemp(prefix="sluice-", dir="/tmp"))
        self.file = self.dir / "cluster.yaml"
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")
        self.nodes = {name: Node(self, name, number) for number, name in enumerate(names, 1)}
        text = "nodes:\n"
        for node in self.nodes.values():
            public = keys.generate(self.key(node.name)).public.decode()
            text += f'  {node.name}: {{address: {node.address}, public-key: "{public}"}}\n'
        self.file.write_text(text)
        for node in self.nodes.values():
            node.options = (options or {}).get(node.name, ())
            node.start()
        self.wait_for_links()

    def key(self, name: str) -> Path:
        return self.dir / f"{name}.key"

    def wait_for_links(self) -> None:
        def up() -> bool:
            return all(
                peer["alive"]
                for node in self.nodes.values()
                for peer in node.ask("status")["cluster"]["peers"].values()
            )

        wait_until(up, "links between the routers")

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        _ip("link", "del", self.bridge)
        if self.wire is not None:
            self.wire.close()
        shutil.rmtree(self.dir)


def made(*names: str, options: Mapping[str, tuple[str, ...]] | None = None, faulty: bool = False) -> Iterator[Cluster]:
    """For a fixture; skips the test where namespaces can't be had. faulty: with a wire that can have faults."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if faulty and not Wire.possible():
        pytest.skip("a wire with faults needs /dev/net/tun")
    cluster = Cluster(*names, options=options, wire=Wire() if faulty else None)
    yield cluster
    cluster.close()
