# SPDX-License-Identifier: Apache-2.0
"""What a container gets: the tenant's directory, the shim, and the environment that leads to both.

As a CDI specification (https://github.com/cncf-tags/container-device-interface) for claims,
as mounts and variables for the device plugin. The container's image and privileges stay as they are.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from sluice.kubernetes import DRIVER
from sluice.kubernetes.parameters import Parameters

VERSION = "0.6.0"
CLASS = "bandwidth"

TENANT_DIR = "/run/sluice"
SHIM = "/usr/lib/sluice/libsluice.so"
PRELOAD_FILE = "/etc/ld.so.preload"
"""Where things are inside the container."""


@dataclass(frozen=True)
class Mount:
    host: str
    container: str
    read_only: bool


@dataclass(frozen=True)
class Injection:
    environment: dict[str, str]
    mounts: list[Mount]


def install_shim(source: Path, directory: Path) -> None:
    """Puts the shim, and the file that preloads it, where containers mount them from.

    Each version is a file of its own that is renamed into place: containers that run keep theirs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for library in sorted(source.glob("libsluice*.so")):
        new = directory / f".{library.name}.new"
        shutil.copyfile(library, new)
        new.chmod(0o755)
        new.replace(directory / library.name)
    preload = directory / ".ld.so.preload.new"
    preload.write_text(f"{SHIM}\n")
    preload.replace(directory / "ld.so.preload")


def injection(tenant_dir: Path, shim_dir: Path, parameters: Parameters) -> Injection:
    library = "libsluice-musl.so" if parameters.libc == "musl" else "libsluice.so"
    # Read-only: sockets can be connected to, and nothing can be left there or taken away.
    mounts = [Mount(str(tenant_dir), TENANT_DIR, True), Mount(str(shim_dir / library), SHIM, True)]
    environment = {"SLUICE_TENANT_DIR": TENANT_DIR}
    if parameters.preload == "file":
        mounts.append(Mount(str(shim_dir / "ld.so.preload"), PRELOAD_FILE, True))
    else:
        environment["LD_PRELOAD"] = SHIM
    return Injection(environment, mounts)


class Specifications:
    """The CDI directory's files of ours, one per claim."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def _path(self, uid: str) -> Path:
        return self._directory / f"{DRIVER}-{uid}.json"

    def write(self, uid: str, edits: Injection) -> str:
        """Returns the device's qualified name."""
        mounts = [
            {
                "hostPath": mount.host,
                "containerPath": mount.container,
                "options": ["bind", "ro" if mount.read_only else "rw", "nosuid", "nodev"],
            }
            for mount in edits.mounts
        ]
        specification = {
            "cdiVersion": VERSION,
            "kind": f"{DRIVER}/{CLASS}",
            "devices": [
                {
                    "name": uid,
                    "containerEdits": {
                        "env": [f"{name}={value}" for name, value in edits.environment.items()],
                        "mounts": mounts,
                    },
                }
            ],
        }
        path = self._path(uid)
        # The runtime reads *.json and *.yaml: it never sees half a file.
        new = path.with_suffix(".new")
        new.write_text(json.dumps(specification, indent=1))
        new.replace(path)
        return f"{DRIVER}/{CLASS}={uid}"

    def remove(self, uid: str) -> None:
        self._path(uid).unlink(missing_ok=True)
