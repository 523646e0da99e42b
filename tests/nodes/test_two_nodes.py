# SPDX-License-Identifier: Apache-2.0
"""Real applications between two nodes, and what happens when the wire or a router goes away."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance import LIMIT, SUITE, judge
from conftest import PATIENCE, REPORTS, next_port, output_of, wait_until
from network import Cluster, made
from sluice.cluster.data_port import MAX_STRANGERS

Program = Callable[[str], Path]

TOOLS = [
    ["ib_write_bw", "-a"],
    ["ib_write_bw", "-q", "4", "-l", "8", "-s", "64"],
    ["ib_write_bw", "-b"],
    ["ib_write_lat", "-s", "8"],
    ["ib_read_bw", "-a"],
    ["ib_read_bw", "-b"],
    ["ib_read_lat"],
    ["ib_send_bw", "-a"],
    ["ib_send_bw", "-b", "-e"],
    ["ib_send_lat", "-s", "8"],
    ["ib_atomic_bw"],
    ["ib_atomic_lat"],
    ["ib_write_bw", "-c", "UC"],
    ["ib_send_bw", "-c", "UC"],
    ["ib_send_bw", "-c", "UD", "-s", "1024"],
    ["ib_send_lat", "-c", "UD"],
    ["ib_send_lat", "-e"],
    ["ib_write_lat", "-c", "UC"],
    ["ib_send_lat", "-c", "UC"],
    ["ib_write_bw", "-c", "XRC", "-q", "2"],
    ["ib_send_bw", "--use-srq", "-q", "2"],
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from made("alpha", "beta")


def pair(cluster: Cluster, *argv: str, port: int) -> "tuple[subprocess.Popen[str], subprocess.Popen[str]]":
    """Server on beta, client on alpha."""
    server = cluster["beta"].run("server", *argv, "-p", str(port))
    wait_until(lambda: cluster["beta"].listening(port) or server.poll() is not None, "the server")
    return server, cluster["alpha"].run("client", *argv, "-p", str(port), cluster["beta"].address)


@pytest.mark.parametrize("argv", TOOLS, ids=" ".join)
def test_perftest(cluster: Cluster, argv: list[str]) -> None:
    messages = "20" if argv[0].endswith("_lat") else "104"
    server, client = pair(cluster, *argv, REPORTS, "-n", messages, port=next_port())
    text = output_of(client)
    output_of(server)
    assert "Failed" not in text and "Completion with error" not in text


@pytest.mark.parametrize("options", [[], ["-e"], ["-n", "300", "-s", "65536"]], ids=str)
def test_rc_pingpong(cluster: Cluster, options: list[str]) -> None:
    server, client = pair(cluster, "ibv_rc_pingpong", "-g", "0", *options, port=next_port())
    assert "usec/iter" in output_of(client)
    output_of(server)


@pytest.mark.parametrize("options", [[], ["-s", "64"], ["-e"]], ids=str)
def test_ud_pingpong(cluster: Cluster, options: list[str]) -> None:
    server, client = pair(cluster, "ibv_ud_pingpong", "-g", "0", *options, port=next_port())
    assert "usec/iter" in output_of(client)
    output_of(server)


UCX_RC, UCX_UD = "rc_verbs,ud_verbs,self", "ud_verbs,self"


@pytest.mark.skipif(shutil.which("ucx_perftest") is None, reason="ucx-utils is not installed")
@pytest.mark.parametrize(
    ("transports", "test", "size"),
    [(UCX_RC, "tag_bw", 1 << 20), (UCX_RC, "ucp_put_bw", 65536), (UCX_RC, "ucp_get", 65536), (UCX_UD, "tag_lat", 8)],
)
def test_ucx(cluster: Cluster, transports: str, test: str, size: int) -> None:
    port = str(next_port())
    argv = ["env", f"UCX_TLS={transports}", "UCX_NET_DEVICES=sluice0:1", "ucx_perftest", "-p", port]
    server = cluster["beta"].run("server", *argv)
    wait_until(lambda: cluster["beta"].listening(int(port)) or server.poll() is not None, "the server")
    options = ["-t", test, "-s", str(size), "-n", "100", "-w", "10"]
    text = output_of(cluster["alpha"].run("client", *argv, *options, cluster["beta"].address))
    output_of(server)
    assert "Final:" in text and "ERROR" not in text, text


@pytest.mark.parametrize("memory", ["heap", "stack"])
def test_every_byte(cluster: Cluster, program: Program, memory: str) -> None:
    """Stacks are reached by their own process alone: their bytes take a way of their own at both ends."""
    port = next_port()
    command = ("env", f"BYTES_ON={memory}", program("bytes"), str(port))
    server = cluster["beta"].run("server", *command)
    wait_until(lambda: cluster["beta"].listening(port) or server.poll() is not None, "the server")
    client = cluster["alpha"].run("client", *command, cluster["beta"].address)
    assert "every byte right" in output_of(client)
    output_of(server)


def datagrams(cluster: Cluster, node: str, program: Program, *arguments: str) -> "subprocess.Popen[str]":
    options = ("--ip", "10.9.0.7") if arguments == ("receive",) else ()
    return cluster[node].run(f"{arguments[0]}er", program("datagrams"), *arguments, options=options)


def line_of(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_an_address_that_is_known_later(cluster: Cluster, program: Program) -> None:
    """An address handle for a tenant that is on no node yet: what is sent arrives as soon as it is on one."""
    sender = datagrams(cluster, "alpha", program, "send", "10.9.0.7")
    assert line_of(sender) == "ready"
    assert "10.9.0.7" not in str(cluster["beta"].ask("status"))
    receiver = datagrams(cluster, "beta", program, "receive")
    assert sender.stdin is not None
    sender.stdin.write(f"{line_of(receiver)}\n")
    sender.stdin.flush()
    assert "arrived" in output_of(receiver)
    sender.communicate("\n", timeout=PATIENCE)
    assert sender.returncode == 0


@pytest.mark.parametrize("group", ["239.7.7.7", "ff0e::7:7"])
def test_a_group(cluster: Cluster, program: Program, group: str) -> None:
    """Of either kind, on both nodes."""
    receivers = [datagrams(cluster, node, program, "receive", group) for node in ("alpha", "beta")]
    assert all(line_of(receiver).isdigit() for receiver in receivers)
    sender = datagrams(cluster, "alpha", program, "send", group)
    assert line_of(sender) == "ready"
    assert sender.stdin is not None
    sender.stdin.write(f"{0xFFFFFF}\n")
    sender.stdin.flush()
    assert all("arrived" in output_of(receiver) for receiver in receivers)
    sender.communicate("\n", timeout=PATIENCE)
    assert sender.returncode == 0


def test_conformance(cluster: Cluster) -> None:
    """The conformance suite (tests/conformance): the same statements as on one node."""
    port = next_port()
    first = cluster["alpha"].run("client", SUITE, "--json", "--listen", str(port))
    other = cluster["beta"].run("server", SUITE, "--connect", f"{cluster['alpha'].address}:{port}", "--patience", "30")
    output, _ = first.communicate(timeout=LIMIT)
    wait_until(lambda: other.poll() is not None, "the other end's exit")
    judge(output)


def test_an_address_is_given_once_in_the_cluster(cluster: Cluster) -> None:
    holder = cluster["alpha"].run("holder", "cat", options=("--ip", "10.9.0.1"))
    wait_until(lambda: cluster["beta"].ask("status")["cluster"]["peers"]["alpha"]["tenants"], "news of alpha")
    wait_until(
        lambda: (
            "10.9.0.1" in cluster["alpha"].ask("status")["tenants"].get("holder", {}).get("address", "")
            and "belongs to tenant 'holder' of node 'alpha'"
            in cluster["beta"].run("thief", "true", options=("--ip", "10.9.0.1")).communicate(timeout=PATIENCE)[0]
        ),
        "a refusal",
    )
    holder.communicate("", timeout=PATIENCE)


def test_status_shows_the_other_nodes(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "sluice", "status", "--state-dir", str(cluster["alpha"].state_dir)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
    assert text.splitlines()[1].split()[:3] == ["beta", "192.0.2.2:7471", "up"], text


STRANGER = """
import socket
for text in (bytes(64), b""):
    with socket.create_connection(("{address}", 7472), timeout={patience}) as stranger:
        stranger.sendall(text)
        try:
            assert stranger.recv(1) == b""
        except ConnectionResetError:
            pass  # what it said was unread
