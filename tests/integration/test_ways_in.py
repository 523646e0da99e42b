# SPDX-License-Identifier: Apache-2.0
"""How a process gets the shim: preloaded, searched first, linked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import RunningRouter, output_of
from sluice import shim_path
from sluice.shim import LIBRARIES, preload, with_shim

BUILD = Path(os.environ.get("SLUICE_BUILD", "build")).absolute()
WAYS = BUILD / "tests/integration/ways"
PYTHON = "/usr/bin/python3"
CTYPES = (
    "import ctypes, sys; v = ctypes.CDLL(sys.argv[1]); n = ctypes.c_int()\n"
    "v.ibv_get_device_list(ctypes.byref(n)); print(n.value)"
)
LINKED = "sluice0 SLUICE0000000001"


@pytest.fixture(scope="module")
def tenant_dir(router: RunningRouter) -> Path:
    return Path(router.ask("tenant-add", name="a", policy={})["path"])


def run(*argv: str | Path, **environment: str | Path) -> str:
    """Runs a program with this environment and no other; returns its output."""
    done = subprocess.run(
        argv,
        env={"PATH": "/usr/bin:/bin", **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_preloaded(tenant_dir: Path) -> None:
    assert run(WAYS / "ways-linked", LD_PRELOAD=preload(), SLUICE_TENANT_DIR=tenant_dir) == LINKED


def test_preloaded_the_real_library_is_not_loaded(tenant_dir: Path) -> None:
    loaded = run("ldd", "/usr/bin/ibv_devinfo", LD_PRELOAD=preload())
    assert not [line for line in loaded.splitlines() if "libibverbs" in line and "sluice" not in line], loaded


@pytest.mark.parametrize("name", ["libibverbs.so.1", "libibverbs.so"])
@pytest.mark.parametrize("way", ["run", "preload", "search"])
def test_dlopen_and_dlsym(router: RunningRouter, tenant_dir: Path, way: str, name: str) -> None:
    """By the SONAME of what is preloaded, by LD_LIBRARY_PATH, or both as sluice run does."""
    if way == "run":
        assert output_of(router.run("a", WAYS / "ways-dlopen", name)).strip() == "sluice0"
        return
    if way == "preload" and name == "libibverbs.so":
        pytest.skip("another name than the SONAME needs LD_LIBRARY_PATH")
    settings = {"LD_PRELOAD": preload()} if way == "preload" else {"LD_LIBRARY_PATH": str(LIBRARIES)}
    assert run(WAYS / "ways-dlopen", name, SLUICE_TENANT_DIR=tenant_dir, **settings) == "sluice0"


def test_dlopen_alone(tenant_dir: Path) -> None:
    """By its path: nothing of the environment leads there."""
    assert run(WAYS / "ways-alone", shim_path(), SLUICE_TENANT_DIR=tenant_dir) == "alone"


def test_dlopen_finds_every_version(router: RunningRouter) -> None:
    for symbol, version in (("ibv_reg_mr_iova2", "IBVERBS_1.8"), ("ibv_create_comp_channel", "IBVERBS_1.0")):
        output_of(router.run("a", WAYS / "ways-dlopen", "libibverbs.so.1", symbol, version))


@pytest.mark.parametrize("way", ["run", "search"])
def test_ctypes(router: RunningRouter, tenant_dir: Path, way: str) -> None:
    argv = (PYTHON, "-c", CTYPES, "libibverbs.so.1")
    if way == "run":
        assert output_of(router.run("a", *argv)).strip() == "1"
    else:
        assert run(*argv, LD_LIBRARY_PATH=LIBRARIES, SLUICE_TENANT_DIR=tenant_dir) == "1"


@pytest.mark.parametrize(
    ("argv", "text"),
    [(("ibv_devinfo",), "sluice0"), (("sh", "-c", "ib_write_bw --version || true"), "Version")],
    ids=lambda argv: argv[0],
)
def test_searched_first(tenant_dir: Path, argv: tuple[str, ...], text: str) -> None:
    """Also what links libmlx5 and libefa, which are bound at once against the private part of libibverbs."""
    assert text in run(*argv, LD_LIBRARY_PATH=LIBRARIES, SLUICE_TENANT_DIR=tenant_dir)


def test_beside_what_an_image_preloads(router: RunningRouter, tmp_path: Path) -> None:
    source = tmp_path / "own.c"
    source.write_text("int own(void) { return 0; }\n")
    own = tmp_path / "own.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", own, source], check=True)
    environment = with_shim({"LD_PRELOAD": str(own), "LD_LIBRARY_PATH": "/opt/lib"})
    assert environment["LD_PRELOAD"] == f"{preload()}:{own}"
    assert environment["LD_LIBRARY_PATH"] == f"{LIBRARIES}:/opt/lib"
    text = output_of(router.run("a", "sh", "-c", f"LD_PRELOAD=$LD_PRELOAD:{own} {WAYS / 'ways-linked'}"))
    assert text.strip() == LINKED


def test_ld_so_preload(router: RunningRouter, tenant_dir: Path, tmp_path: Path) -> None:
    """The file /etc/ld.so.preload, mounted over in a namespace of its own, where LD_PRELOAD is the image's."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file needs root")
    listing = tmp_path / "ld.so.preload"
    listing.write_text(preload().replace(":", "\n") + "\n")
    script = (
        "[ -e /etc/ld.so.preload ] || { mount -t tmpfs -o size=1m none /mnt && mkdir /mnt/u /mnt/w && "
        "mount -t overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w none /etc && touch /etc/ld.so.preload; } && "
        f"mount --bind {listing} /etc/ld.so.preload && exec {WAYS / 'ways-linked'}"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "SLUICE_TENANT_DIR": str(tenant_dir)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount" in done.stderr:
        pytest.skip(f"can't mount a file over /etc: {done.stderr.strip()}")
    assert done.stdout.strip() == LINKED, done.stderr


def link(program: Path, *arguments: str | Path) -> None:
    """With libsluice.a, as its pkg-config file says."""
    flags = run("pkg-config", "--static", "--cflags", "--libs", "sluice", PKG_CONFIG_PATH=LIBRARIES / "pkgconfig")
    subprocess.run(["cc", "-o", program, *arguments, *flags.split()], check=True)


@pytest.mark.parametrize("option", ["-pie", "-static", "-static-pie"])
def test_linked_statically(tenant_dir: Path, tmp_path: Path, option: str) -> None:
    """The program then needs neither libibverbs nor a preloaded library; with -static no library at all."""
    program = tmp_path / "linked"
    link(program, option, "-fPIE", Path(__file__).parent / "ways/linked.c")
    needed = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True).stdout
    assert "ibverbs" not in needed
    assert ("NEEDED" in needed) == (option == "-pie")
    assert run(program, SLUICE_TENANT_DIR=tenant_dir) == LINKED


