# SPDX-License-Identifier: Apache-2.0
"""The conformance suite (tests/conformance) over the local transport: in one tenant, and between two."""

import pytest
from conformance import LIMIT, SUITE, judge
from conftest import RunningRouter, next_port, wait_until


@pytest.mark.parametrize("how", [[], ["--processes"]], ids=["one process", "two processes"])
def test_in_one_tenant(router: RunningRouter, how: list[str]) -> None:
    child = router.run("a", SUITE, "--json", *how)
    output, _ = child.communicate(timeout=LIMIT)
    judge(output)


def test_between_tenants(router: RunningRouter) -> None:
    port = next_port()
    first = router.run("a", SUITE, "--json", "--listen", str(port))
    other = router.run("b", SUITE, "--connect", f"127.0.0.1:{port}", "--patience", "30")
    output, _ = first.communicate(timeout=LIMIT)
    wait_until(lambda: other.poll() is not None, "the other end's exit")
    judge(output)
