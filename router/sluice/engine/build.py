# SPDX-License-Identifier: Apache-2.0
"""Writes the C source of the cffi module `sluice._engine`.

The C headers are the only declarations: their text, less comments and
preprocessor lines, is what cffi parses.

    build.py CSRC/abi.h CSRC/engine.h OUTPUT.c
"""

import re
import sys
from pathlib import Path

import cffi


def declarations(header: str) -> str:
    """The enums, structs and prototypes of a header that holds nothing else."""
    without_comments = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    return "\n".join(line for line in without_comments.splitlines() if not line.startswith("#"))


def main(headers: list[str], output: str) -> None:
    builder = cffi.FFI()
    for header in headers:
        builder.cdef(declarations(Path(header).read_text()))
    builder.set_source("sluice._engine", '#include "engine.h"\n')
    builder.emit_c_code(output)


if __name__ == "__main__":
    main(sys.argv[1:-1], sys.argv[-1])
