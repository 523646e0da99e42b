# SPDX-License-Identifier: Apache-2.0
"""How processes begin and end around the device: fork and its kin, signals, exits, dlclose, setuid."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import PATIENCE, RunningRouter, output_of, wait_until
from sluice import shim_path
from sluice.cli import doctor
from sluice.control.operator import RouterError

Program = Callable[[str], Path]


@pytest.mark.parametrize("what", ["fork", "spawn", "segv", "threads"])
def test_life(router: RunningRouter, program: Program, what: str) -> None:
    output_of(router.run("a", program("life"), what))


def sessions_of(router: RunningRouter) -> int:
    return int(router.status("a")["counters"]["sessions"])


@pytest.mark.parametrize(("how", "code"), [("exit", 0), ("_exit", 0), ("abort", 134), ("exec", 0)])
def test_the_end_with_everything_open(router: RunningRouter, program: Program, how: str, code: int) -> None:
    child = router.run("a", program("life"), "end", how)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    # Those of processes that ended before end soon, too.
    wait_until(lambda: sessions_of(router) == 1, "its session alone")
    child.stdin.write("\n")
    child.stdin.flush()
    # After exec the process goes on (cat, with an open input), but not its session.
    wait_until(lambda: sessions_of(router) == 0, "the session's end")
    output_of(child, expected=code)
    counters = router.status("a")["counters"]
    assert [counters[what] for what in ("qps", "cqs", "mrs", "mr_bytes")] == [0, 0, 0, 0]


def test_the_router_ends(program: Program) -> None:
    """Its processes see a device that was unplugged."""
    running = RunningRouter()
    child = running.run("a", program("hold"), "lost")
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    running.process.terminate()
    running.process.wait(PATIENCE)
    output_of(child)
    running.stop()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system that is soon full."""
    place = Path(tempfile.mkdtemp(prefix="disk-", dir="/tmp"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        place.rmdir()
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)
    place.rmdir()


def test_a_full_disk_ends_nobody(small_disk: Path, program: Program, request: pytest.FixtureRequest) -> None:
    """Counters are a file with holes: a page that can't be had would be a signal (SIGBUS)."""
    running = RunningRouter(place=small_disk)
    request.addfinalizer(running.stop)
    output_of(running.run("early", "ibv_devinfo"))
    with pytest.raises(OSError, match="No space left"), (small_disk / "rest").open("wb", buffering=0) as rest:
        while True:
            rest.write(bytes(4096))
    # A page has rows for some.
    with pytest.raises(RouterError, match=f"tenants/late-.*: {os.strerror(errno.ENOSPC)}"):
        for number in range(64):
            running.ask("tenant-add", name=f"late-{number}", policy={})
    assert "Couldn't create QP" in output_of(running.run("early", "ibv_rc_pingpong", "-g", "0"), expected=1)
    (found,) = (each for each in doctor._state(running.state_dir))
    assert (found.verdict, "is full" in found.text) == ("wrong", True)
    (small_disk / "rest").unlink()
    output_of(running.run("late", program("errors")))


def test_dlclose(router: RunningRouter, program: Program) -> None:
    output_of(router.run("a", "env", "-u", "LD_PRELOAD", program("life"), "unload", shim_path()))


def test_setuid_refuses(router: RunningRouter, program: Program, tmp_path: Path) -> None:
    """What the environment says of a tenant's directory doesn't count for a privileged program."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a program of another user's")
    copy = tmp_path / "life"
    shutil.copy(program("life"), copy)
    for directory in (tmp_path, *list(tmp_path.parents)[:2]):
        directory.chmod(0o755)
    plain = output_of(router.run("a", copy, "count", shim_path(), options=("--no-isolate",)))
    assert plain.split() == ["1"]
    os.chown(copy, 65534, 65534)
    copy.chmod(0o4755)
    if os.statvfs(copy).f_flag & os.ST_NOSUID:
        pytest.skip(f"{tmp_path} is mounted nosuid")
    privileged = output_of(router.run("a", copy, "count", shim_path(), options=("--no-isolate",)))
    assert privileged.split()[-1] == "0"
    assert privileged.count("SLUICE_TENANT_DIR doesn't count") == 1, privileged


PYTHON = """
import ctypes, multiprocessing, os, subprocess, sys

verbs = ctypes.CDLL(None)
for name in ("ibv_get_device_list", "ibv_open_device", "ibv_alloc_pd", "ibv_reg_mr"):
    getattr(verbs, name).restype = ctypes.c_void_p


def register(buffer):
    devices = ctypes.cast(verbs.ibv_get_device_list(None), ctypes.POINTER(ctypes.c_void_p))
    context = ctypes.c_void_p(verbs.ibv_open_device(ctypes.c_void_p(devices[0])))
    pd = ctypes.c_void_p(verbs.ibv_alloc_pd(context))
    address = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
    mr = verbs.ibv_reg_mr(pd, ctypes.c_void_p(address), ctypes.c_size_t(len(buffer)), 3)
    assert mr, "ibv_reg_mr"


def child(queue, buffer=None):
    if buffer is None:
        buffer = bytearray(b"x" * 100000)
    before = bytes(buffer[:1])
    register(buffer)
    buffer[:] = b"c" * len(buffer)
    queue.put((before, bytes(buffer[-1:])))


if __name__ == "__main__":
    buffer = bytearray(b"p" * 100000)
    register(buffer)
    for _ in range(10):
        assert subprocess.run(["cat"], input=b"hello", capture_output=True, check=True).stdout == b"hello"
        assert subprocess.run("exit 3", shell=True).returncode == 3
        assert os.system("true") == 0 and os.popen("echo x").read() == "x\\n"
        # A preexec_fn makes subprocess fork.
        subprocess.run(["true"], check=True, preexec_fn=lambda: None)
    for method in sys.argv[1:]:
        context = multiprocessing.get_context(method)
        for _ in range(3):
            queue = context.Queue()
            process = context.Process(target=child, args=(queue, buffer) if method == "fork" else (queue,))
            process.start()
            assert queue.get(timeout=30) == ((b"p" if method == "fork" else b"x"), b"c")
            process.join(30)
            assert process.exitcode == 0, process.exitcode
            assert buffer == b"p" * 100000
            assert context.Pool(2).map(abs, [-1, -2, -3]) == [1, 2, 3]
    print("well")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_python(router: RunningRouter, tmp_path: Path, method: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(PYTHON)
    assert output_of(router.run("a", sys.executable, script, method)).split()[-1] == "well"


def test_nothing_is_printed_into_others(router: RunningRouter) -> None:
    """The shim in a program that never uses it."""
    done = subprocess.run(
        ["sh", "-c", "echo one; (echo two); true | cat"],
        env={**os.environ, "LD_PRELOAD": str(shim_path())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("one\ntwo\n", "")


@pytest.mark.parametrize("options", [[], ["--no-isolate"]], ids=["isolated", "not isolated"])
def test_killing_sluice_run_ends_the_command(router: RunningRouter, options: list[str]) -> None:
    mark = f"{os.getpid()}.25"
    command = [sys.executable, "-m", "sluice", "run", "--state-dir", str(router.state_dir), "--tenant", "killed"]
    child = subprocess.Popen([*command, *options, "--", "sleep", mark])

    def sleeps() -> bool:
        found = False
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                found |= (process / "cmdline").read_bytes() == f"sleep\0{mark}\0".encode()
        return found

    wait_until(sleeps, "the command")
    child.kill()
    child.wait()
    wait_until(lambda: not sleeps(), "its end")


def test_a_tenant_without_a_name_goes_with_its_command(router: RunningRouter) -> None:
    command = [sys.executable, "-m", "sluice", "run", "--state-dir", str(router.state_dir)]
    before = router.ask("status")["tenants"].keys()
    done = subprocess.run([*command, "--", "ibv_devinfo"], capture_output=True, text=True, check=True)
    assert "sluice0" in done.stdout and done.stderr == ""
    assert router.ask("status")["tenants"].keys() == before
