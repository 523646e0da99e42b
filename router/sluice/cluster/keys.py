# SPDX-License-Identifier: Apache-2.0
"""A node's CURVE key pair (RFC 26, CurveZMQ): how routers know each other.

The key file holds both halves, 40 characters of Z85 each, and is readable by its
owner only. The public half goes into everybody's cluster file.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import zmq

_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


class KeyFileError(ValueError):
    """What is wrong with a key or a key file, and what would be right."""


def check_public_key(text: str) -> bytes:
    """The 40 bytes of a public key. KeyFileError."""
    if _KEY.fullmatch(text) is None:
        raise KeyFileError(
            f"{text!r} is not a public key: 40 characters as 'sluice keys show' prints them belong here, in quotes"
        )
    return text.encode()


@dataclass(frozen=True)
class KeyPair:
    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair({self.public.decode()})"


def generate(path: Path) -> KeyPair:
    """Makes a key file, whole or not at all. KeyFileError where there is one: a key that is lost can't be had back."""
    public, secret = zmq.curve_keypair()
    text = f"public {public.decode()}\nsecret {secret.decode()}\n"
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(new, path)
        finally:
            new.unlink()
    except FileExistsError:
        raise KeyFileError(f"{path}: exists already; remove it first, if no node uses it any more") from None
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    return KeyPair(public, secret)


def load(path: Path) -> KeyPair:
    """Reads a key file. KeyFileError where it isn't one, or others may read it."""
    try:
        mode = path.stat().st_mode
        words = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}; 'sluice keys generate {path}' makes a key") from None
    except UnicodeDecodeError:
        words = []
    if mode & 0o077:
        raise KeyFileError(f"{path}: others may read this key: chmod 600 {path}")
    if len(words) != 4 or words[0] != "public" or words[2] != "secret":
        raise KeyFileError(f"{path}: is not a key file of 'sluice keys generate'")
    public, secret = check_public_key(words[1]), check_public_key(words[3])
    if zmq.curve_public(secret) != public:
        raise KeyFileError(f"{path}: the public key doesn't belong to the secret one")
    return KeyPair(public, secret)
