# SPDX-License-Identifier: Apache-2.0
"""A router that NetworkPolicies hold for, where there is no API server: `sluice router`, with the objects of a file.

    policed.py FILE router ARGUMENTS…

FILE: JSON, a list of objects for each path of the API; what it holds now is what is. All behind it is what a node of a
Kubernetes cluster runs: the watches, the directory, the policies, the gate.
"""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import sluice.cli.router
from sluice.cli import main
from sluice.control.router import Router
from sluice.kubernetes.api import Api, Object
from sluice.kubernetes.directory import PodDirectory
from sluice.kubernetes.events import Events
from sluice.kubernetes.gate import PolicyGate

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05


class FileApi:
    """As much of an Api as watches use. A version is the file's, by the time of its last change."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def list(self, path: str, **_query: Any) -> tuple[list[Object], str]:
        version = self._version()
        return json.loads(self._file.read_text()).get(path, []), version

    async def watch(self, path: str, version: str, seconds: int, **query: Any) -> AsyncIterator[Object]:
        while (now := self._version()) == version:
            await asyncio.sleep(LOOK_SECONDS)
        yield {"type": "ERROR", "object": {"code": 410, "message": f"{version} is gone, it is {now}"}}

    def _version(self) -> str:
        return str(self._file.stat().st_mtime_ns)


class PolicedRouter(Router):
    """objects: the file."""

    objects: Path

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        api = cast(Api, FileApi(self.objects))
        directory = PodDirectory(api, lambda pod: pod.name, self._pod_changed, self._rules_changed)
        self._gate = PolicyGate(self, directory, Events(api, "here"))
        self._directory = directory
        self.set_gate(self._gate)
        self._watching = asyncio.get_running_loop().create_task(directory.run())

    def _pod_changed(self, old: Any, new: Any) -> None:
        self._gate.moved(old, new)

    def _rules_changed(self) -> None:
        self._gate.enforce()
        names = sorted(policy.name for policy in self._directory.policies.objects.values())
        log.warning("NetworkPolicies: %s", ", ".join(names) or "none")


if __name__ == "__main__":
    PolicedRouter.objects = Path(sys.argv[1])
    vars(sluice.cli.router)["Router"] = PolicedRouter
    sys.exit(main(sys.argv[2:]))
