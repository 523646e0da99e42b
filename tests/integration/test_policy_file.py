# SPDX-License-Identifier: Apache-2.0
"""A policy file that gives tenants their addresses, against a running router."""

from pathlib import Path

import pytest
from conftest import RunningRouter, next_port, output_of, wait_until
from sluice.control.operator import RouterError


def load(router: RunningRouter, path: Path, text: str) -> None:
    path.write_text(text)
    router.ask("policy-load", path=str(path))


def address(router: RunningRouter, tenant: str) -> str:
    return str(router.status(tenant)["address"])


def test_addresses(router: RunningRouter, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    load(router, path, "tenants:\n  a: {ip: 10.3.0.1, max: 1Gbps}\n  b: {ip: 10.3.0.2}\n  c: {}\n")
    assert (address(router, "a"), address(router, "b")) == ("10.3.0.1", "10.3.0.2")
    assert "10.3.0.1" in output_of(router.run("a", "sh", "-c", "ibv_devinfo -v | grep -o '10.3.0.*'"))
    # Two that nobody uses change places; who says nothing keeps what it has.
    before = address(router, "c")
    wait_until(lambda: not router.status("a")["processes"], "the process' end")
    load(router, path, "tenants:\n  a: {ip: 10.3.0.2, max: 2Gbps}\n  b: {ip: 10.3.0.1}\n  c: {max: 1Gbps}\n")
    assert (address(router, "a"), address(router, "b"), address(router, "c")) == ("10.3.0.2", "10.3.0.1", before)
    assert router.status("a")["policy"] == {"max": "2Gbps"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tenants:\n  thief:\n    ip: 10.3.1.1\n",
            ":3: tenants.thief.ip: tenant 'holder' has the address 10.3.1.1 already",
        ),
        ("tenants:\n  thief:\n    ip: 224.0.0.1\n", ":3: tenants.thief.ip: 224.0.0.1 is not an address for a tenant"),
        (
            "tenants:\n  holder: {ip: 10.3.1.2}\n",
            ":2: tenants.holder.ip: tenant 'holder' has the address 10.3.1.1, and processes that run with it",
        ),
    ],
)
def test_what_is_refused(router: RunningRouter, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policy.yaml"
    # Waits for its peer, with the device open.
    argv = ["ibv_rc_pingpong", "-g", "0", "-p", str(next_port())]
    holder = router.run("holder", *argv, options=("--ip", "10.3.1.1"))
    wait_until(lambda: router.ask("status")["tenants"].get("holder", {}).get("processes"), "the device in use")
    with pytest.raises(RouterError) as refused:
        load(router, path, text)
    assert f"{path}{message}" in str(refused.value)
    assert "thief" not in router.ask("status")["tenants"]
    holder.terminate()
    holder.wait(60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "groups: {g: {}}\ntenants:\n  x:\n    group: h\n",
            ":4: tenants.x.group: tenant 'x': there is no group 'h'; there are: g",
        ),
        (
            "device:\n  capacity: 1Gbps\ntenants:\n  x: {min: 1Gbps}\n  y: {min: 1Gbps}\n",
            ":2: device.capacity: guarantees are more than the device's capacity, egress: "
            "x 1Gbps + y 1Gbps = 2Gbps > 1Gbps",
        ),
        (
            "tenants: {x: {min: 2Gbps, group: g}}\ngroups:\n  g: {min: 1Gbps}\n",
            ":3: groups.g: the guarantees in group 'g' are more than the group's guarantee, egress: "
            "x 2Gbps = 2Gbps > 1Gbps",
        ),
        ("devices:\n  mlx5_9: {capacity: 1Gbps}\n", ":2: devices.mlx5_9: there is no device 'mlx5_9'"),
        ("tenants:\n  x:\n    devices:\n      mlx5_9: {}\n", ":4: devices.mlx5_9: there is no device 'mlx5_9'"),
    ],
)
def test_what_does_not_go_together(router: RunningRouter, tmp_path: Path, text: str, message: str) -> None:
    """Each field is fine, and there is a line to look at all the same."""
    path = tmp_path / "policy.yaml"
    with pytest.raises(RouterError) as refused:
        load(router, path, text)
    assert f"{path}{message}" in str(refused.value)
    assert "x" not in router.ask("status")["tenants"]


def test_a_file_that_is_watched(tmp_path: Path) -> None:
    """Also where inotify tells nothing: a link's target, a directory that is another one now, a file that is gone."""
    folder, elsewhere = tmp_path / "config", tmp_path / "elsewhere.yaml"
    folder.mkdir()
    path = folder / "policy.yaml"

    def text(rate: str) -> str:
        return f"tenants:\n  a: {{max: {rate}}}\n"

    def has(rate: str) -> None:
        wait_until(lambda: router.status("a")["policy"] == {"max": rate}, f"a ceiling of {rate}")

    path.write_text(text("1Gbps"))
    router = RunningRouter("--config", str(path))
    try:
        has("1Gbps")
        path.write_text(text("2Gbps"))
        has("2Gbps")
        # As ConfigMaps are replaced.
        for number, rate in enumerate(("3Gbps", "4Gbps")):
            version = folder / f"..{number}"
            version.mkdir()
            (version / "policy.yaml").write_text(text(rate))
            (folder / "..new").symlink_to(version.name)
            (folder / "..new").rename(folder / "..data")
            if number == 0:
                (folder / "link").symlink_to("..data/policy.yaml")
                (folder / "link").rename(path)
            has(rate)
        elsewhere.write_text(text("5Gbps"))
        (folder / "link").symlink_to(elsewhere)
        (folder / "link").rename(path)
        has("5Gbps")
        elsewhere.write_text(text("6Gbps"))
        has("6Gbps")
        path.unlink()
        wait_until(lambda: "stays as it was: " in router.logged(), "a word of it in the log")
        assert f"{path}: No such file or directory" in router.logged()
        has("6Gbps")
        folder.rename(tmp_path / "earlier")
        folder.mkdir()
        path.write_text(text("7Gbps"))
        has("7Gbps")
    finally:
        router.stop()
