# SPDX-License-Identifier: Apache-2.0
"""What a user writes beside the amount: a claim's opaque parameters, a pod's annotations.

apiVersion: rdma.sluice.dev/v1
kind: Bandwidth
max: 20G        # ceiling in each direction; without it the NIC's own
burst: 1Mi      # bytes at the wire's speed before the ceiling holds
weight: 400     # share of what guarantees leave over; 1 to 10000, 100 without it
libc: musl      # the C library of the image: glibc (default) or musl
preload: file   # by /etc/ld.so.preload, for images that set LD_PRELOAD themselves (default: environment)
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from sluice.kubernetes import DRIVER
from sluice.kubernetes.quantity import format_quantity, parse_quantity
from sluice.policy.rate import MAX_RATE, MIN_RATE, parse_rate

API_VERSION = f"{DRIVER}/v1"
KIND = "Bandwidth"


class FieldError(ValueError):
    """Names the field, its value, and what would be right."""


def parse_bandwidth(value: object) -> int:
    """Bits per second, as a quantity ("10G") or as everywhere else here ("10Gbps")."""
    text = str(value)
    try:
        rate = parse_rate(text) if text.endswith("bps") else parse_quantity(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a bandwidth: write for instance 500M, 10G or 10Gbps (bits per second)"
        ) from None
    if isinstance(value, int) or not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"{text!r} is out of range: write bits per second with a unit, from 1k to 100T")
    return rate


def _burst(value: object) -> int:
    text = str(value)
    try:
        size = parse_quantity(text.removesuffix("B"))
    except ValueError:
        raise ValueError(f"{text!r} is not a size: write for instance 64Ki or 1Mi (bytes)") from None
    if not 0 < size < 2**40:
        raise ValueError(f"{text!r} is out of range: a burst lies between 1 byte and 1Ti")
    return size


def _weight(value: object) -> int:
    text = str(value)
    if not text.isdigit() or not 1 <= int(text) <= 10000:
        raise ValueError(f"{text!r} is not a weight: write a whole number from 1 to 10000")
    return int(text)


def _one_of(*words: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in words:
            raise ValueError(f"{value!r} is not known: write {' or '.join(words)}")
        return str(value)

    return check


@dataclass(frozen=True)
class Parameters:
    """None: not said."""

    max: int | None = None
    burst: int | None = None
    weight: int | None = None
    libc: str | None = None
    preload: str | None = None

    def under(self, later: "Parameters") -> "Parameters":
        """These, with what `later` says in their place."""
        said = {field.name: getattr(later, field.name) for field in fields(later)}
        return replace(self, **{name: value for name, value in said.items() if value is not None})


NOTHING = Parameters()

BOUNDS: dict[str, Callable[[int], str]] = {"max": format_quantity, "burst": format_quantity, "weight": str}
"""What a DeviceClass says of these is the most that its users may say."""


def check_bounds(said: Parameters, bounds: Parameters, path: str) -> None:
    """path: what stands before the field's name. FieldError."""
    for name, text in BOUNDS.items():
        value, most = getattr(said, name), getattr(bounds, name)
        if value is not None and most is not None and value > most:
            raise FieldError(
                f"{path}{name}: {text(value)} is more than the DeviceClass lets anybody have, {text(most)}"
            )


_OF_DEVICE = re.compile(r"sluice\d+\.[a-z]+")

_PARSERS: dict[str, Callable[[object], object]] = {
    "max": parse_bandwidth,
    "burst": _burst,
    "weight": _weight,
    "libc": _one_of("glibc", "musl"),
    "preload": _one_of("environment", "file"),
}

LIVE = ("min", "max", "burst", "weight")
"""What an annotation changes in a running pod: rdma.sluice.dev/max: 20G on each of its devices,
rdma.sluice.dev/sluice1.max: 5G on that one, whatever the other says."""


def parse_parameters(parameters: object, path: str) -> Parameters:
    """Opaque parameters; path: where they stand, for the error. FieldError for the first mistake."""
    if not isinstance(parameters, Mapping):
        raise FieldError(f"{path}: an object belongs here, with apiVersion: {API_VERSION}, kind: {KIND}")
    for field, right in (("apiVersion", API_VERSION), ("kind", KIND)):
        if parameters.get(field) != right:
            raise FieldError(f"{path}.{field}: {parameters.get(field)!r} is not known: write {right}")
    values = {}
    for name, value in parameters.items():
        if name in ("apiVersion", "kind"):
            continue
        if name not in _PARSERS:
            raise FieldError(f"{path}.{name}: no such field; there are {', '.join(_PARSERS)}")
        try:
            values[name] = _PARSERS[name](value)
        except ValueError as error:
            raise FieldError(f"{path}.{name}: {error}") from None
    return Parameters(**values)  # type: ignore[arg-type]


def parse_annotations(annotations: Mapping[str, str]) -> dict[str, int]:
    """What a pod's annotations say, of LIVE: by "max", or "sluice1.max". FieldError."""
    values = {}
    for key, value in annotations.items():
        name = key.removeprefix(f"{DRIVER}/")
        _, _, field = name.rpartition(".")
        if key == name or field not in LIVE or (name != field and _OF_DEVICE.fullmatch(name) is None):
            continue
        try:
            values[name] = int(str(_PARSERS["max" if field == "min" else field](value)))
        except ValueError as error:
            raise FieldError(f"metadata.annotations[{key}]: {error}") from None
    return values


def live_of(live: Mapping[str, int], device: str) -> dict[str, int]:
    """What annotations say of one device ("sluice0"), by LIVE."""
    values = {name: live.get(f"{device}.{name}", live.get(name)) for name in LIVE}
    return {name: value for name, value in values.items() if value is not None}
