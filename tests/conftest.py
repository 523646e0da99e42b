# SPDX-License-Identifier: Apache-2.0
"""What the tests share: a router of their own, and the C programs that were built for them."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from sluice import shim_path
from sluice.control.operator import RouterAbsent, ask

PATIENCE = 120
"""Seconds after which a condition that doesn't come true fails a test: far more than a slow and busy machine takes."""


# How long an example takes is the machine's affair.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


LONGEST_LOOK = 10.0
"""Seconds of patience that one look can cost: the whole machine may have stood still meanwhile."""


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Waits for a condition and returns its value."""
    waited, start = 0.0, time.monotonic()
    while waited < patience:
        value = condition()
        if value:
            return value
        # No longer than it took to look: who is waited for needs the processor too.
        time.sleep(min(max(time.monotonic() - start, 0.01), 0.2))
        before, start = start, time.monotonic()
        waited += min(start - before, LONGEST_LOOK)
    pytest.fail(f"{what}: not within {patience} s")


class RunningRouter:
    """A router in a state directory of its own. options: of `sluice router`."""

    def __init__(self, *options: str, program: tuple[str, ...] = ("-m", "sluice"), place: Path = Path("/tmp")) -> None:
        """program: Python's arguments, up to the router's own. place: where its state directory is made."""
        self._program = program
        self._options = options
        self.state_dir = Path(tempfile.mkdtemp(prefix="sluice-", dir=place))
        self._children: list[subprocess.Popen[str]] = []
        try:
            self.start()
        except BaseException:
            print(self.logged(), file=sys.stderr)
            shutil.rmtree(self.state_dir)
            raise

    def start(self) -> None:
        self.log = (self.state_dir / "log").open("a+")
        options = ["--verbose", "--state-dir", str(self.state_dir), *self._options]
        self.process = subprocess.Popen([sys.executable, *self._program, "router", *options], stderr=self.log)
        try:
            wait_until(lambda: self._answers() or self._ended(), "the router's answer")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _answers(self) -> bool:
        try:
            self.ask("ping")
        except RouterAbsent:
            return False
        return True

    def _ended(self) -> bool:
        assert self.process.poll() is None, self.logged()
        return False

    def ask(self, op: str, **fields: Any) -> Any:
        return ask(self.state_dir, op, timeout=PATIENCE, **fields)

    def status(self, tenant: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")["tenants"][tenant]
        return found

    def run(self, tenant: str, *argv: str | Path, options: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        """`sluice run --tenant … -- argv`; both outputs on stdout."""
        command = [sys.executable, "-m", "sluice", "run", "--state-dir", str(self.state_dir)]
        child = subprocess.Popen(
            [*command, "--tenant", tenant, *options, "--", *map(str, argv)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._children.append(child)
        return child

    def logged(self) -> str:
        return (self.state_dir / "log").read_text()

    def stop(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    child.kill()
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.wait(PATIENCE) == 0, self.logged()
        shutil.rmtree(self.state_dir)


@pytest.fixture(scope="module")
def router() -> Iterator[RunningRouter]:
    running = RunningRouter()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """Path of a C program of tests/integration/verbs, by name."""
    build = Path(os.environ.get("SLUICE_BUILD", "build")) / "tests/integration/verbs"

    def find(name: str) -> Path:
        path = build / f"verbs-{name}"
        assert path.exists(), f"{path} is not built: run `make test`, or set SLUICE_BUILD"
        return path.absolute()

    return find


@pytest.fixture(scope="session")
def load() -> Path:
    """The program that loads a connection while it sleeps between completions (benchmarks/isolation/load.c)."""
    path = Path(os.environ.get("SLUICE_BUILD", "build")) / "benchmarks/load"
    assert path.exists(), f"{path} is not built: run `make test`, or set SLUICE_BUILD"
    return path.absolute()


@cache
def exported() -> dict[str, str]:
    """Version of each symbol that the shim exports; empty where it has none, and so answers to any."""
    text = subprocess.run(
        ["readelf", "-W", "--dyn-syms", shim_path()], capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[6].isdigit() and fields[4] == "GLOBAL":
            name, _, version = fields[7].partition("@@")
            found[name] = version
    return found


def listening(port: int) -> bool:
    """Whether a TCP server listens on this port (/proc/net/tcp: state 0A)."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False


def serving(router: RunningRouter, tenant: str, *argv: str | Path, port: int) -> "subprocess.Popen[str]":
    """Starts a server that listens by rdma_cm, and waits until it does."""
    router.ask("tenant-add", name=tenant, policy={})
    server = router.run(tenant, *argv)

    def listens() -> bool:
        addresses = router.status(tenant)["rdma_cm"]["listening"]
        return server.poll() is not None or any(address.endswith(f":{port}") for address in addresses)

    wait_until(listens, f"{argv[0]} listens")
    return server


_next_port = 24000 + os.getpid() % 4000


def next_port() -> int:
    """A TCP port that no other test of this run gets."""
    global _next_port
    _next_port += 1
    while listening(_next_port):
        _next_port += 1
    return _next_port


def output_of(child: "subprocess.Popen[str]", expected: int = 0) -> str:
    """Waits for the end; the exit code must be as expected."""
    text, _ = child.communicate(timeout=2 * PATIENCE)
    assert child.returncode == expected, text
    return text


REPORTS = "-F"
"""perftest compares two clocks before it reports, and fails where a busy machine drives them apart: not with this."""


def endless(tool: str, port: int, *options: str) -> list[str]:
    """A perftest server's command line, for traffic until it is stopped; reports come every hour."""
    return [tool, REPORTS, "-p", str(port), "--run_infinitely", "-D", "3600", *options]


def perftest(router: RunningRouter, argv: list[str], by_rdma_cm: bool = False) -> str:
    """Runs its server as tenant b and its client as tenant a, to their ends; returns what the client says."""
    port = next_port()
    command = [*argv, REPORTS, "-p", str(port)]
    if by_rdma_cm:
        server = serving(router, "b", *command, port=port)
    else:
        server = router.run("b", *command)
        wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    text = output_of(router.run("a", *command, "127.0.0.1"))
    output_of(server)
    assert "Failed" not in text and "Completion with error" not in text, text
    return text
