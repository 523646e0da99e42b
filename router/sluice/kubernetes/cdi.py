# SPDX-License-Identifier: Apache-2.0
"""What a container gets: the tenant's directory, the shim, the environment that leads to both, and /dev/userfaultfd.

As a CDI specification (https://github.com/cncf-tags/container-device-interface) for claims,
as mounts, variables and devices for the device plugin. The container's image and privileges stay as they are.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sluice.kubernetes import DRIVER
from sluice.kubernetes.parameters import Parameters
from sluice.shim import MUSL, NAMES, PRELOAD

VERSION = "0.6.0"
CLASS = "bandwidth"

TENANT_DIR = "/run/sluice"
LIBRARIES = "/usr/lib/sluice"
PRELOAD_FILE = "/etc/ld.so.preload"
"""Where things are inside the container."""


@dataclass(frozen=True)
class Mount:
    host: str
    container: str
    read_only: bool


@dataclass(frozen=True)
class Device:
    """A character device of the node."""

    path: str
    major: int
    minor: int


@dataclass(frozen=True)
class Injection:
    environment: dict[str, str]
    mounts: list[Mount]
    devices: list[Device]


def userfaultfd(sysfs: Path = Path("/sys")) -> list[Device]:
    """What the shim holds writers off with while it moves memory (Linux 6.1); nothing where the kernel has none.

    A pod's seccomp profile forbids the system call, and an unprivileged router may not open the device in its place.
    """
    try:
        major, _, minor = (sysfs / "class/misc/userfaultfd/dev").read_text().strip().partition(":")
        return [Device("/dev/userfaultfd", int(major), int(minor))]
    except (OSError, ValueError):
        return []


def install_shim(source: Path, directory: Path) -> None:
    """Puts what containers mount into one folder for each C library: glibc, musl.

    A container sees its folder, not the files of one version: programs that are started after an
    upgrade load the shim of the router that they will speak to.
    """
    for libc, names in (("glibc", {name: name for name in NAMES}), ("musl", dict.fromkeys(NAMES, MUSL))):
        folder = directory / libc
        folder.mkdir(parents=True, exist_ok=True)
        # musl tells libraries apart by their inodes: all names are links to one file.
        first: dict[str, Path] = {}
        for name, built in names.items():
            new = folder / f".{name}.new"
            new.unlink(missing_ok=True)
            if built in first:
                os.link(first[built], new)
            elif (source / built).exists():
                shutil.copyfile(source / built, new)
                first[built] = folder / name
            else:
                continue
            new.chmod(0o755)
            # Processes that run keep the file that they have.
            new.replace(folder / name)
        preload = folder / ".ld.so.preload.new"
        preload.write_text(f"{preloaded(libc)}\n")
        preload.replace(folder / "ld.so.preload")


def preloaded(libc: str) -> str:
    """As the container sees it. With musl one library is all."""
    return ":".join(f"{LIBRARIES}/{name}" for name in (PRELOAD[:1] if libc == "musl" else PRELOAD))


def injection(tenant_dir: Path, shim_dir: Path, parameters: Parameters) -> Injection:
    libc = parameters.libc or "glibc"
    # Read-only: sockets can be connected to, and nothing can be left there or taken away.
    mounts = [Mount(str(tenant_dir), TENANT_DIR, True), Mount(str(shim_dir / libc), LIBRARIES, True)]
    environment = {"SLUICE_TENANT_DIR": TENANT_DIR}
    if parameters.preload == "file":
        mounts.append(Mount(str(shim_dir / libc / "ld.so.preload"), PRELOAD_FILE, True))
    else:
        environment["LD_PRELOAD"] = preloaded(libc)
    return Injection(environment, mounts, userfaultfd())


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
        devices = [
            # Its number is said: the container gets a node of its own, which any user of it may open.
            {"path": each.path, "type": "c", "major": each.major, "minor": each.minor, "fileMode": 0o666}
            for each in edits.devices
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
                        **({"deviceNodes": devices} if devices else {}),
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
