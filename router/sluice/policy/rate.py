# SPDX-License-Identifier: Apache-2.0
"""Rates in bits per second and sizes in bytes, as people write them."""

import re

_RATE_UNITS = {
    "bps": 1,
    "kbps": 10**3,
    "Kbps": 10**3,
    "Mbps": 10**6,
    "Gbps": 10**9,
    "Tbps": 10**12,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}
_SIZE_UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")

MAX_RATE = 100 * 10**12
"""Bits per second: above any wire, and far below where the shaper's arithmetic would end."""
MIN_RATE = 1000


def _parse(text: str, units: dict[str, int], what: str, examples: str) -> int:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a {what}: write {examples}")
    number, unit = match.groups()
    if unit == "":
        raise ValueError(f"{text!r} has no unit: write {examples}")
    if unit not in units:
        raise ValueError(f"{text!r} has the unit {unit!r}; a {what} has one of {', '.join(units)}")
    whole, _, fraction = number.partition(".")
    scale: int = 10 ** len(fraction)
    return int(whole + fraction) * units[unit] // scale


def parse_rate(text: str) -> int:
    """Bits per second: "500Mbps", "2Gbps", and Kubernetes' "10G". ValueError says what would be right."""
    rate = _parse(text, _RATE_UNITS, "rate", "for instance 500Mbps, 2Gbps or 10G (bits per second)")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"{text!r} is out of range: a rate lies between 1kbps and 100Tbps")
    return rate


def parse_size(text: str) -> int:
    """Bytes: "64KiB", "1MiB", "2GB"."""
    size = _parse(text, _SIZE_UNITS, "size", "for instance 64KiB or 1GiB (bytes)")
    if not 0 < size < 2**63:
        raise ValueError(f"{text!r} is out of range: a size lies between 1B and 8EiB")
    return size


def _scaled(value: float, units: list[tuple[float, str]]) -> str:
    for factor, unit in units:
        # What three digits round up to the next unit is one of that.
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{unit}" if value / factor < 999.5 else f"{value / factor:.0f}{unit}"
    return f"{value:.0f}{units[-1][1]}"


def format_rate(bps: float) -> str:
    return _scaled(bps, [(1e12, "Tbps"), (1e9, "Gbps"), (1e6, "Mbps"), (1e3, "kbps"), (1, "bps")])


def format_size(size: float) -> str:
    return _scaled(size, [(2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")])


def format_count(count: float) -> str:
    return _scaled(count, [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")])
