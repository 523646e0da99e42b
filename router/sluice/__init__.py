# SPDX-License-Identifier: Apache-2.0
"""Sluice: a software RDMA device for every container, metered and shaped."""

from importlib.metadata import version
from pathlib import Path

__version__ = version("sluice")


def shim_path() -> Path:
    """Where the library is that goes into containers (LD_PRELOAD)."""
    return Path(__file__).parent / "lib" / "libsluice.so"
