# SPDX-License-Identifier: Apache-2.0
"""From what a pod was granted of a NIC to its tenant's policy there: the only place where this is decided."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sluice.kubernetes.claim import Share
from sluice.kubernetes.parameters import Parameters
from sluice.policy.policy import Policy


def guarantee_bps(shares: Iterable[Share], over_commit: float) -> int:
    """What is guaranteed of what was asked for: where more is offered than there is, each gets its part of that."""
    return int(sum(share.bps for share in shares) / over_commit)


def bounds_of(shares: Iterable[Share]) -> Parameters:
    """The most that a tenant may have on one NIC by its DeviceClasses; nothing where one of them leaves it open."""
    bounds = [share.bounds for share in shares]

    def together(values: list[int | None], combine: Callable[[list[int]], int]) -> int | None:
        known = [value for value in values if value is not None]
        return combine(known) if known and len(known) == len(values) else None

    return Parameters(
        max=together([one.max for one in bounds], sum),
        burst=together([one.burst for one in bounds], max),
        weight=together([one.weight for one in bounds], max),
    )


def policy_of(shares: Iterable[Share], over_commit: float, live: Mapping[str, int]) -> Policy:
    """All shares of a tenant on one NIC; live: what the pod's annotations say of that device (parameters.live_of).

    An annotation may lower the guarantee, not raise it: the scheduler counts what the claim says.
    """
    shares = list(shares)
    guarantee = guarantee_bps(shares, over_commit)
    ceilings = [share.parameters.max for share in shares]
    values: dict[str, Any] = {
        "min_bps": min(live.get("min", guarantee), guarantee),
        # One share without a ceiling is a tenant without one.
        "max_bps": live.get("max", sum(one for one in ceilings if one) if all(ceilings) else 0),
        "burst": live.get("burst", max((share.parameters.burst or 0 for share in shares), default=0)),
        "weight": live.get("weight", max((share.parameters.weight or 0 for share in shares), default=0)),
    }
    if 0 < values["max_bps"] < values["min_bps"]:
        values["min_bps"] = values["max_bps"]
    return Policy(**values)
