# SPDX-License-Identifier: Apache-2.0
"""sluice doctor: what is wrong with this node, and what would put it right."""

import argparse
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sluice import __version__, shim_path
from sluice.cli.terminal import GREEN, RED, YELLOW, styled
from sluice.control.operator import RouterAbsent, RouterDead, RouterError, RouterSilent, ask
from sluice.engine.counters import Counters

OLDEST_KERNEL = (5, 13)
"""F_SEAL_FUTURE_WRITE 5.1, pidfd_open 5.3, userfaultfd's write protection of shared memory 5.13 (man pages)."""
USERFAULTFD = Path("/sys/class/misc/userfaultfd")
PROBE_SECONDS = 30

PROBE = """
import ctypes, os, sys
verbs = ctypes.CDLL(None, use_errno=True)
for name in ("ibv_get_device_list", "ibv_open_device", "ibv_alloc_pd", "ibv_reg_mr"):
    getattr(verbs, name).restype = ctypes.c_void_p
def need(value, what):
    if not value:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")
    return value
count = ctypes.c_int()
devices = need(verbs.ibv_get_device_list(ctypes.byref(count)), "ibv_get_device_list")
need(count.value == 1, "ibv_get_device_list")
device = ctypes.cast(devices, ctypes.POINTER(ctypes.c_void_p))[0]
context = need(verbs.ibv_open_device(ctypes.c_void_p(device)), "ibv_open_device")
pd = need(verbs.ibv_alloc_pd(ctypes.c_void_p(context)), "ibv_alloc_pd")
memory = ctypes.create_string_buffer(1 << 20)
need(verbs.ibv_reg_mr(ctypes.c_void_p(pd), memory, ctypes.c_size_t(1 << 20), 1), "ibv_reg_mr")
"""
"""A tenant's way through shim, router and engine: device, protection domain, memory region."""


@dataclass(frozen=True)
class Finding:
    """verdict: ok, note (works, but could be better) or wrong. advice: what to do about it."""

    check: str
    verdict: str
    text: str
    advice: str = ""


def add_to(commands: Any, state_dir: Path) -> None:
    command = commands.add_parser(
        "doctor",
        help="find what is wrong with this node",
        description="Looks at the kernel, the installation, the state directory, the router and its tenants, and "
        "goes a tenant's way through all of them. Exit code 1 where something is wrong.",
    )
    command.add_argument("--state-dir", type=Path, default=state_dir, help="the router's (default: %(default)s)")
    command.add_argument("--json", action="store_true", help="for machines")
    command.set_defaults(run=run)


def _kernel(_state_dir: Path) -> Iterator[Finding]:
    release = platform.release()
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if version < OLDEST_KERNEL:
        yield Finding("kernel", "wrong", release, "Linux 5.13 or newer is needed")
    else:
        yield Finding("kernel", "ok", release)


def _userfaultfd(_state_dir: Path) -> Iterator[Finding]:
    loss = "system calls that write to memory while it is being registered fail with EFAULT"
    if os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        yield Finding("userfaultfd", "ok", "/dev/userfaultfd can be opened")
    elif (USERFAULTFD / "dev").exists() and "KUBERNETES_SERVICE_HOST" in os.environ:
        # This is a pod, whose container was given none.
        yield Finding("userfaultfd", "ok", "the kernel has it; this container has none, those of pods that use RDMA do")
    elif Path("/dev/userfaultfd").exists():
        yield Finding(
            "userfaultfd",
            "note",
            f"/dev/userfaultfd can't be opened: {loss}",
            "let the router's user open /dev/userfaultfd, or run the router as root",
        )
    else:
        yield Finding("userfaultfd", "note", f"no /dev/userfaultfd: {loss}", "Linux 6.1 or newer has it")


def _cores(_state_dir: Path) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        yield Finding("cores", "note", "one core: the engine and applications take turns", "give the node two or more")
    else:
        yield Finding("cores", "ok", f"{cores} cores")


