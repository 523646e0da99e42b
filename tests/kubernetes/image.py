# SPDX-License-Identifier: Apache-2.0
"""A container image of this machine's own programs, as an archive that containerd imports."""

import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

NAME = "sluice.test/perftest:1"
PROGRAMS = ("ib_write_bw", "ib_write_lat", "ib_read_bw", "ib_send_bw", "ibv_devinfo")


OPTIONAL = ("ucx_perftest", "ucx_info")
"""Where they are installed, with the modules that they load by dlopen."""
MODULES = "/usr/lib/x86_64-linux-gnu/ucx"


def _closure(path: str) -> set[str]:
    """A program's libraries and its loader."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(/\S+) \(0x", listed))


def _file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _layer() -> bytes:
    programs = [f"/usr/bin/{name}" for name in PROGRAMS]
    programs += [f"/usr/bin/{name}" for name in OPTIONAL if Path(f"/usr/bin/{name}").exists()]
    modules = [str(path) for path in sorted(Path(MODULES).glob("*.so*"))]
    files = {library for path in [*programs, *modules] for library in _closure(path)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in [*programs, *modules, *sorted(files)]:
            _file(archive, path.lstrip("/"), Path(path).resolve().read_bytes(), 0o755)
        _file(archive, "bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
        for name in ("sh", "sleep", "cat", "ls", "env", "id", "ip", "timeout", "grep", "touch", "nc"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        _file(archive, "etc/passwd", b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
        entry = tarfile.TarInfo("tmp")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(entry)
    return buffer.getvalue()


def write_image(path: Path) -> None:
    layer = _layer()
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sleep", "infinity"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    name = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": [NAME], "Layers": [f"{digest}.tar"]}]
    with tarfile.open(path, "w") as archive:
        _file(archive, f"{name}.json", config)
        _file(archive, f"{digest}.tar", layer)
        _file(archive, "manifest.json", json.dumps(manifest).encode())
