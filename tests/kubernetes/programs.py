# SPDX-License-Identifier: Apache-2.0
"""The programs that build.sh built, and children that don't outlive the tests."""

import ctypes
import os
import random
import signal
import socket
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@cache
def folder() -> Path:
    """Builds what is missing; skips where it can't be built."""
    build = subprocess.run([Path(__file__).parent / "build.sh"], stdout=subprocess.PIPE, text=True, check=False)
    if build.returncode != 0:
        pytest.skip("Kubernetes is not built and can't be: see above")
    return Path(build.stdout.strip().splitlines()[-1])


def program(name: str) -> Path:
    return folder() / name


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(argv: list[str | Path], log: Path, environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Output goes to the log file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | (environment or {}),
            preexec_fn=_die_with_parent,
        )


def stop(process: "subprocess.Popen[bytes] | None", patience: float = 60) -> None:
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Without a word, as what has nothing to lose: an API server waits a minute for those who watch."""
    process.kill()
    process.wait()


_given: set[int] = set()


def free_port() -> int:
    """One that nobody gets by chance before it is used: below those that the kernel gives to connections (from 32768),
    of which a control plane makes hundreds.
    """
    while True:
        port = random.randrange(20000, 30000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in _given:
                _given.add(port)
                return port
