# SPDX-License-Identifier: Apache-2.0
"""A router for a while: the demo's, a benchmark's."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_router() -> Iterator[Path]:
    """Its state directory. Both are gone afterwards. RuntimeError, with its log, where it doesn't start."""
    state_dir = Path(tempfile.mkdtemp(prefix="sluice-", dir="/tmp"))
    log = state_dir / "log"
    with log.open("w") as output:
        router = subprocess.Popen(
            [sys.executable, "-m", "sluice", "router", "--state-dir", str(state_dir)], stderr=output
        )
    try:
        while not (state_dir / "admin").exists():
            if router.poll() is not None:
                raise RuntimeError(f"the router did not start: {log.read_text()}")
            time.sleep(0.02)
        yield state_dir
    finally:
        router.terminate()
        router.wait()
        shutil.rmtree(state_dir)
