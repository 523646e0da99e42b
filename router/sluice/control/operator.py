# SPDX-License-Identifier: Apache-2.0
"""What an operator's commands say to a router that runs (admin.py answers), without any of the router's own modules."""

import json
from pathlib import Path
from typing import Any

import zmq


class RouterAbsent(RuntimeError):
    """No router answers."""


class RouterError(RuntimeError):
    """The router refused; the text says why."""


def endpoint(state_dir: Path) -> str:
    """Of the operator's door."""
    return f"ipc://{state_dir}/admin"


def ask(state_dir: Path, op: str, timeout: float = 5.0, **fields: object) -> Any:
    """One request to a running router. RouterAbsent: none answers in time (seconds). RouterError: it refuses."""
    if not (state_dir / "admin").exists():
        raise RouterAbsent(f"no router runs with the state directory {state_dir}")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        client = context.socket(zmq.REQ)
        client.setsockopt(zmq.LINGER, 0)
        client.connect(endpoint(state_dir))
        client.send(json.dumps({"op": op, **fields}).encode())
        if not client.poll(int(timeout * 1000)):
            raise RouterAbsent(f"the router with the state directory {state_dir} does not answer")
        answer = json.loads(client.recv())
    finally:
        context.destroy(linger=0)
    if isinstance(answer, dict) and "error" in answer:
        raise RouterError(answer["error"])
    return answer
