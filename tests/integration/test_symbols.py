# SPDX-License-Identifier: Apache-2.0
"""What applications import of libibverbs and librdmacm is in the shim, under rdma-core's symbol versions."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from conftest import PATIENCE, RunningRouter, exported
from sluice import shim_path
from sluice.shim import LIBRARIES

IMPORTED = [
    line.split("\t")
    for line in (Path(__file__).parent / "symbols.tsv").read_text().splitlines()[1:]
    if not line.startswith("#")
]
"""Symbol, version and applications that import it."""
VENDORS = ("libmlx5.so.1", "libmlx4.so.1", "libefa.so.1", "libmana.so.1")
APPLICATIONS = {
    "ib_write_bw": "--help",
    "ibv_devinfo": "",
    "ibv_asyncwatch": "-h",
    "rping": "-h",
    "mckey": "-h",
    "ucmatose": "-h",
    "rstream": "-h",
    "ucx_info": "-v",
    "fi_info": "--version",
    "qperf": "--version",
    "ompi_info": "--version",
}


@cache
def defined_versions() -> set[str]:
    text = subprocess.run(["readelf", "-W", "-V", shim_path()], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"Name: ((?:IBVERBS|RDMACM)_\S+)", text))


def library(name: str) -> Path:
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"^\s*{re.escape(name)} .* => (\S+)$", known, re.MULTILINE)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return Path(found[1])


def imports(path: Path) -> list[tuple[str, str]]:
    text = subprocess.run(["readelf", "-W", "--dyn-syms", path], capture_output=True, text=True, check=True).stdout
    return re.findall(r" UND (\w+)@((?:IBVERBS|RDMACM)_\w+(?:\.\d+)?)", text)


def provided(symbol: str, version: str) -> bool:
    return version in defined_versions() and exported().get(symbol) in ("", version)


@pytest.mark.parametrize(("symbol", "version"), [row[:2] for row in IMPORTED], ids=[row[0] for row in IMPORTED])
def test_imported_symbol(symbol: str, version: str) -> None:
    if not symbol.startswith(("ibv_", "_ibv")) and "rdma_create_id" not in exported():
        pytest.skip("built without rdma_cm")
    assert provided(symbol, version), (symbol, exported().get(symbol))


@pytest.mark.parametrize("name", VENDORS)
def test_vendor_library_loads(name: str) -> None:
    """They are bound when they are loaded, against the private interface of the libibverbs that they came with."""
    missing = [(symbol, version) for symbol, version in imports(library(name)) if not provided(symbol, version)]
    assert not missing
    subprocess.run(
        ["python3", "-c", f"import ctypes; ctypes.CDLL('{name}')"],
        env={"LD_PRELOAD": str(shim_path()), "LD_BIND_NOW": "1", "PATH": "/usr/bin:/bin"},
        check=True,
    )


def test_rdma_cores_own_symbols() -> None:
    """Whatever the installed libibverbs and librdmacm export is here, but for the ABI of 2006."""
    for name in ("libibverbs.so.1", "librdmacm.so.1"):
        text = subprocess.run(
            ["readelf", "-W", "--dyn-syms", library(name)], capture_output=True, text=True, check=True
        ).stdout
        rows = re.findall(r" (?:FUNC|OBJECT) .* (\w+)@@((?:IBVERBS|RDMACM)_\w+(?:\.\d+)?)", text)
        assert rows
        if name == "librdmacm.so.1" and "rdma_create_id" not in exported():
            continue
        assert [row for row in rows if not provided(*row)] == []


@pytest.mark.parametrize(("application", "option"), APPLICATIONS.items(), ids=list(APPLICATIONS))
def test_application_starts(router: RunningRouter, application: str, option: str) -> None:
    """All its symbols are bound at once; a missing one is a message of the dynamic linker's and exit code 127."""
    child = router.run("a", "env", "LD_BIND_NOW=1", application, *option.split())
    text, _ = child.communicate(timeout=PATIENCE)
    if "command not found" in text:
        pytest.skip(f"{application} is not installed")
    if "rdma_create_id" not in exported() and "RDMACM" in text:
        pytest.skip("built without rdma_cm")
    assert "symbol lookup error" not in text and "version `" not in text and child.returncode != 127, text


def test_mlx5_says_that_the_device_is_not_its_own(router: RunningRouter) -> None:
    library("libmlx5.so.1")
    script = (
        "import ctypes as c; v = c.CDLL('libibverbs.so.1'); m = c.CDLL('libmlx5.so.1')\n"
        "v.ibv_get_device_list.restype = c.POINTER(c.c_void_p)\n"
        "m.mlx5dv_is_supported.argtypes = [c.c_void_p]\n"
        "m.mlx5dv_is_supported.restype = c.c_bool\n"
        "print(m.mlx5dv_is_supported(v.ibv_get_device_list(None)[0]))"
    )
    child = router.run("a", "/usr/bin/python3", "-c", script)
    assert child.communicate(timeout=PATIENCE)[0].strip() == "False"


ABSENT = """
import ctypes, errno, sys

library = ctypes.CDLL("libibverbs.so.1", use_errno=True)
for line in sys.stdin:
    name, answer = line.split()
    function = getattr(library, name)
    function.restype = ctypes.c_ssize_t
    for arguments in ([0] * 8, [-1] * 8):
        ctypes.set_errno(0)
        result = function(*map(ctypes.c_ssize_t, arguments))
        # An errno itself; or -1, or no object, with errno.
        given = ctypes.get_errno() if result in (-1, 0) or result & 0xffffffff == 0xffffffff else result & 0xffffffff
        # What does nothing may return nothing, too.
        if answer != "-" and given != getattr(errno, answer):
            print(name, arguments[0], result, given)
"""


def test_what_is_absent_answers_so(router: RunningRouter) -> None:
    """Whatever it is given: what docs/verbs.md says of it is what a call gets, and nobody crashes."""
    page = (Path(__file__).parents[2] / "docs/verbs.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| \w+_[\d.]+ \| (ENOSYS|EOPNOTSUPP|ENODATA|does nothing) \|$", page, re.MULTILINE)
    assert len(rows) > 50
    child = router.run("a", "/usr/bin/python3", "-c", ABSENT)
    asked = "".join(f"{name} {'-' if answer == 'does nothing' else answer}\n" for name, answer in rows)
    text, _ = child.communicate(asked, timeout=PATIENCE)
    assert (text, child.returncode) == ("", 0)


def test_all_names_of_the_library_are_there() -> None:
    assert {"libsluice.so", "libibverbs.so.1", "libibverbs.so", "libsluice.a"} <= {
        path.name for path in LIBRARIES.iterdir()
    }
