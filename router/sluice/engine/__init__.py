# SPDX-License-Identifier: Apache-2.0
"""The engine, as Python sees it: its functions (engine.py) and its counters (counters.py)."""

from sluice.engine.engine import (
    AhUnresolved,
    Engine,
    Member,
    Neighbour,
    Pair,
    QpDisconnected,
    SessionBroken,
    Shape,
    Share,
    TrunkDisconnected,
    VerbGoesOn,
    ffi,
    lib,
    measure_copy,
)

__all__ = [
    "AhUnresolved",
    "Engine",
    "Member",
    "Neighbour",
    "Pair",
    "QpDisconnected",
    "SessionBroken",
    "Shape",
    "Share",
    "TrunkDisconnected",
    "VerbGoesOn",
    "ffi",
    "lib",
    "measure_copy",
]
