# SPDX-License-Identifier: Apache-2.0
"""--device: which of a node's RDMA devices the router takes, and what it says where it can't."""

import resource
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sluice.device import nic
from sluice.device.nic import Nic, NicError, device_and_port
from sluice.device.node import DeviceSpec, NodeDevices, find_devices, with_capacities
from sluice.device.virtual import VirtualDevice
from sluice.engine import Engine, ffi
from sluice.policy.policy import PolicyError


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with three devices: one with a port that is down and one that is up, one of InfiniBand, one of RoCE."""
    for name, number, state, layer in (
        ("mlx5_0", 1, "1: DOWN", "Ethernet"),
        ("mlx5_0", 2, "4: ACTIVE", "Ethernet"),
        ("mlx5_1", 1, "4: ACTIVE", "InfiniBand"),
        ("rxe7", 1, "4: ACTIVE", "Ethernet"),
    ):
        port = tmp_path / name / "ports" / str(number)
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "link_layer").write_text(f"{layer}\n")
    monkeypatch.setattr(nic, "SYSFS", tmp_path)
    return tmp_path


def test_none_looks_for_nothing(sysfs: Path) -> None:
    assert find_devices(["none"]) == find_devices([]) == [DeviceSpec("sluice0")]


def test_auto_takes_all_active_ports_with_roce(sysfs: Path) -> None:
    assert find_devices(["auto"]) == [
        DeviceSpec("mlx5_0:2", "mlx5_0:2", found=True),
        DeviceSpec("rxe7", "rxe7", found=True),
    ]


def test_without_devices_there_is_one_in_software(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nic, "SYSFS", tmp_path / "none")
    assert find_devices(["auto"]) == [DeviceSpec("sluice0")]


def test_a_name_may_be_of_any_state(sysfs: Path) -> None:
    assert find_devices(["mlx5_0", "software:rail"]) == [DeviceSpec("mlx5_0", "mlx5_0"), DeviceSpec("rail")]


def test_a_port_is_named_as_ucx_does(sysfs: Path) -> None:
    assert find_devices(["mlx5_0:2", "rxe7:1"]) == [DeviceSpec("mlx5_0:2", "mlx5_0:2"), DeviceSpec("rxe7", "rxe7")]
    assert [device_and_port(name) for name in ("mlx5_0:2", "rxe7")] == [("mlx5_0", 2), ("rxe7", 1)]


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (["mlx5_9"], r"--device mlx5_9: .*mlx5_0, mlx5_1, rxe7"),
        (["mlx5_0:3"], r"--device mlx5_0:3: mlx5_0 has no such port; it has: 1, 2"),
        (["mlx5_1"], r"--device mlx5_1: its link is InfiniBand"),
        (["rxe7:"], r"--device rxe7:: rxe7 has no such port; it has: 1"),
        (["rxe7:1", "rxe7"], r"--device rxe7: stands there twice"),
        (["rxe7", "auto"], r"--device rxe7: stands there twice"),
        (["software:a/b"], r"'a/b' is not a device's name"),
        (["software:"], r"'' is not a device's name"),
        ([f"software:{i}" for i in range(17)], r"17 devices; a node has 16 at most"),
    ],
)
def test_what_is_wrong_with_a_choice_is_told(sysfs: Path, wanted: list[str], error: str) -> None:
    with pytest.raises(NicError, match=error):
        find_devices(wanted)


def test_capacities_by_name() -> None:
    specs = with_capacities(find_devices(["none", "software:rail"]), {"": 10**10, "rail": 10**9})
    assert [spec.capacity and (spec.capacity.bps, spec.capacity.wire) for spec in specs] == [
        (10**10, True),
        (10**9, True),
    ]
    with pytest.raises(PolicyError, match="--capacity rial: there is no such device; there are: sluice0"):
        with_capacities(find_devices([]), {"rial": 1})


def test_the_device_of_verbs_is_found_beside_what_else_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nic, "VERBS", tmp_path)
    (tmp_path / "abi_version").write_text("6\n")
    for number, name in enumerate(("mlx5_0", "rxe0")):
        (tmp_path / f"uverbs{number}").mkdir()
        (tmp_path / f"uverbs{number}" / "ibdev").write_text(f"{name}\n")
    assert nic._verbs_device("rxe0") == tmp_path / "uverbs1"
    assert nic._verbs_device("rxe1") is None


@pytest.mark.parametrize(
    ("limit", "capabilities", "lockable"),
    [(8 << 20, "0000000000000000", 8 << 20), (8 << 20, "0000000000004000", None), (resource.RLIM_INFINITY, "0", None)],
)
def test_how_much_may_be_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, capabilities: str, lockable: int | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    (tmp_path / "status").write_text(f"Name:\tsluice\nCapEff:\t{capabilities}\nCapBnd:\tffff\n")
    assert nic.lockable(tmp_path / "status") == lockable


def test_a_device_that_libibverbs_does_not_list() -> None:
    with Engine() as engine, pytest.raises(NicError, match="--device nosuch0: "):
        Nic(engine, 0, "nosuch0")


class Devices(Engine):
    """An engine whose NICs are what `ports` says: a list of GIDs by device and port."""

    ports: ClassVar[dict[tuple[str, int], list[bytes]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, tuple[str, int]] = {}

    def open_nic(self, device: int, name: str, port: int) -> None:
        self.open[device] = (name, port)

    def close_nic(self, device: int) -> None:
        del self.open[device]

    def query_nic(self, device: int) -> Any:
        gids = self.ports[self.open[device]]
        found = ffi.new("struct sluice_nic *", {"gid_count": len(gids), "port_state": 4})
        for entry, gid in zip(found.gids, gids, strict=False):
            ffi.memmove(entry.raw, gid, 16)
        return found


def gid_of(last: int) -> bytes:
    return bytes(10) + b"\xff\xff" + IPv4Address(f"10.0.0.{last}").packed


def test_each_device_has_its_own_nic(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, strange = (gid_of(last) for last in (1, 2, 3))
    monkeypatch.setattr(Devices, "ports", {("rxe0", 1): [first], ("mlx5_0", 2): [second]})
    engine = Devices()
    with engine:
        specs = [DeviceSpec("rxe0", "rxe0"), DeviceSpec("plain"), DeviceSpec("mlx5_0:2", "mlx5_0:2")]
        rxe, plain, mlx = NodeDevices(engine, specs)
        assert engine.open == {0: ("rxe0", 1), 2: ("mlx5_0", 2)}
        assert rxe.nic and mlx.nic and plain.nic is None
        assert (rxe.nic.gids, mlx.nic.gids) == ([first], [second])
        # A neighbour may stand behind any GID of the node's.
        assert [rxe.nic.device_of(gid) for gid in (first, second, strange)] == [0, 2, None]
        assert "port 2 is active, addresses: 10.0.0.2" in mlx.nic.describe()
        # One goes, the other stays.
        mlx.nic.lost()
        assert engine.open == {0: ("rxe0", 1)} and rxe.nic.present and not mlx.nic.present
        assert VirtualDevice(IPv4Address("100.64.0.9"), rxe.nic).gid_count == 2
        rxe.nic.close()
        mlx.nic.close()


def test_a_device_is_back_when_it_is_of_use(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports: dict[tuple[str, int], list[bytes]] = {("rxe7", 1): [gid_of(1)]}
    monkeypatch.setattr(Devices, "ports", ports)
    monkeypatch.setattr(nic, "VERBS", sysfs / "verbs")
    (sysfs / "verbs" / "uverbs0").mkdir(parents=True)
    there, state = sysfs / "verbs" / "uverbs0" / "ibdev", sysfs / "rxe7" / "ports" / "1" / "state"
    there.write_text("rxe7\n")
    engine = Devices()
    with engine:
        rxe = Nic(engine, 0, "rxe7")
        rxe.lost()
        there.unlink()
        assert not rxe.came_back()
        there.write_text("rxe7\n")
        state.write_text("1: DOWN\n")
        assert not rxe.came_back()
        state.write_text("4: ACTIVE\n")
        ports["rxe7", 1] = []  # as a device that was just added
        assert not rxe.came_back() and not engine.open and "gone" in rxe.describe()
        ports["rxe7", 1] = [gid_of(2)]
        assert rxe.came_back() and engine.open == {0: ("rxe7", 1)} and rxe.gids == [gid_of(2)]
        assert rxe.describe() == "port 1 is active, addresses: 10.0.0.2"
        rxe.close()


def test_without_a_nic_the_address_is_the_only_gid() -> None:
    device = VirtualDevice(IPv4Address("100.64.0.9"))
    reply = ffi.new("struct sluice_device_reply *")
    device.describe(reply)
    assert device.gids == [device.gid] and reply.gid_count == 1
    assert not device.is_of_nic(0)
