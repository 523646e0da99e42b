# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' quantities: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/"""

import re
from fractions import Fraction

_SUFFIXES = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_QUANTITY = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:([eE][+-]?\d{1,2})|([A-Za-z]{0,2}))")


def parse_quantity(text: str) -> int:
    """Whole units, rounded up as the API server does. ValueError."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a quantity: write for instance 10G or 500M")
    sign, number, exponent, suffix = match.groups()
    value = Fraction(number)
    if exponent:
        value *= Fraction(10) ** int(exponent[1:])
    elif suffix in _BINARY:
        value *= 1024 ** _BINARY[suffix]
    elif suffix in _SUFFIXES:
        value *= Fraction(10) ** _SUFFIXES[suffix]
    else:
        raise ValueError(f"{text!r} has the suffix {suffix!r}; there are k, M, G, T, Ki, Mi, Gi, Ti and their like")
    if sign == "-":
        value = -value
    return -(-value.numerator // value.denominator)


def format_quantity(value: int) -> str:
    """As the API server writes it: the largest decimal suffix without a fraction."""
    for suffix in ("T", "G", "M", "k"):
        unit = 10 ** _SUFFIXES[suffix]
        if value and value % unit == 0:
            return f"{value // unit}{suffix}"
    return str(value)
