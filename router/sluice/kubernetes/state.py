# SPDX-License-Identifier: Apache-2.0
"""What was granted to whom, on disk: a restarted router goes on where the last one ended."""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sluice.kubernetes.claim import Share
from sluice.kubernetes.parameters import Parameters

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grant:
    """A prepared claim, or what a pod got from the device plugin.

    uid: the claim's, or the pod's. claim: its name; empty for a device plugin's. pod, pod_uid: for whom it was made.
    devices: the device plugin's units. twins: directories beside the tenant's own, which the pod's containers mount.
    """

    uid: str
    namespace: str
    claim: str
    pod: str
    pod_uid: str
    tenant: str
    shares: tuple[Share, ...]
    devices: tuple[str, ...] = field(default=())
    twins: tuple[str, ...] = field(default=())


def _share(fields: dict[str, object]) -> Share:
    said = {}
    for name in ("parameters", "bounds"):
        # A router that was older may have written it.
        parameters = fields.pop(name, {})
        assert isinstance(parameters, dict)
        said[name] = Parameters(**parameters)
    return Share(**fields, **said)  # type: ignore[arg-type]


class State:
    """One file per grant, written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def _path(self, uid: str) -> Path:
        return self._directory / f"{uid}.json"

    def save(self, grant: Grant) -> None:
        path = self._path(grant.uid)
        new = path.with_suffix(".new")
        with new.open("w") as file:
            json.dump(asdict(grant), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def remove(self, uid: str) -> None:
        self._path(uid).unlink(missing_ok=True)

    def load(self) -> Iterator[Grant]:
        """What is damaged or of another version is left out: the kubelet then asks again."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                fields = json.loads(path.read_text())
                shares = tuple(_share(share) for share in fields.pop("shares"))
                lists = {name: tuple(fields.get(name, ())) for name in ("devices", "twins")}
                yield Grant(**fields | lists | {"shares": shares})
            except (ValueError, KeyError, TypeError, AssertionError, OSError) as error:
                log.warning("%s: not a grant of this version, left out: %s", path, error)
