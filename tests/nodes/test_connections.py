# SPDX-License-Identifier: Apache-2.0
"""rdma_cm between two nodes: applications find each other by a tenant's address, and by the node's own."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, next_port, output_of, wait_until
from network import Cluster, Node, made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from made("alpha", "beta")


def serving(node: Node, *argv: str | Path, port: int) -> "subprocess.Popen[str]":
    """A server on the node, which listens by rdma_cm."""
    node.ask("tenant-add", name="server", policy={})
    server = node.run("server", *argv)

    def listens() -> bool:
        addresses = node.status("server")["rdma_cm"]["listening"]
        return server.poll() is not None or any(address.endswith(f":{port}") for address in addresses)

    wait_until(listens, f"{argv[0]} listens")
    return server


def addresses(node: Node) -> list[str]:
    """By which others reach the server there: the node's, and its own."""
    node.ask("tenant-add", name="server", policy={})
    return [node.address, str(node.status("server")["address"])]


@pytest.mark.parametrize("which", [0, 1], ids=["node's address", "tenant's address"])
def test_rping(cluster: Cluster, which: int) -> None:
    alpha, beta = cluster["alpha"], cluster["beta"]
    port = next_port()
    address = addresses(beta)[which]
    wait_until(lambda: alpha.ask("status")["cluster"]["peers"]["beta"]["tenants"], "news of beta")
    server = serving(beta, "rping", "-s", "-p", str(port), "-C", "10", "-V", port=port)
    client = alpha.run("client", "rping", "-c", "-a", address, "-p", str(port), "-C", "10", "-v", "-V")
    assert output_of(client).count("ping data: ") == 10
    output_of(server)


def test_nobody_listens(cluster: Cluster) -> None:
    client = cluster["alpha"].run(
        "client", "rping", "-c", "-a", cluster["beta"].address, "-p", str(next_port()), "-C", "1"
    )
    text, _ = client.communicate(timeout=PATIENCE)
    assert client.returncode != 0 and "RDMA_CM_EVENT_REJECTED, error 8" in text


@pytest.mark.parametrize("options", [[], ["-c", "20", "-C", "3"], ["-S", "65000"]], ids=str)
def test_ucmatose(cluster: Cluster, options: list[str]) -> None:
    port = next_port()
    server = serving(cluster["beta"], "ucmatose", "-p", str(port), *options, port=port)
    client = cluster["alpha"].run("client", "ucmatose", "-p", str(port), *options, "-s", cluster["beta"].address)
    assert "return status 0" in output_of(client)
    assert "return status 0" in output_of(server)


@pytest.mark.parametrize("options", [[], ["-c", "10", "-C", "3"], ["-S", "4000"]], ids=str)
def test_udaddy(cluster: Cluster, options: list[str]) -> None:
    server = serving(cluster["beta"], "udaddy", *options, port=7174)
    client = cluster["alpha"].run("client", "udaddy", *options, "-s", cluster["beta"].address)
    assert "return status 0" in output_of(client)
    assert "return status 0" in output_of(server)


@pytest.mark.parametrize(
    "test", [f"ib_{kind}_{what}" for kind in ("write", "read", "send", "atomic") for what in ("bw", "lat")]
)
def test_perftest(cluster: Cluster, test: str) -> None:
    port = next_port()
    options = ["-R", "-p", str(port), "-n", "200", "-F"]
    server = serving(cluster["beta"], test, *options, port=port)
    output_of(cluster["alpha"].run("client", test, *options, cluster["beta"].address))
    output_of(server)


def test_the_other_node_dies(cluster: Cluster) -> None:
    """Its router is killed under an established connection, and another one starts: the application hears of it."""
    port = next_port()
    beta = cluster["beta"]
    server = serving(beta, "rping", "-s", "-p", str(port), port=port)
    client = cluster["alpha"].run("client", "rping", "-c", "-a", beta.address, "-p", str(port), "-v")
    assert client.stdout is not None
    assert "ping data: " in client.stdout.readline()
    beta.kill()
    server.kill()
    beta.start()
    cluster.wait_for_links()
    text, _ = client.communicate(timeout=PATIENCE)
    assert "DISCONNECT EVENT" in text
