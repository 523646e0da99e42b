# SPDX-License-Identifier: Apache-2.0
"""The counters file (struct sluice_counters_header in csrc/engine.h) as numpy arrays.

The file is mapped read-only; the engine goes on counting in it, so an array read
twice gives a rate.
"""

from pathlib import Path
from typing import Any

import numpy as np

from sluice.engine.engine import ffi

MAGIC = 0x0100454349554C53


def dtype_of(struct: str) -> np.dtype[Any]:
    """The numpy type of a C struct of 64-bit words."""
    fields = [
        (name, np.uint64, (field.type.length,) if field.type.kind == "array" else ())
        for name, field in ffi.typeof(struct).fields
    ]
    return np.dtype(fields)


HEADER = dtype_of("struct sluice_counters_header")
TENANT = dtype_of("struct sluice_tenant_counters")
GROUP = dtype_of("struct sluice_group_counters")
QP = dtype_of("struct sluice_qp_counters")


class Counters:
    """tenants, groups: indexed by number. qps: by slot; qp_num 0 where a slot is free."""

    def __init__(self, path: Path) -> None:
        self._map = np.memmap(path, dtype=np.uint8, mode="r")
        self.header = self._map[: HEADER.itemsize].view(HEADER)[0]
        if int(self.header["magic"]) != MAGIC:
            raise ValueError(f"{path} is not a counters file of this version")
        self.tenants = self._table("tenants_offset", TENANT, int(self.header["tenants"]))
        self.groups = self._table("groups_offset", GROUP, int(self.header["groups"]))

    def _table(self, offset: str, dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
        start = int(self.header[offset])
        rows: np.ndarray[Any, Any] = self._map[start : start + count * dtype.itemsize].view(dtype)
        return rows

    def qps(self) -> np.ndarray[Any, Any]:
        """A copy of the slots that hold a QP now."""
        table = self._table("qps_offset", QP, int(self.header["qps"]))
        used: np.ndarray[Any, Any] = table[table["qp_num"] != 0].copy()
        return used

    def tenant(self, number: int) -> dict[str, Any]:
        """An int for each word, a list for each array."""
        row = self.tenants[number].copy()
        return {name: row[name].tolist() for name in TENANT.names or ()}

    def tenant_total(self, number: int) -> dict[str, int]:
        """An int for each word, and for each array its sum."""
        row = self.tenants[number].copy()
        return {name: int(row[name].sum()) for name in TENANT.names or ()}

    def group(self, number: int) -> dict[str, Any]:
        row = self.groups[number].copy()
        return {name: row[name].tolist() for name in GROUP.names or ()}