"""


def test_a_stranger_gets_nothing_but_a_close(cluster: Cluster) -> None:
    alpha, beta = cluster["alpha"], cluster["beta"]
    refused = alpha.ask("status")["cluster"]["connections"]["refused"]
    subprocess.run(
        beta.inside(sys.executable, "-c", STRANGER.format(address=alpha.address, patience=PATIENCE)),
        check=True,
        timeout=PATIENCE,
    )
    wait_until(lambda: alpha.ask("status")["cluster"]["connections"]["refused"] == refused + 2, "refusals")
    assert "refused a connection from 192.0.2.2" in alpha.logged()


MANY_STRANGERS = """
import socket, sys
strangers = [socket.create_connection(("{address}", 7472), timeout={patience}) for _ in range({count})]
print("ready", flush=True)
sys.stdin.read()
"""


def test_many_strangers_keep_nobody_out(cluster: Cluster) -> None:
    """They come to the data port, say nothing and stay, more than there may be: QPs are connected all the same."""
    alpha, beta = cluster["alpha"], cluster["beta"]
    refused = alpha.ask("status")["cluster"]["connections"]["refused"]
    text = MANY_STRANGERS.format(address=alpha.address, patience=PATIENCE, count=MAX_STRANGERS + 50)
    strangers = subprocess.Popen(
        beta.inside(sys.executable, "-c", text), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert strangers.stdout is not None
        assert strangers.stdout.readline() == "ready\n"
        server, client = pair(cluster, "ibv_rc_pingpong", "-g", "0", port=next_port())
        assert "usec/iter" in output_of(client)
        output_of(server)
        wait_until(lambda: alpha.ask("status")["cluster"]["connections"]["refused"] >= refused + 50, "refusals")
    finally:
        strangers.communicate("", timeout=PATIENCE)
