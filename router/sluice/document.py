# SPDX-License-Identifier: Apache-2.0
"""YAML files that people write: read so that each mistake has its file, line and field, and none stops who reads."""

import os
import stat
from pathlib import Path

import yaml

MAX_BYTES = 1 << 20
"""Far more than a node's tenants take; reading it takes seconds, in which the reader does nothing else."""
MAX_DEPTH = 32


class DocumentError(ValueError):
    """What is wrong, as file:line: field: text."""


class _Loader(yaml.SafeLoader):
    """Nothing may be so deep that the interpreter's own stack ends."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def mistake(path: Path, node: yaml.Node, where: str, text: str) -> DocumentError:
    """where: the field; empty: the whole file."""
    return DocumentError(f"{path}:{node.start_mark.line + 1}: {where}{': ' if where else ''}{text}")


def compose(path: Path) -> yaml.Node | None:
    """The file's document; None: there is nothing in it. DocumentError."""
    data = _read(path)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentError(f"{path}:{line}: is not text in UTF-8: byte {data[error.start]:#04x}") from None
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError(f"{path}:{line}: not YAML: character {text[error.position]!r}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        begin = error.context_mark.line + 1 if error.context_mark else line
        what = f"{error.problem}" + (f" {error.context}, from line {begin} on" if begin != line else "")
        raise DocumentError(f"{path}:{line}: not YAML: {what}") from None


def _read(path: Path) -> bytes:
    """A pipe or a device, which may have no end, or none of its bytes now, is no file to be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise DocumentError(f"{path}: is not a regular file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise DocumentError(f"{path}: is longer than {MAX_BYTES >> 20} MiB")
    return data


def entries(path: Path, node: yaml.Node, where: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The names of a mapping, each with its own node and its value's. DocumentError; where: as in mistake()."""
    if not isinstance(node, yaml.MappingNode):
        raise mistake(path, node, where, "a mapping belongs here (name: value)")
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise mistake(path, key, where, "a name belongs before the colon")
        name = str(key.value)
        field = f"{where}.{name}" if where else name
        if key.tag == "tag:yaml.org,2002:merge":
            raise mistake(path, key, field, "fields aren't merged: write them out, or use an alias for all of them")
        if name in found:
            raise mistake(path, key, field, f"stands here twice, in line {found[name][0].start_mark.line + 1} too")
        found[name] = (key, value)
    return found
