# SPDX-License-Identifier: Apache-2.0
"""docs/verbs.md is what docs/verbs.py makes of the code."""

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_verbs_page_is_fresh() -> None:
    made = subprocess.run([sys.executable, DOCS / "verbs.py"], capture_output=True, text=True, check=True).stdout
    assert (DOCS / "verbs.md").read_text() == made, "stale: run make docs"
