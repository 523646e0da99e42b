# SPDX-License-Identifier: Apache-2.0
"""A container image of this machine's own programs, as an archive that containerd imports."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from sluice import shim_path
from sluice.shim import MUSL

NAME = "sluice.test/perftest:1"
PROGRAMS = ("ib_write_bw", "ib_write_lat", "ib_read_bw", "ib_send_bw", "ibv_devinfo", "mckey")


OPTIONAL = ("ucx_perftest", "ucx_info")
"""Where they are installed, with the modules that they load by dlopen."""
MODULES = "/usr/lib/x86_64-linux-gnu/ucx"


def _closure(path: str) -> set[str]:
    """A program's libraries and its loader."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(/\S+) \(0x", listed))


MUSL_LOADER = Path("/lib/ld-musl-x86_64.so.1")
SOURCE = Path(__file__).parents[1] / "integration" / "ways" / "linked.c"


def _musl_files(folder: Path) -> dict[str, bytes]:
    """A program of musl as in Alpine's images, its loader, and the libibverbs that the image has: an empty one, so that
    all that works comes from what is preloaded. Nothing where there is no compiler for it.
    """
    shim = shim_path().with_name(MUSL)
    if shutil.which("musl-gcc") is None or not shim.exists():
        return {}
    multiarch = subprocess.run(["gcc", "-print-multiarch"], capture_output=True, text=True, check=True).stdout.strip()
    headers = ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{multiarch}"]
    program, library = folder / "linked-musl", folder / "libibverbs.so.1"
    shutil.copyfile(shim, library)
    subprocess.run(["musl-gcc", *headers, "-o", program, SOURCE, f"-L{folder}", f"-l:{library.name}"], check=True)
    subprocess.run(
        ["musl-gcc", "-shared", f"-Wl,-soname,{library.name}", "-o", library, "-x", "c", "/dev/null"], check=True
    )
    return {
        "usr/bin/linked-musl": program.read_bytes(),
        f"usr/local/lib/{library.name}": library.read_bytes(),
        str(MUSL_LOADER).lstrip("/"): MUSL_LOADER.read_bytes(),
    }


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
        with tempfile.TemporaryDirectory() as folder:
            for name, content in _musl_files(Path(folder)).items():
                _file(archive, name, content, 0o755)
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
