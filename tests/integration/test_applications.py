# SPDX-License-Identifier: Apache-2.0
"""Other applications of Debian's, unmodified."""

import re
import shutil

import pytest
from conftest import PATIENCE, RunningRouter, exported, listening, next_port, output_of, wait_until


def need(command: str) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")


QPERF = [
    *("rc_bw", "rc_bi_bw", "rc_lat", "rc_rdma_read_bw", "rc_rdma_read_lat", "rc_rdma_write_bw", "rc_rdma_write_lat"),
    *("rc_rdma_write_poll_lat", "rc_compare_swap_mr", "rc_fetch_add_mr", "ver_rc_compare_swap", "ver_rc_fetch_add"),
]


def test_qperf(router: RunningRouter) -> None:
    """By rdma_cm, as over every RoCE device: by itself it connects QPs by LIDs, UD and UC too."""
    need("qperf")
    if "rdma_create_id" not in exported():
        pytest.skip("built without rdma_cm")
    port = next_port()
    server = router.run("b", "qperf", "-lp", str(port))
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    text = output_of(router.run("a", "qperf", "-lp", str(port), "-t", "1", "-cm", "1", "127.0.0.1", *QPERF))
    server.terminate()
    for test in QPERF:
        assert re.search(rf"^{test}:\n +(bw|latency|msg_rate) +=", text, re.MULTILINE), text
    assert "failed" not in text, text


def _qperf_of_datagrams(router: RunningRouter) -> tuple[int, str]:
    port = next_port()
    server = router.run("b", "qperf", "-lp", str(port))
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    child = router.run("a", "qperf", "-lp", str(port), "-t", "1", "127.0.0.1", "ud_lat")
    text, _ = child.communicate(timeout=PATIENCE)
    server.terminate()
    return child.returncode, text


def test_qperf_of_datagrams(router: RunningRouter) -> None:
    """It knows no GIDs for these: a RoCE device has no way to such a peer, and says so (man ibv_create_ah: EINVAL)."""
    need("qperf")
    for _ in range(5):  # which of its two ends fails first is open; one that fails second says no reason
        status, text = _qperf_of_datagrams(router)
        assert status != 0, text
        if "failed to create address handle: Invalid argument" in text:
            return
    pytest.fail(text)


def test_asyncwatch_waits(router: RunningRouter) -> None:
    """It opens the device and waits for events; nothing happens to it until it is told to end."""
    need("ibv_asyncwatch")
    child = router.run("a", "stdbuf", "-oL", "ibv_asyncwatch")
    assert child.stdout is not None
    line = child.stdout.readline()
    assert "sluice0" in line and "async event FD" in line, line
    child.terminate()
    child.wait(PATIENCE)


def test_libfabric_sees_the_device(router: RunningRouter) -> None:
    need("fi_info")
    child = router.run("a", "fi_info", "-p", "verbs")
    text, _ = child.communicate(timeout=PATIENCE)
    if "No data available" in text:
        pytest.skip("libfabric's verbs provider asks rdma_cm for its devices")
    assert "domain: sluice0" in text, text
