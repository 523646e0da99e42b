# SPDX-License-Identifier: Apache-2.0
"""What routers say to each other: small dataclasses, sent as JSON, checked field by field when they arrive.

A message's name on the wire is its class's. Fields are int, str, bool, bytes (hex on
the wire), IP addresses, dict[str, str], tuples and unions of these, or another dataclass; a
frame with a field too many, too few or of another type is refused. A field that has its default is left out, so
that routers from before it was there are spoken to as they understand. Anybody may add a class:
@message is all it takes.
"""

import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from types import NoneType, UnionType
from typing import Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

MAX_FRAME = 1 << 20
"""Bytes of a message; libzmq hangs up on who sends more."""


class MessageError(ValueError):
    """A frame that is no message."""


_known: dict[str, type[Any]] = {}
_Type = TypeVar("_Type")


@dataclass_transform(frozen_default=True)
def message(cls: type[_Type]) -> type[_Type]:
    """Makes a class a message: frozen dataclass, known by its name."""
    made = dataclass(frozen=True)(cls)
    if made.__name__ in _known:
        raise TypeError(f"there are two messages {made.__name__}")
    _known[made.__name__] = made
    return made


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**64:
        raise MessageError(f"{value!r} is not an integer of 64 bits")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise MessageError(f"{value!r} is not text")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise MessageError(f"{value!r} is neither true nor false")
    return value


def _octets(value: Any) -> bytes:
    try:
        return bytes.fromhex(_text(value))
    except ValueError:
        raise MessageError(f"{value!r} is not hex") from None


def _table(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise MessageError(f"{value!r} is not a table")
    return {_text(key): _text(entry) for key, entry in value.items()}


def _address(kind: Callable[[str], Any]) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        try:
            return kind(_text(value))
        except ValueError:
            raise MessageError(f"{value!r} is not an address") from None

    return parse


def _nothing(value: Any) -> None:
    if value is not None:
        raise MessageError(f"{value!r} instead of nothing")


_parsers: dict[Any, Callable[[Any], Any]] = {
    NoneType: _nothing,
    IPv4Address: _address(IPv4Address),
    IPv6Address: _address(IPv6Address),
    int: _integer,
    str: _text,
    bool: _boolean,
    bytes: _octets,
    dict[str, str]: _table,
}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if is_dataclass(value):
        every = [(field, getattr(value, field.name)) for field in fields(value)]
        return {field.name: _plain(one) for field, one in every if field.default is MISSING or one != field.default}
    return value


def encode(body: Any) -> bytes:
    return json.dumps({"is": type(body).__name__, **_plain(body)}, separators=(",", ":")).encode()


def _parse(kind: Any, value: Any) -> Any:
    if kind in _parsers:
        return _parsers[kind](value)
    if is_dataclass(kind) and isinstance(value, dict):
        return _build(kind, value)
    if get_origin(kind) is UnionType:
        for one in get_args(kind):
            try:
                return _parse(one, value)
            except MessageError:
                continue
    kinds = get_args(kind)
    if get_origin(kind) is tuple and isinstance(value, list) and len(value) == len(kinds):
        return tuple(_parse(one, part) for one, part in zip(kinds, value, strict=True))
    raise MessageError(f"{value!r} is not of type {kind}")


_hints = cache(get_type_hints)


@cache
def _required(kind: Any) -> set[str]:
    return {field.name for field in fields(kind) if field.default is MISSING}


def _build(kind: Any, values: dict[str, Any]) -> Any:
    hints = _hints(kind)
    if not _required(kind) <= values.keys() <= hints.keys():
        raise MessageError(f"{kind.__name__}: fields {sorted(values)} instead of {sorted(hints)}")
    return kind(**{name: _parse(hints[name], value) for name, value in values.items()})


def decode(frame: bytes) -> Any:
    """The message in a frame. MessageError."""
    try:
        values = json.loads(frame)
    except (ValueError, RecursionError):
        raise MessageError("not JSON") from None
    if not isinstance(values, dict) or not isinstance(values.get("is"), str) or values["is"] not in _known:
        raise MessageError("no message of this router's version")
    return _build(_known[values.pop("is")], values)


@message
class Ping:
    """Every second, and after each change. boot: a number of this run of the router. revision: of its tenants."""

    boot: int
    revision: int


@message
class Done:
    """An answer without contents."""


@message
class Refused:
    """An answer: it can't be done. errno as of the verb that wanted it."""

    errno: int
    reason: str


@message
class ListTenants:
    """Asks for all tenants of a node."""


@message
class Tenants:
    """The answer: address and name of each."""

    boot: int
    revision: int
    tenants: dict[str, str]


@message
class ListNics:
    """Asks for the addresses of a node's NICs."""


@message
class Nics:
    """The answer: address and device of each. Also told, unasked, when they are others."""

    addresses: dict[str, str]


@message
class Dial:
    """A QP wants a connection to a QP that names it in turn. Addresses and numbers of both; version: of frames."""

    source: str
    source_qp: int
    destination: str
    destination_qp: int
    version: int = 1


@message
class DialTrunk:
    """A router wants a connection for the datagrams of its tenants. version: of their frames."""

    version: int


@message
class Ticket:
    """The answer to both: who connects to the data port and says this (32 bytes, once) gets what it asked for."""

    ticket: bytes
