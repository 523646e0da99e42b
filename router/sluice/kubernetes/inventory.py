# SPDX-License-Identifier: Apache-2.0
"""The node's NICs and their bandwidth: from the configuration, else from the kernel."""

import re
from dataclasses import dataclass
from pathlib import Path

from sluice.device.nic import device_and_port, nic_name, ports

SYSFS = Path("/sys")
_LABEL = re.compile(r"[^a-z0-9-]+")


@dataclass(frozen=True)
class Nic:
    """name: a DNS label, the device's name in the cluster. interface: the kernel's name, of a further port of an RDMA
    device "NAME:PORT". Bits per second.

    known: the kernel had it when the router started.
    """

    name: str
    bandwidth_bps: int
    interface: str
    kind: str = "ethernet"
    numa_node: int = -1
    rdma: bool = False
    known: bool = False


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _label(name: str) -> str:
    return _LABEL.sub("-", name.lower()).strip("-")[:63]


def _numa(device: Path) -> int:
    text = _read(device / "numa_node")
    return int(text) if text.lstrip("-").isdigit() else -1


def rdma_nics(sysfs: Path = SYSFS) -> list[Nic]:
    """Ports of RDMA devices that are up; the rate as in "100 Gb/sec (4X EDR)"."""
    found = []
    for device in sorted((sysfs / "class/infiniband").glob("*")):
        for number in ports(device.name, device.parent):
            port, name = device / "ports" / str(number), nic_name(device.name, number)
            rate = re.match(r"([\d.]+) Gb/sec", _read(port / "rate"))
            if rate and "ACTIVE" in _read(port / "state"):
                bps = int(float(rate.group(1)) * 10**9)
                kind = _read(port / "link_layer").lower() or "ethernet"
                found.append(Nic(_label(name), bps, name, kind, _numa(device / "device"), rdma=True, known=True))
    return found


def default_interfaces(proc: Path = Path("/proc")) -> list[str]:
    """Network interfaces that have a default route (proc(5), net/route)."""
    rows = [line.split() for line in _read(proc / "net/route").splitlines()[1:]]
    return sorted({row[0] for row in rows if len(row) > 7 and row[1] == "00000000" and row[7] == "00000000"})


def carried_bps(speed_bps: int, mtu: int) -> int:
    """What a link carries of TCP's own bytes, in steps of 100 Mbit/s: a frame has 38 bytes around it, and 52 of
    headers in it. A guarantee is of what applications send, and couldn't be kept if all of a link's bits were given.
    """
    return speed_bps * (mtu - 52) // (mtu + 38) // 10**8 * 10**8 or speed_bps


def ethernet_nics(sysfs: Path = SYSFS, proc: Path = Path("/proc")) -> list[Nic]:
    """Interfaces with a default route that tell their speed (Mbit/s; virtual ones tell -1): what they carry by it."""
    found = []
    for name in default_interfaces(proc):
        speed = _read(sysfs / "class/net" / name / "speed")
        if speed.isdigit() and int(speed) > 0:
            device = sysfs / "class/net" / name / "device"
            mtu, bps = _read(sysfs / "class/net" / name / "mtu"), int(speed) * 10**6
            bps = carried_bps(bps, int(mtu)) if mtu.isdigit() else bps
            found.append(Nic(_label(name), bps, name, numa_node=_numa(device), known=True))
    return found


def configured(interface: str, bandwidth_bps: int, sysfs: Path = SYSFS) -> Nic:
    """A NIC whose bandwidth the operator says; what else there is to say of it, the kernel may know. ValueError."""
    name = _label(interface)
    if not name:
        raise ValueError(f"{interface!r} is not a NIC's name: write it as the kernel does, for instance mlx5_0 or eth0")
    rdma, number = device_and_port(interface)
    device = sysfs / "class/infiniband" / rdma
    if device.exists():
        kind = _read(device / "ports" / str(number) / "link_layer").lower() or "ethernet"
        return Nic(name, bandwidth_bps, interface, kind, _numa(device / "device"), rdma=True, known=True)
    device = sysfs / "class/net" / interface
    return Nic(name, bandwidth_bps, interface, numa_node=_numa(device / "device"), known=device.exists())


def trouble(nic: Nic, sysfs: Path = SYSFS) -> str:
    """Why a NIC can't be used now; empty where it can, or where the kernel never knew its name."""
    device, number = device_and_port(nic.interface)
    port = sysfs / "class/infiniband" / device / "ports" / str(number)
    if port.exists():
        # As in "4: ACTIVE".
        state = _read(port / "state").partition(": ")[2] or "unknown"
        return "" if state == "ACTIVE" else f"port {number} of {device} is {state}"
    interface = sysfs / "class/net" / nic.interface
    if nic.known and not interface.exists():
        return f"{nic.interface} is gone"
    state = _read(interface / "operstate")
    return f"{nic.interface} is {state}" if state in ("down", "lowerlayerdown", "notpresent") else ""


def discover(sysfs: Path = SYSFS, proc: Path = Path("/proc")) -> list[Nic]:
    """RDMA devices where there are any, else the interfaces towards the other nodes."""
    return rdma_nics(sysfs) or ethernet_nics(sysfs, proc)
