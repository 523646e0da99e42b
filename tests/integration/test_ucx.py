# SPDX-License-Identifier: Apache-2.0
"""UCX, unmodified, over RC (with UD for its wire-up), over UD alone, and connected by rdma_cm, between two tenants."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import PATIENCE, RunningRouter, listening, next_port, output_of, serving, wait_until

pytestmark = pytest.mark.skipif(shutil.which("ucx_perftest") is None, reason="ucx-utils is not installed")

RC = "rc_verbs,ud_verbs,self"
UD = "ud_verbs,self"
CASES = [
    (RC, "tag_lat", 8),
    (RC, "tag_bw", 1048576),
    (RC, "tag_sync_lat", 1024),
    (RC, "ucp_am_bw", 65536),
    (RC, "ucp_put_bw", 65536),
    (RC, "ucp_get", 65536),
    (RC, "ucp_add", 8),
    (RC, "ucp_fadd", 8),
    (RC, "ucp_swap", 8),
    (RC, "ucp_cswap", 8),
    (RC, "stream_bw", 4096),
    (UD, "tag_lat", 8),
    (UD, "tag_bw", 16384),
    (UD, "ucp_am_bw", 4096),
]
LANES = [("rc_verbs", test) for test in ("am_lat", "put_lat", "get", "fadd", "cswap")] + [("ud_verbs", "am_lat")]


def pair(router: RunningRouter, tls: str, *argv: str) -> str:
    """Server and client of ucx_perftest; returns what the client prints."""
    port = next_port()
    command = ["env", f"UCX_TLS={tls}", "UCX_NET_DEVICES=sluice0:1", "ucx_perftest", "-p", str(port)]
    server = router.run("b", *command)
    wait_until(lambda: listening(port) or server.poll() is not None, "the server")
    text = output_of(router.run("a", *command, *argv, "127.0.0.1"))
    output_of(server)
    assert "Final:" in text and "ERROR" not in text, text
    return text


def test_device_is_listed(router: RunningRouter) -> None:
    text = output_of(router.run("a", "ucx_info", "-d"))
    for transport in ("rc_verbs", "ud_verbs"):
        assert f"Transport: {transport}\n#         Device: sluice0:1" in text, text


@pytest.mark.parametrize(("tls", "test", "size"), CASES, ids=[f"{case[0].split(',')[0]} {case[1]}" for case in CASES])
def test_protocols(router: RunningRouter, tls: str, test: str, size: int) -> None:
    pair(router, tls, "-t", test, "-s", str(size), "-n", "100", "-w", "10")


@pytest.mark.parametrize(("transport", "test"), LANES, ids=[" ".join(lane) for lane in LANES])
def test_transports(router: RunningRouter, transport: str, test: str) -> None:
    """UCT, without the protocols above it."""
    layout = ["-D", "bcopy"] if test == "get" else []
    argv = ["-d", "sluice0:1", "-x", transport, "-t", test, "-s", "8", "-n", "100", "-w", "10"]
    pair(router, transport, *argv, *layout)


@pytest.fixture(scope="module")
def client_server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UCX's own example of endpoints that are made from socket addresses: ucx_perftest makes none of these."""
    source = Path("/usr/share/doc/libucx-dev/examples/ucp_client_server.c")
    if not source.exists():
        pytest.skip("libucx-dev with its examples is not installed")
    program = tmp_path_factory.mktemp("ucx") / "ucp_client_server"
    subprocess.run(["cc", "-o", program, source, "-lucp", "-lucs"], check=True)
    return program


@pytest.mark.parametrize("protocol", ["tag", "stream", "am"])
def test_wire_up_by_rdma_cm(router: RunningRouter, client_server: Path, protocol: str) -> None:
    port = next_port()
    settings = ["UCX_TLS=rc_verbs,ud_verbs,self", "UCX_NET_DEVICES=sluice0:1", "UCX_SOCKADDR_TLS_PRIORITY=rdmacm"]
    # The server prints what it gets, and nobody reads that meanwhile: less than a pipe holds.
    options = ["-c", protocol, "-p", str(port), "-i", "2", "-s", "16000"]
    server = serving(router, "b", "env", *settings, client_server, *options, port=port)
    client = router.run("a", "env", *settings, "UCX_LOG_LEVEL=debug", client_server, *options, "-a", "127.0.0.1")
    text = output_of(client)
    assert "on device sluice0:1" in text and "on cm rdmacm" in text, text
    assert " ERROR " not in text, text
    # It serves for ever.
    server.terminate()
    text, _ = server.communicate(timeout=PATIENCE)
    assert "ERROR" not in text, text
