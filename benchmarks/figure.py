# SPDX-License-Identifier: Apache-2.0
"""What benchmarks print: figures beside their peers, and the bounds that they should keep."""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

MIB = 1 << 20


@dataclass
class Figure:
    """One line: a figure, what it is measured against, and the bound that it should keep."""

    what: str
    value: float
    unit: str
    against: str
    bound: float
    higher_is_better: bool
    peer: float | None = None

    @property
    def compared(self) -> float:
        """What the bound is about: the ratio to the peer, or the figure itself."""
        return self.value if self.peer is None else self.value / self.peer

    @property
    def kept(self) -> bool:
        return self.compared >= self.bound if self.higher_is_better else self.compared <= self.bound


def medians(rounds: int, *measures: Callable[[], float]) -> list[float]:
    """Each in turn, so that a machine whose speed changes treats all alike."""
    values = [[measure() for measure in measures] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*values, strict=True)]


def _row(figure: Figure) -> str:
    sign = "≥" if figure.higher_is_better else "≤"
    peer = "" if figure.peer is None else f"{figure.peer:.2f}"
    ratio = "" if figure.peer is None else f"{figure.compared:.2f}"
    kept = "yes" if figure.kept else "NO"
    return (
        f"{figure.what:<42}{figure.value:>9.2f} {figure.unit:<12}{figure.against:<20}{peer:>8}{ratio:>7}"
        f"  {sign} {figure.bound:<6g}{kept:>4}"
    )


def show(figures: list[Figure], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(figure) | {"ratio": figure.compared, "kept": figure.kept} for figure in figures]))
        return
    print(f"{'':<42}{'Sluice':>9} {'':<12}{'against':<20}{'':>8}{'ratio':>7}  {'bound':<8}{'kept':>4}")
    for figure in figures:
        print(_row(figure))
