# SPDX-License-Identifier: Apache-2.0
"""Compares runs of the conformance suite: python compare.py REFERENCE.json RUN.json…

The reference tells whether a test is right: where it fails there, test or list of deviations is wrong. Exit code 1
where any run has a failure, with each statement that doesn't hold.

A kernel device loses races of its own now and then, and so runs over it may try again what fails (conformance
--tries): what passed then counts as passed, and is named.
"""

import json
import sys
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tests: list[dict[str, Any]] = json.loads(path.read_text())["tests"]
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{path}: not the result of a run that came to its end: {error}")
    return {test["name"]: test for test in tests}


def main(paths: list[Path]) -> int:
    runs = {path.stem: read(path) for path in paths}
    reference, *others = runs
    for test in runs[reference].values():
        if test["outcome"] == "deviation":
            print(f"{reference}: known deviation: {test['name']}: {test['deviation']}")
        elif "deviation" in test and test["outcome"] == "ok":
            print(f"{reference}: {test['name']} holds now: its deviation can go")
    for run in others:
        lacking = [name for name, test in runs[run].items() if test["outcome"] == "skip"]
        for name in lacking:
            if runs[reference].get(name, {}).get("outcome") == "ok":
                print(f"{run}: {name} is skipped, though {reference} does it: {runs[run][name]['reason']}")
    for run, tests in runs.items():
        for name, test in tests.items():
            if test["tries"] > 1 and test["outcome"] != "failed":
                print(f"{run}: {name} holds at try {test['tries']}; before that see {run}.log")
        counts: dict[str, int] = {}
        for test in tests.values():
            counts[test["outcome"]] = counts.get(test["outcome"], 0) + 1
        print(f"{run}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    # Last, so that they are what the end of a log shows.
    failures = [(run, test) for run, tests in runs.items() for test in tests.values() if test["outcome"] == "failed"]
    for run, test in failures:
        print(f"{run}: {test['name']} FAILED: {test['statement']} ({test['source']}): {test['reason']}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
