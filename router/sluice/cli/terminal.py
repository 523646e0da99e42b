# SPDX-License-Identifier: Apache-2.0
"""What a terminal shows beside text."""

import os
import sys

BOLD, GREEN, YELLOW, RED = "\033[1m", "\033[32m", "\033[33m", "\033[31m"
PLAIN = "\033[0m"


def is_live(columns: int = 0, rows: int = 0) -> bool:
    """Whether lines can be drawn again there: a terminal that moves its cursor, of this size at least."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return False
    size = os.get_terminal_size(sys.stdout.fileno())
    # One that doesn't know its size says 0.
    return not size.columns or (size.columns >= columns and size.lines >= rows)


def styled(style: str, text: str) -> str:
    """Only on a terminal, and not where the user wants none (NO_COLOR, no-color.org)."""
    return f"{style}{text}{PLAIN}" if is_live() and not os.environ.get("NO_COLOR") else text
