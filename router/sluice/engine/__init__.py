# SPDX-License-Identifier: Apache-2.0
"""The engine, as Python sees it: its functions (engine.py) and its counters (counters.py)."""

from sluice.engine.engine import Engine, Shape, ffi, lib

__all__ = ["Engine", "Shape", "ffi", "lib"]
