# SPDX-License-Identifier: Apache-2.0
"""--device: which of a node's RDMA devices the router takes, and what it says where it can't."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from sluice.device import nic
from sluice.device.nic import Nic, NicError, find_device
from sluice.device.virtual import VirtualDevice
from sluice.engine import Engine, ffi


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
    assert find_device("none") is None


def test_auto_takes_the_first_active_one_with_roce(sysfs: Path) -> None:
    assert find_device("auto") == "rxe7"


def test_auto_without_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nic, "SYSFS", tmp_path / "none")
    assert find_device("auto") is None


def test_a_name_may_be_of_any_state(sysfs: Path) -> None:
    assert find_device("mlx5_0") == "mlx5_0"


def test_an_unknown_name_says_which_there_are(sysfs: Path) -> None:
    with pytest.raises(NicError, match=r"--device mlx5_9: .*mlx5_0, mlx5_1, rxe7"):
        find_device("mlx5_9")


def test_a_device_that_libibverbs_does_not_list() -> None:
    with Engine() as engine, pytest.raises(NicError, match="--device nosuch0: "):
        Nic(engine, "nosuch0")


def test_without_a_nic_the_address_is_the_only_gid() -> None:
    device = VirtualDevice(IPv4Address("100.64.0.9"))
    reply = ffi.new("struct sluice_device_reply *")
    device.describe(reply)
    assert device.gids == [device.gid] and reply.gid_count == 1
    assert not device.is_of_nic(0)
