# SPDX-License-Identifier: Apache-2.0
"""What an operator's commands say to a router that runs (admin.py answers), without any of the router's own modules."""

import json
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq


class RouterAbsent(RuntimeError):
    """No router answers."""


class RouterDead(RouterAbsent):
    """One ran here and ended without a word. command: how it was started, empty where that isn't known."""

    def __init__(self, text: str, command: str) -> None:
        super().__init__(text)
        self.command = command


class RouterSilent(RouterAbsent):
    """There is one, which can't be asked. advice: what to do about it."""

    def __init__(self, text: str, advice: str) -> None:
        super().__init__(text)
        self.advice = advice


class RouterError(RuntimeError):
    """The router refused; the text says why."""


def endpoint(state_dir: Path) -> str:
    """Of the operator's door."""
    return f"ipc://{state_dir}/admin"


def _knock(state_dir: Path) -> int:
    """Whether somebody listens: the process number, 0 where this can't see it. RouterAbsent, at once."""
    path = state_dir / "admin"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            pid, command = _last_router(state_dir)
            again = f"start it again: {command or 'sluice router'}"
            raise RouterDead(f"the router{pid} with the state directory {state_dir} died; {again}", command) from None
        except PermissionError:
            raise RouterSilent(
                f"{path}: this user may not reach it", "run this as the router's user, root for instance"
            ) from None
        except BlockingIOError:
            # Many wait for it to accept them.
            return 0
        except OSError:
            raise RouterAbsent(
                f"no router runs with the state directory {state_dir} (--state-dir names another one)"
            ) from None
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


def _last_router(state_dir: Path) -> tuple[str, str]:
    """What the lock says of it: its process number, as " (pid 7)", and its command."""
    try:
        pid, command, *_ = [*(state_dir / "router.lock").read_text(errors="replace").splitlines(), "", ""]
    except OSError:
        return "", ""
    return f" (pid {pid})" if pid else "", command


def _silent(state_dir: Path, pid: int, timeout: float) -> RouterSilent:
    named = f" (pid {pid})" if pid else ""
    stopped = False
    with suppress(OSError):
        # proc_pid_stat(5): the state comes after the name, which may hold anything.
        stopped = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "Tt"
    if stopped:
        return RouterSilent(
            f"the router{named} with the state directory {state_dir} is stopped by a signal", f"kill -CONT {pid}"
        )
    return RouterSilent(
        f"the router{named} with the state directory {state_dir} does not answer within {timeout:g} s",
        f"it is busy or hangs: look at its log; kill -KILL {pid or 'it'}, and starting it again, unplugs its tenants",
    )


def ask(state_dir: Path, op: str, timeout: float = 5.0, **fields: object) -> Any:
    """One request to a running router. RouterAbsent: none answers in time (seconds). RouterError: it refuses."""
    pid = _knock(state_dir)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        client = context.socket(zmq.REQ)
        client.setsockopt(zmq.LINGER, 0)
        client.connect(endpoint(state_dir))
        client.send(json.dumps({"op": op, **fields}).encode())
        if not client.poll(int(timeout * 1000)):
            # It may have died meanwhile.
            raise _silent(state_dir, _knock(state_dir) or pid, timeout)
        answer = json.loads(client.recv())
    except Exception:
        # Not what a signal raises: it may leave a socket half made, of which the context doesn't know, and for which
        # destroying it would wait for ever. Both go when nobody has them any more, the socket first.
        context.destroy(linger=0)
        raise
    context.destroy(linger=0)
    if isinstance(answer, dict) and "error" in answer:
        raise RouterError(answer["error"])
    return answer
