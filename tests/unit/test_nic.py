# SPDX-License-Identifier: Apache-2.0
"""--device: which of a node's RDMA devices the router takes, and what it says where it can't."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from sluice.device import nic
from sluice.device.nic import Nic, NicError
from sluice.device.node import DeviceSpec, NodeDevices, find_devices, with_capacities
from sluice.device.virtual import VirtualDevice
from sluice.engine import Engine, ffi
from sluice.policy.policy import PolicyError


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with three devices: one down, one of InfiniBand, one of RoCE that is active."""
    for name, state, layer in (
        ("mlx5_0", "1: DOWN", "Ethernet"),
        ("mlx5_1", "4: ACTIVE", "InfiniBand"),
        ("rxe7", "4: ACTIVE", "Ethernet"),
    ):
        port = tmp_path / name / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "link_layer").write_text(f"{layer}\n")
    monkeypatch.setattr(nic, "SYSFS", tmp_path)
    return tmp_path


def test_none_looks_for_nothing(sysfs: Path) -> None:
    assert find_devices(["none"]) == find_devices([]) == [DeviceSpec("sluice0")]


def test_auto_takes_the_first_active_one_with_roce(sysfs: Path) -> None:
    assert find_devices(["auto"]) == [DeviceSpec("rxe7", "rxe7")]


def test_without_devices_there_is_one_in_software(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nic, "SYSFS", tmp_path / "none")
    assert find_devices(["auto"]) == [DeviceSpec("sluice0")]


def test_a_name_may_be_of_any_state(sysfs: Path) -> None:
    assert find_devices(["mlx5_0", "software:rail"]) == [DeviceSpec("mlx5_0", "mlx5_0"), DeviceSpec("rail")]


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (["mlx5_9"], r"--device mlx5_9: .*mlx5_0, mlx5_1, rxe7"),
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


def test_a_device_that_libibverbs_does_not_list() -> None:
    with Engine() as engine, pytest.raises(NicError, match="--device nosuch0: "):
        Nic(engine, "nosuch0")


def test_the_router_opens_one_nic() -> None:
    specs = [DeviceSpec(name, name) for name in ("rxe0", "rxe1")]
    with Engine() as engine, pytest.raises(NicError, match="--device rxe1: the router opens one NIC, rxe0"):
        NodeDevices(engine, specs)


def test_without_a_nic_the_address_is_the_only_gid() -> None:
    device = VirtualDevice(IPv4Address("100.64.0.9"))
    reply = ffi.new("struct sluice_device_reply *")
    device.describe(reply)
    assert device.gids == [device.gid] and reply.gid_count == 1
    assert not device.is_of_nic(0)