def _shim(_state_dir: Path) -> Iterator[Finding]:
    path = shim_path()
    if not path.exists():
        yield Finding("shim", "wrong", f"{path} is not there", "install Sluice again (make setup)")
        return
    environment = {**os.environ, "LD_PRELOAD": str(path)}
    result = subprocess.run(
        [sys.executable, "-S", "-c", ""], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode or result.stderr:
        text = result.stderr.strip() or f"exit code {result.returncode}"
        yield Finding("shim", "wrong", f"can't be preloaded: {text}", "is it built for this machine's C library?")
    else:
        yield Finding("shim", "ok", str(path))


def _state(state_dir: Path) -> Iterator[Finding]:
    if not state_dir.exists():
        yield Finding(
            "state directory",
            "note",
            f"{state_dir} is not there: no router has run with it",
            "sluice router, or sluice run, makes it; --state-dir names another one",
        )
    elif not os.access(state_dir, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("state directory", "wrong", f"{state_dir} is another user's", "run this as the router's user")
    elif (room := os.statvfs(state_dir)).f_bavail == 0 or (room.f_files and room.f_favail == 0):
        yield Finding(
            "state directory",
            "wrong",
            f"{state_dir}: its file system is full: tenants and queue pairs that are there go on, new ones are refused",
            f"make room there (df {state_dir}; df -i)",
        )
    else:
        yield Finding("state directory", "ok", str(state_dir))


def _router(state_dir: Path) -> Iterator[Finding]:
    log = state_dir / "router.log"
    look = f"its log is {log}" if log.exists() else "its log is where its output goes"
    try:
        status = ask(state_dir, "status")
    except RouterDead as error:
        yield Finding("router", "wrong", str(error), look)
        return
    except RouterSilent as error:
        yield Finding("router", "wrong", str(error), error.advice)
        return
    except RouterAbsent as error:
        yield Finding("router", "note", str(error), "start it: sluice router")
        return
    except RouterError as error:
        yield Finding("router", "wrong", str(error), f"it is of another version than this command ({__version__})?")
        return
    yield Finding("router", "ok", f"pid {status['pid']}, {len(status['tenants'])} tenants")
    yield from _orchestrator(status)
    yield from _cluster(status)
    yield from _tenants(state_dir, status)


def _orchestrator(status: dict[str, Any]) -> Iterator[Finding]:
    """What Kubernetes and this node have of each other."""
    part = status.get("orchestrator")
    if not part:
        return
    for wrong in part["wrong"]:
        yield Finding("Kubernetes", "wrong", wrong, "docs/kubernetes.md, When something is wrong")
    if not part["wrong"]:
        yield Finding("Kubernetes", "ok", f"node {part['node']}, {part['grants']} claims or allocations")


def _cluster(status: dict[str, Any]) -> Iterator[Finding]:
    """The links to the other nodes' routers."""
    part = status.get("cluster")
    if not part:
        return
    if part.get("outdated"):
        yield Finding("this node's entry", "wrong", part["outdated"], "restart this router, or undo the change")
    peers = part["peers"]
    down = {name: peer for name, peer in peers.items() if not peer["alive"]}
    misunderstood = {name: peer["misunderstood"] for name, peer in peers.items() if peer["misunderstood"]}
    for name, why in sorted(misunderstood.items()):
        yield Finding(
            f"node {name}",
            "wrong",
            f"its router is of another version, and its tenants may not be reached: {why}",
            "run one version on all nodes",
        )
    for name, peer in sorted(down.items()):
        if name in misunderstood:
            continue
        address, _, port = peer["address"].rpartition(":")
        yield Finding(
            f"node {name}",
            # One that is off is its own trouble.
            "wrong" if len(down) == len(peers) else "note",
            f"its router does not answer at {peer['address']}: tenants there can't be reached",
            f"does it run? Can TCP ports {port} and {int(port) + 1} of {address} be reached from here, past firewalls? "
            "Does its log tell that it refuses this node's key?",
        )
    for name, why in sorted(part.get("connections", {}).get("unreachable", {}).items()):
        if name in down or name not in peers:
            continue
        yield Finding(
            f"node {name}",
            "wrong",
            f"its router answers, its data port could not be reached when it was last tried: {why}",
            "is that TCP port open from here, past firewalls? The two nodes' tenants can't talk without it",
        )
    if part.get("strangers"):
        yield Finding(
            "other nodes' keys",
            "note",
            f"{part['strangers']} times a router was refused whose key is no node's of the cluster",
            "the log has its address and key: is it a node that isn't (or is twice) in the cluster?",
        )
    if peers and not down and not misunderstood:
        yield Finding("other nodes", "ok", f"{len(peers)} of {len(peers)} routers answer")


def _tenants(state_dir: Path, status: dict[str, Any]) -> Iterator[Finding]:
    for name, tenant in sorted(status["tenants"].items()):
        path = state_dir / "tenants" / name / "descriptors"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                probe.settimeout(5)
                probe.connect(str(path))
        except OSError as error:
            yield Finding(
                f"tenant {name}", "wrong", f"{path}: {error.strerror or error}", "who removed it? Restart the router"
            )
            continue
        errors = sum(device["counters"]["errors"] for device in tenant["devices"].values())
        if errors:
            yield Finding(
                f"tenant {name}",
                "note",
                f"{errors} operations ended with an error",
                "sluice status --qps shows which queue pairs; the application knows why",
            )


def _counters(state_dir: Path) -> Iterator[Finding]:
    path = state_dir / "counters"
    if not path.exists():
        return
    try:
        Counters(path)
    except (OSError, ValueError) as error:
        yield Finding("counters", "wrong", str(error), "router and command are of different versions?")
    else:
        yield Finding("counters", "ok", str(path))


def _way_through(state_dir: Path) -> Iterator[Finding]:
    """A tenant's own view, from a process with the shim."""
    name = f"doctor-{os.getpid()}"
    try:
        new = ask(state_dir, "tenant-add", name=name, policy={})
    except (RouterAbsent, RouterError):
        return  # the router's own finding says it
    environment = {**os.environ, "LD_PRELOAD": str(shim_path()), "SLUICE_TENANT_DIR": new["path"], "SLUICE_DEBUG": "1"}
    try:
        result = subprocess.run(
            [sys.executable, "-c", PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        text = "" if result.returncode == 0 else result.stderr.strip()
    except subprocess.TimeoutExpired:
        text = f"no answer within {PROBE_SECONDS} s"
    finally:
        with suppress(RouterAbsent, RouterError):
            ask(state_dir, "tenant-remove", name=name, force=True)
    if text:
        yield Finding("a tenant's device", "wrong", text, "the router's log says which request failed")
    else:
        yield Finding("a tenant's device", "ok", "opened, and memory registered, as a tenant does")


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    _kernel,
    _userfaultfd,
    _cores,
    _shim,
    _state,
    _router,
    _counters,
    _way_through,
)

COLOURS = {"ok": GREEN, "note": YELLOW, "wrong": RED}


def run(options: argparse.Namespace) -> int:
    state_dir = options.state_dir.absolute()
    findings = [finding for check in CHECKS for finding in check(state_dir)]
    wrong = any(finding.verdict == "wrong" for finding in findings)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return int(wrong)
    for finding in findings:
        verdict = styled(COLOURS[finding.verdict], f"{finding.verdict:<6}")
        print(f"{verdict}{finding.check:<18} {finding.text}")
        if finding.advice:
            print(f"{'':<25}→ {finding.advice}")
    return int(wrong)
