# SPDX-License-Identifier: Apache-2.0
"""The library that goes into containers, and the ways in which a process gets it."""

from collections.abc import Mapping
from pathlib import Path

from sluice import shim_path

LIBRARIES = shim_path().parent
"""libsluice.so, and the names under which applications look for it (shim/meson.build)."""
PRELOAD = ("libsluice.so", "librdmacm.so.1")
"""What is preloaded, as far as it was built. The first has the SONAME libibverbs.so.1: no real one is loaded."""
NAMES = ("libsluice.so", "libibverbs.so", "libibverbs.so.1", "librdmacm.so", "librdmacm.so.1")
"""All of them."""
MUSL = "libsluice-musl.so"
"""All in one, for programs of musl."""


def preload(libraries: Path = LIBRARIES) -> str:
    """A value for LD_PRELOAD, and a line for /etc/ld.so.preload."""
    return ":".join(str(libraries / name) for name in PRELOAD if (libraries / name).exists())


def with_shim(environment: Mapping[str, str], libraries: Path = LIBRARIES) -> dict[str, str]:
    """The environment with the shim in front of what is preloaded and searched already.

    LD_PRELOAD serves what is linked or asks dlopen for libibverbs.so.1, LD_LIBRARY_PATH
    what asks dlopen for another name of it (libibverbs.so).
    """
    new = dict(environment)
    for name, value in (("LD_PRELOAD", preload(libraries)), ("LD_LIBRARY_PATH", str(libraries))):
        new[name] = f"{value}:{new[name]}" if new.get(name) else value
    return new
