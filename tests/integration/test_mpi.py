# SPDX-License-Identifier: Apache-2.0
"""Open MPI over UCX, unmodified: its messages, collectives and one-sided operations."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RunningRouter, output_of

pytestmark = pytest.mark.skipif(
    shutil.which("mpicc") is None or shutil.which("ucx_info") is None, reason="Open MPI, or UCX, is not installed"
)

RESULT = "2 ranks, 0 bytes wrong, sum 3, counter 200"
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--mca", "pml", "ucx", "--mca", "osc", "ucx"]
SETTINGS = ["-x", "UCX_TLS=rc_verbs,ud_verbs,self", "-x", "UCX_NET_DEVICES=sluice0:1"]


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("mpi") / "exchange"
    source = Path(__file__).parent / "mpi" / "exchange.c"
    subprocess.run(["mpicc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    return program


def moved(router: RunningRouter, tenant: str) -> int:
    return int(router.status(tenant)["counters"]["tx_bytes"])


def test_ranks_of_one_tenant(router: RunningRouter, exchange: Path) -> None:
    assert RESULT in output_of(router.run("a", *MPIRUN, *SETTINGS, "-n", "2", exchange))
    assert moved(router, "a") > 10 << 20


def test_ranks_of_two_tenants(router: RunningRouter, exchange: Path) -> None:
    """mpirun starts each rank in a tenant of its own; what they say to it goes by files that both see."""
    router.ask("tenant-add", name="b", policy={})
    before = moved(router, "a"), moved(router, "b")
    ranks: list[str] = []
    for tenant in ("a", "b"):
        run = [sys.executable, "-m", "sluice", "run", "--state-dir", str(router.state_dir), "--tenant", tenant, "--"]
        ranks += [":"] * bool(ranks) + ["-n", "1", *run, str(exchange)]
    done = subprocess.run([*MPIRUN, *SETTINGS, *ranks], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and RESULT in done.stdout, done.stdout + done.stderr
    assert all(now - then > 5 << 20 for now, then in zip((moved(router, "a"), moved(router, "b")), before, strict=True))
