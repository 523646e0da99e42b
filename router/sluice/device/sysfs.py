# SPDX-License-Identifier: Apache-2.0
"""A tenant's part of /sys, and of /dev: what applications read about their device beside the verbs.

Nobody can make files in sysfs, so they are ordinary files in the tenant's directory,
under sys/class/… and dev/infiniband/, and the shim leads applications there (shim/sysfs.h). Port counters
of sluice0 are told to whoever connects to the socket `counters0`, and so on: one packet of lines "FILE VALUE",
FILE relative to ports/1, as they are at that moment; their files hold 0.

A container may have the directory mounted, and be root in it: nothing here follows a
symbolic link that it made.
"""

import asyncio
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from sluice import __version__
from sluice.device.socket_file import let_all_connect
from sluice.device.virtual import VirtualDevice

CHARACTER_MAJOR, CHARACTER_MINOR = 231, 192
"""Of /dev/infiniband/uverbs* (the kernel's Documentation/admin-guide/devices.txt)."""

NULL_DEVICE = "/dev/null"

ERROR_COUNTERS = (
    "VL15_dropped",
    "excessive_buffer_overrun_errors",
    "link_downed",
    "link_error_recovery",
    "local_link_integrity_errors",
    "port_rcv_constraint_errors",
    "port_rcv_errors",
    "port_rcv_remote_physical_errors",
    "port_rcv_switch_relay_errors",
    "port_xmit_constraint_errors",
    "port_xmit_discards",
    "symbol_error",
)
"""What goes wrong on a wire; there is none."""


def port_counters(tenant: Mapping[str, int]) -> dict[str, int]:
    """Files below ports/1 and their values, from a tenant's counters (struct sluice_tenant_counters).

    A message counts as one packet, since nothing is cut into MTUs. Data is counted in
    units of four bytes (IBTA 16.1.3.5), port_xmit_wait in microseconds.
    """
    sent, received = tenant["tx_messages"], tenant["rx_messages"]
    counters = {
        "port_xmit_data": tenant["tx_bytes"] // 4,
        "port_rcv_data": tenant["rx_bytes"] // 4,
        "port_xmit_packets": sent,
        "port_rcv_packets": received,
        "unicast_xmit_packets": sent,
        "unicast_rcv_packets": received,
        "multicast_xmit_packets": 0,
        "multicast_rcv_packets": 0,
        "port_xmit_wait": tenant["throttled_ns"] // 1000,
        **dict.fromkeys(ERROR_COUNTERS, 0),
    }
    hardware = {
        "sent_pkts": sent,
        "rcvd_pkts": received,
        "rcvd_rnr_err": tenant["rnr_naks"],
        "rdma_reads": tenant["reads"],
        "rdma_atomics": tenant["atomics"],
    }
    return {f"counters/{name}": value for name, value in counters.items()} | {
        f"hw_counters/{name}": value for name, value in hardware.items()
    }


def _groups(data: bytes) -> str:
    """Hexadecimal in groups of two bytes, as sysfs prints GUIDs and GIDs."""
    return ":".join(data[i : i + 2].hex() for i in range(0, len(data), 2))


