# SPDX-License-Identifier: Apache-2.0
"""rdma-core's own tests, unmodified: they are programs of pyverbs."""

import gzip
import re
import shutil
from pathlib import Path

import pytest
from conftest import RunningRouter, output_of

SOURCES = Path("/usr/share/doc/rdma-core/tests")
PYTHON = "/usr/bin/python3"
# What their skips may say: features of other devices, or of other machines.
LACKING = re.compile(
    "MLX5|mlx5|EFA|ODP|Device memory|dmabuf|QP type 8|Raw Packet|Extended [CQ][QP] is not supported|cuda|PCI|"
    "huge pages|timestamp to nanoseconds|Importing a device|All gid indices|Tag Matching|atomic_write"
)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory above the package `tests`; Debian compresses what is large in it."""
    if not (SOURCES / "run_tests.py").exists():
        pytest.skip("the tests of python3-pyverbs are not installed")
    root = tmp_path_factory.mktemp("rdma-core")
    shutil.copytree(SOURCES, root / "tests")
    for packed in (root / "tests").glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    return root


def test_rdma_core(router: RunningRouter, suite: Path) -> None:
    argv = ["env", f"PYTHONPATH={suite}", PYTHON, f"{suite}/tests/run_tests.py", "--dev", "sluice0", "-v"]
    text = output_of(router.run("a", *argv))
    skipped = re.findall(r"skipped ['\"](.*)['\"]$", text, re.MULTILINE)
    assert text.count("... ok") > 100, text
    assert [reason for reason in skipped if not LACKING.search(reason)] == [], text