@pytest.mark.parametrize("option", ["-pie", "-static"])
def test_linked_statically_memory_moves(tenant_dir: Path, tmp_path: Path, option: str) -> None:
    program, sources = tmp_path / "moves", Path(__file__).parent / "verbs"
    link(program, option, "-fPIE", "-O1", sources / "moves.c", sources / "pair.c")
    assert run(program, SLUICE_TENANT_DIR=tenant_dir) == "as any other"


@pytest.mark.parametrize("option", ["-pie", "-static"])
def test_linked_statically_all_data_registered_and_forked(tenant_dir: Path, tmp_path: Path, option: str) -> None:
    """What the library itself knows lies in registered memory too: no child may write there what its parent reads."""
    program, sources = tmp_path / "statics", Path(__file__).parent
    link(program, option, "-fPIE", f"-I{sources / 'verbs'}", sources / "ways/statics.c", sources / "verbs/pair.c")
    assert run(program, SLUICE_TENANT_DIR=tenant_dir) == "apart"


def test_musl(tenant_dir: Path, tmp_path: Path) -> None:
    """A program and a shim without glibc, as in Alpine's images."""
    if shutil.which("musl-gcc") is None or not (LIBRARIES / "libsluice-musl.so").exists():
        pytest.skip("musl-tools is not installed")
    multiarch = subprocess.run(["gcc", "-print-multiarch"], capture_output=True, text=True, check=True).stdout.strip()
    headers = ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{multiarch}"]
    (tmp_path / "libibverbs.so.1").symlink_to(LIBRARIES / "libsluice-musl.so")
    source, program = Path(__file__).parent / "ways/linked.c", tmp_path / "linked"
    subprocess.run(["musl-gcc", *headers, "-o", program, source, tmp_path / "libibverbs.so.1"], check=True)
    assert run(program, LD_LIBRARY_PATH=tmp_path, SLUICE_TENANT_DIR=tenant_dir) == LINKED


