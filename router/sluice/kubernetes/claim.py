# SPDX-License-Identifier: Apache-2.0
"""A ResourceClaim, as the scheduler allocated it: which bandwidth on which NIC."""

from dataclasses import dataclass

from sluice.kubernetes import DRIVER
from sluice.kubernetes.api import Object
from sluice.kubernetes.parameters import NOTHING, FieldError, Parameters, check_bounds, parse_parameters
from sluice.kubernetes.quantity import format_quantity, parse_quantity

CAPACITY = "bandwidth"


class ClaimError(ValueError):
    """Why a claim can't be prepared, in words for the person who wrote it."""


@dataclass(frozen=True)
class Share:
    """A part of one NIC. bps: its guarantee in bits per second, as the scheduler counts it; 0: the whole NIC.

    bounds: what its DeviceClass says, and nobody who uses the class may exceed.
    """

    request: str
    nic: str
    bps: int
    share_id: str = ""
    parameters: Parameters = NOTHING
    bounds: Parameters = NOTHING


@dataclass(frozen=True)
class Consumer:
    """A pod that uses a claim."""

    name: str
    uid: str


def consumers(claim: Object) -> list[Consumer]:
    reserved = claim.get("status", {}).get("reservedFor") or []
    return [Consumer(one["name"], one["uid"]) for one in reserved if one.get("resource") == "pods"]


def _spec_path(claim: Object, opaque: Object, index: int) -> str:
    """Where the user wrote these parameters; the allocation holds copies."""
    for position, written in enumerate(claim.get("spec", {}).get("devices", {}).get("config") or []):
        if written.get("opaque") == opaque:
            return f"spec.devices.config[{position}].opaque.parameters"
    return f"status.allocation.devices.config[{index}].opaque.parameters"


def _parameters(claim: Object, request: str) -> tuple[Parameters, Parameters]:
    """What holds, class first, claim last; and what the class says. FieldError, also for more than that allows."""
    found = bounds = Parameters()
    configs = claim["status"]["allocation"]["devices"].get("config") or []
    for index, config in enumerate(configs):
        opaque = config.get("opaque") or {}
        requests = config.get("requests") or []
        # A request with alternatives is named REQUEST/ALTERNATIVE in the result.
        concerned = not requests or {request, request.partition("/")[0]} & set(requests)
        if opaque.get("driver") != DRIVER or not concerned:
            continue
        path = _spec_path(claim, opaque, index)
        from_class = config.get("source") == "FromClass"
        if from_class:
            path = f"DeviceClass: {path}"
        said = parse_parameters(opaque.get("parameters"), path)
        if from_class:
            bounds = bounds.under(said)
        else:
            check_bounds(said, bounds, f"{path}.")
        found = found.under(said)
    return found, bounds


def shares(claim: Object, node: str) -> list[Share]:
    """The parts of this node's NICs that a claim got. ClaimError, FieldError."""
    allocation = claim.get("status", {}).get("allocation")
    if not allocation:
        raise ClaimError("the claim is not allocated")
    found = []
    for result in allocation["devices"].get("results") or []:
        if result["driver"] != DRIVER or result["pool"] != node:
            continue
        consumed = result.get("consumedCapacity") or {}
        amount = consumed.get(CAPACITY, consumed.get(f"{DRIVER}/{CAPACITY}", "0"))
        parameters, bounds = _parameters(claim, result["request"])
        bps = parse_quantity(str(amount))
        if parameters.max is not None and parameters.max < bps:
            raise FieldError(
                f"max: {format_quantity(parameters.max)} is less than the {format_quantity(bps)} "
                f"that request {result['request']} asks for: a ceiling can't be below the guarantee"
            )
        found.append(Share(result["request"], result["device"], bps, result.get("shareID") or "", parameters, bounds))
    if not found:
        raise ClaimError(f"nothing of node {node} is allocated to the claim")
    return found
