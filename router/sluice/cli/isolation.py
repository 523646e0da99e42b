# SPDX-License-Identifier: Apache-2.0
"""Namespaces for a tenant's command: it reaches its own directory and sees no other tenant's processes.

Three processes: this one waits and passes signals on; the first in the new PID
namespace is its init, which reaps; the third is the command. Killed, even by SIGKILL,
this one takes the others along.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# linux/sched.h and sys/mount.h
CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
PR_SET_PDEATHSIG = 1

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    result = _libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3])
    _check(result, f"mount {target}")


def _hide_other_tenants(state_dir: Path, tenant_dir: Path) -> Path:
    """Covers the state directory, all but the tenant's own part. Returns where that is now."""
    own = os.open(tenant_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", str(state_dir), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=64k")
    visible = state_dir / "tenant"
    visible.mkdir()
    _mount(f"/proc/self/fd/{own}", str(visible), None, MS_BIND)
    os.close(own)
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    return visible


def _exec(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Doesn't return. Exit codes as a shell's."""
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvpe(argv[0], list(argv), dict(environment))
    except FileNotFoundError:
        print(f"sluice: {argv[0]}: command not found", file=sys.stderr)
        os._exit(127)
    except OSError as error:
        print(f"sluice: {argv[0]}: {error.strerror}", file=sys.stderr)
        os._exit(126)


def _die_with(parent: int) -> None:
    """The kernel kills this process when its parent dies (prctl(2)), which may have been just now."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() not in (parent, 0):
        os._exit(128 + signal.SIGKILL)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _wait_for(child: int) -> int:
    """Passes signals on to a child, reaps whatever ends, returns the child's exit code."""

    def forward(number: int, _frame: object) -> None:
        # It may have ended just now.
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    while True:
        pid, status = os.wait()
        if pid == child:
            return _exit_code(status)


def _init(argv: Sequence[str], environment: dict[str, str], state_dir: Path, tenant_dir: Path) -> int:
    try:
        _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWIPC), "unshare")
        environment["SLUICE_TENANT_DIR"] = str(_hide_other_tenants(state_dir, tenant_dir))
    except OSError as error:
        print(
            f"sluice: can't isolate the command: {error.strerror} (--no-isolate leaves it out)",
            file=sys.stderr,
        )
        return 125
    child = os.fork()
    if child == 0:
        _exec(argv, environment)
    return _wait_for(child)


def run_command(
    argv: Sequence[str], environment: dict[str, str], state_dir: Path, tenant_dir: Path, isolate: bool
) -> int:
    """Runs the command with the tenant's directory and returns its exit code (128+n for signal n)."""
    sys.stdout.flush()
    # A signal that comes between fork and _wait_for is kept for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    environment["SLUICE_TENANT_DIR"] = str(tenant_dir)
    parent = os.getpid()
    try:
        child = _fork_init() if isolate else os.fork()
    except OSError as error:
        print(f"sluice: can't isolate the command: {error.strerror} (--no-isolate leaves it out)", file=sys.stderr)
        return 125
    if child == 0:
        _die_with(parent)
        if not isolate:
            _exec(argv, environment)
        os._exit(_init(argv, environment, state_dir, tenant_dir))
    return _wait_for(child)


def _fork_init() -> int:
    """fork(2), the child being the first of a new PID namespace.

    All else stays as it is: where the state directory is hidden, and no thread can be made, nobody asks the router.
    """
    here = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWPID), "unshare")
        child = os.fork()
        if child:
            _check(_libc.setns(here, CLONE_NEWPID), "setns")
        return child
    finally:
        os.close(here)
