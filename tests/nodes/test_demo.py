# SPDX-License-Identifier: Apache-2.0
"""`sluice demo`, as an operator runs it, in a few seconds."""

import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import PATIENCE, next_port


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_demo(nodes: str) -> None:
    """All of its phases are shown, with what was moved in each; and it leaves nothing."""
    if nodes == "2" and os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    demo = subprocess.Popen(
        [sys.executable, "-m", "sluice", "demo", "--nodes", nodes, "--seconds", "2", "--port", str(next_port())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    text, _ = demo.communicate(timeout=2 * PATIENCE)
    assert demo.returncode == 0, text
    assert ("on node alpha and 'receiver' on node beta" in text) == (nodes == "2")
    phases = (("no ceiling", "none"), ("ceiling 2Gbps", "2Gbps"), ("changed live to 500Mbps", "500Mbps"))
    rows = [re.search(rf"^{phase} +{asked} +(\S+bps)", text, re.MULTILINE) for phase, asked in phases]
    # A phase of two seconds may be one in which a busy machine did something else.
    assert all(rows) and any(row[1] != "0bps" for row in rows if row), text
    namespaces = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert f"sluice{demo.pid}-" not in namespaces


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_interrupted_leaves_nothing(end: signal.Signals) -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    demo = subprocess.Popen(
        [sys.executable, "-m", "sluice", "demo", "--nodes", "2", "--seconds", "60", "--port", str(next_port())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        # Who runs the tests in the background may have it ignored, which is inherited.
        preexec_fn=lambda: signal.signal(end, signal.SIG_DFL),
    )
    assert demo.stdout is not None
    text = b""
    while b"no ceiling" not in text:
        data = demo.stdout.read(4096)
        assert data, text
        text += data
    demo.send_signal(end)
    demo.send_signal(end)
    demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 128 + end
    namespaces = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert f"sluice{demo.pid}-" not in namespaces