SOURCES = Path(__file__).parent
BYTES_STAY = "all bytes as they were\n"


def need(command: str) -> None:
    """Skips where it isn't installed; make test installs it."""
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")


def test_java(router: RunningRouter, tmp_path: Path) -> None:
    """By a native library that is linked to libibverbs."""
    need("javac")
    home = Path(shutil.which("javac") or "").resolve().parents[1]
    rooms = (home / "include", home / "include/linux", SOURCES / "ways", SOURCES / "verbs")
    sources = (SOURCES / "ways/jni.c", SOURCES / "ways/loop.c", SOURCES / "verbs/pair.c")
    library = tmp_path / "libloop.so"
    headers = [f"-I{room}" for room in rooms]
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, *headers, *sources, "-libverbs"], check=True)
    subprocess.run(["javac", "-d", tmp_path, SOURCES / "ways/Loop.java"], check=True)
    assert output_of(router.run("a", "java", "-cp", tmp_path, "Loop", library)) == BYTES_STAY


def test_go(router: RunningRouter, tmp_path: Path) -> None:
    need("go")
    for source in ("ways/loop.go", "ways/loop.c", "ways/loop.h", "verbs/pair.c", "verbs/pair.h"):
        shutil.copy(SOURCES / source, tmp_path)
    (tmp_path / "go.mod").write_text("module loop\n\ngo 1.19\n")
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "CGO_ENABLED": "1"}
    subprocess.run(["go", "build", "-o", "loop", "."], cwd=tmp_path, env=environment, check=True)
    assert output_of(router.run("a", tmp_path / "loop")) == BYTES_STAY


def test_pyverbs(router: RunningRouter) -> None:
    script = """
from pyverbs.device import Context, get_device_list
from pyverbs.pd import PD
from pyverbs.mr import MR
from pyverbs.cq import CQ
from pyverbs.qp import QP, QPCap, QPInitAttr
import pyverbs.enums as e
print([device.name.decode() for device in get_device_list()])
with Context(name="sluice0") as context:
    attr = context.query_device()
    port = context.query_port(1)
    gid = context.query_gid(1, 0)
    pd = PD(context)
    mr = MR(pd, 65536, e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE)
    mr.write("words", 5)
    cq = CQ(context, 16)
    qp = QP(pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=cq, rcq=cq, cap=QPCap()))
    print(mr.read(5, 0), port.state == e.IBV_PORT_ACTIVE, attr.max_qp > 0, gid.gid != "", qp.qp_num > 0)
"""
    if subprocess.run([PYTHON, "-c", "import pyverbs"], capture_output=True, check=False).returncode:
        pytest.skip("python3-pyverbs is not installed")
    lines = output_of(router.run("a", PYTHON, "-c", script)).splitlines()
    assert lines == ["['sluice0']", "b'words' True True True True"]


def test_without_the_router(tmp_path: Path) -> None:
    """The shim builds by itself."""
    source = Path(__file__).parents[2]
    subprocess.run(["meson", "setup", "-Drouter=false", tmp_path / "build", source], check=True, capture_output=True)
    libraries = ("shim/libsluice.so", "shim/libsluice.a")
    subprocess.run(["ninja", "-C", tmp_path / "build", *libraries], check=True, capture_output=True)
    assert (tmp_path / "build/shim/libsluice.so").exists() and (tmp_path / "build/shim/libsluice.a").exists()
    assert not (tmp_path / "build/csrc").exists()


def test_needs_only_libc() -> None:
    needed = subprocess.run(["readelf", "-d", shim_path()], capture_output=True, text=True, check=True).stdout
    assert "soname: [libibverbs.so.1]" in needed
    assert all("libc.so" in line or "ld-linux" in line for line in needed.splitlines() if "NEEDED" in line)