def _cpus() -> tuple[str, str]:
    """All processors of the machine, as a mask in words of 32 bits and as a list."""
    count = os.cpu_count() or 1
    digits = f"{(1 << count) - 1:x}"
    digits = digits.rjust(-(-len(digits) // 8) * 8, "0") if len(digits) > 8 else digits
    words = [digits[i : i + 8] for i in range(0, len(digits), 8)]
    return ",".join(words), f"0-{count - 1}" if count > 1 else "0"


def files(device: VirtualDevice) -> dict[str, str]:
    """Every file of a device, from the root, with its text, less the newline. A name that ends in / is an empty
    directory; NULL_DEVICE instead of a text is a symbolic link to that."""
    guid = _groups(device.node_guid)
    name, verbs = device.name, f"uverbs{device.number}"
    cpus, cpu_list = _cpus()
    of_device = {
        "board_id": "SLUICE0000000001",
        "fw_ver": __version__,
        "hca_type": "Sluice",
        "hw_rev": "0",
        "node_desc": name,
        "node_guid": guid,
        "node_type": "1: CA",
        "parent": "lo",
        "sys_image_guid": guid,
        "uevent": f"NAME={name}",
        "device/device": "0x0000",
        "device/vendor": "0x0000",
        "device/local_cpus": cpus,
        "device/local_cpulist": cpu_list,
        "device/numa_node": "-1",
        # The interface that every network namespace has: which one carries the address, the router can't know.
        "device/net/lo/": "",
    }
    of_port = {
        "cap_mask": "0x00010000",
        **{f"gid_attrs/ndevs/{i}": "lo" for i in range(device.gid_count)},
        **{f"gid_attrs/types/{i}": "RoCE v2" for i in range(device.gid_count)},
        **{f"gids/{i}": _groups(gid) for i, gid in enumerate(device.gids)},
        "lid": "0x0",
        "lid_mask_count": "0",
        "link_layer": "Ethernet",
        "phys_state": "5: LinkUp",
        "pkeys/0": "0xffff",
        "rate": "100 Gb/sec (4X EDR)",
        "sm_lid": "0x0",
        "sm_sl": "0",
        "state": "4: ACTIVE",
        **dict.fromkeys(port_counters(dict.fromkeys(_TENANT_FIELDS, 0)), "0"),
    }
    return {
        **{f"sys/class/infiniband/{name}/{file}": text for file, text in of_device.items()},
        **{f"sys/class/infiniband/{name}/ports/1/{file}": text for file, text in of_port.items()},
        "sys/class/infiniband_verbs/abi_version": "6",
        f"sys/class/infiniband_verbs/{verbs}/abi_version": "1",
        f"sys/class/infiniband_verbs/{verbs}/dev": f"{CHARACTER_MAJOR}:{CHARACTER_MINOR + device.number}",
        f"sys/class/infiniband_verbs/{verbs}/ibdev": name,
        "sys/class/infiniband_ucma/abi_version": "4",
        "sys/class/misc/rdma_cm/abi_version": "4",
        # Applications look whether there is a character device that they may read and write, and do neither.
        f"dev/infiniband/{verbs}": NULL_DEVICE,
        "dev/infiniband/rdma_cm": NULL_DEVICE,
    }


_TENANT_FIELDS = ("tx_bytes", "rx_bytes", "tx_messages", "rx_messages", "reads", "atomics", "throttled_ns", "rnr_naks")


class Sysfs:
    """The files of one tenant's devices and their counters' sockets.

    Make it inside a running event loop; close it there too.
    """

    def __init__(self, tenant_dir: Path, read_counters: Callable[[int], Mapping[str, int]]) -> None:
        """read_counters(tenant): the engine's counters as they are now."""
        self._tenant_dir = tenant_dir
        self._read_counters = read_counters
        self._counted: dict[int, int] = {}
        self._listeners: dict[int, socket.socket] = {}

    def count(self, tenants: Mapping[int, int]) -> None:
        """Whose counters are told from here on: the engine's numbers, by the device's. OSError."""
        if tenants == self._counted:
            return
        self._hang_up()
        for number, tenant in tenants.items():
            self._counted[number] = tenant
            path = self._tenant_dir / f"counters{number}"
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            self._listeners[number] = listener
            listener.bind(str(path))
            listener.listen(128)
            listener.setblocking(False)
            let_all_connect(path)
            asyncio.get_running_loop().add_reader(listener.fileno(), self._answer, listener, tenant)

    def _answer(self, listener: socket.socket, tenant: int) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(False)
                lines = [f"{name} {value}\n" for name, value in port_counters(self._read_counters(tenant)).items()]
                connection.send("".join(lines).encode())

    def _hang_up(self) -> None:
        for number, listener in self._listeners.items():
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()
            (self._tenant_dir / f"counters{number}").unlink(missing_ok=True)
        self._listeners.clear()
        self._counted.clear()

    def write(self, devices: Iterable[VirtualDevice]) -> None:
        """Writes all files anew; each changes at once. OSError where the directory is not what it was."""
        root = os.open(self._tenant_dir, os.O_DIRECTORY | os.O_PATH | os.O_CLOEXEC)
        try:
            for device in devices:
                for name, text in files(device).items():
                    _write(root, name.split("/"), text)
        finally:
            os.close(root)

    def remove_files(self) -> None:
        """Those of all devices."""
        for name in ("sys", "dev"):
            shutil.rmtree(self._tenant_dir / name, ignore_errors=True)

    def close(self) -> None:
        self._hang_up()
        # Without a router there is no device, in here as in the verbs.
        self.remove_files()


def _write(root: int, parts: list[str], text: str) -> None:
    """Makes the directories of a path below root and the file in them; no part may be a symbolic link."""
    *directories, name = parts
    here = os.dup(root)
    try:
        for part in directories:
            with suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            deeper = os.open(part, os.O_DIRECTORY | os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = deeper
        if not name:
            return
        temporary = f".{secrets.token_hex(8)}"
        if text == NULL_DEVICE:
            os.symlink(text, temporary, dir_fd=here)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o444, dir_fd=here), "w") as file:
                file.write(text + "\n")
        os.rename(temporary, name, src_dir_fd=here, dst_dir_fd=here)
    finally:
        os.close(here)
