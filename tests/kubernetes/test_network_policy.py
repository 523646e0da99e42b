# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicies hold for RDMA, which no network plugin sees."""

import pytest
from cluster import (
    PERFTEST,
    RETRY_EXCEEDED,
    in_background,
    join_group,
    network_policy,
    pod,
    send_to_group,
    start_server,
    template,
    wait_for_policies,
)
from conftest import wait_until
from control_plane import ControlPlane
from worker import Worker

pytest_plugins = ["cluster"]


@pytest.fixture
def address(plane: ControlPlane, worker: Worker) -> str:
    """Of the server, of two pods that may do as they like."""
    wait_for_policies(0, worker)
    plane.apply(
        template("any", "1G"),
        pod("server", "any", labels={"app": "server"}),
        pod("client", "any", labels={"app": "client"}),
    )
    for name in ("server", "client"):
        plane.wait_for(f"pod/{name}", "condition=Ready")
    found: str = plane.pod("server")["status"]["podIP"]
    return found


def test_a_forbidden_connection_is_to_nobody(plane: ControlPlane, worker: Worker, address: str) -> None:
    # Neither may come to the other: a connection is what one end may begin.
    only_friends = [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}]
    plane.apply(
        network_policy("friends-only", {"app": "server"}, policyTypes=["Ingress"], ingress=only_friends),
        network_policy("closed", {"app": "client"}, policyTypes=["Ingress"]),
    )
    wait_for_policies(2, worker)
    before = worker.metric("sluice_connections_forbidden_total", pod="default/client")
    start_server(worker, "server")
    refused = worker.execute("client", *PERFTEST, address)
    assert refused.returncode != 0
    assert RETRY_EXCEEDED in refused.stdout + refused.stderr
    assert worker.metric("sluice_connections_forbidden_total", pod="default/client") > before
    wait_until(lambda: "RDMAConnectionForbidden" in plane.kubectl("describe", "pod", "client"), "the event")
    text = plane.kubectl("describe", "pod", "client")
    assert "no ingress rule of NetworkPolicy friends-only lets it through at pod default/server" in text

    plane.kubectl("label", "pod", "client", "app=friend", "--overwrite")

    def written() -> bool:
        """The router hears of the label in its own time."""
        wait_until(
            lambda: worker.execute("server", "sh", "-c", "! pidof ib_write_bw").returncode == 0, "the server to end"
        )
        start_server(worker, "server")
        return worker.execute("client", *PERFTEST, address).returncode == 0

    wait_until(written, "the friend to be let through")


def test_the_port_of_the_connection_manager(plane: ControlPlane, worker: Worker, address: str) -> None:
    """A policy that lets a TCP port through does so for rdma_cm, which has ports; not for what has none."""
    to_port = [{"ports": [{"protocol": "TCP", "port": 18600}]}]
    plane.apply(
        network_policy("one-port", {"app": "server"}, policyTypes=["Ingress"], ingress=to_port),
        network_policy("closed", {"app": "client"}, policyTypes=["Ingress"]),
    )
    wait_for_policies(2, worker)
    start_server(worker, "server")
    refused = worker.execute("client", *PERFTEST, address)
    assert RETRY_EXCEEDED in refused.stdout + refused.stderr
    wait_until(lambda: worker.execute("server", "sh", "-c", "! pidof ib_write_bw").returncode == 0, "the server to end")
    # By rdma_cm perftest tells nobody that it listens: the client asks until somebody does.
    in_background(worker, "server", *PERFTEST, "-R")

    def written() -> bool:
        done = worker.execute("client", *PERFTEST, "-R", address)
        return done.returncode == 0 and " 65536" in done.stdout

    wait_until(written, "perftest by the connection manager")
    # The policy names another port from now on: what it let through ends.
    long = [*PERFTEST, "-R", "-D", "3600"]
    wait_until(lambda: worker.execute("server", "sh", "-c", "! pidof ib_write_bw").returncode == 0, "the server to end")
    before = worker.tenant_of("client")["counters"]["tx_bytes"]
    in_background(worker, "server", *long)
    in_background(worker, "client", "until", *long, f"{address};", "do", "sleep", "1;", "done")
    wait_until(lambda: worker.tenant_of("client")["counters"]["tx_bytes"] > before + 10**6, "traffic")
    to_port[0]["ports"][0]["port"] = 18601
    plane.apply(network_policy("one-port", {"app": "server"}, policyTypes=["Ingress"], ingress=to_port))
    wait_until(lambda: worker.metric("sluice_connections_ended_total", pod="default/client") >= 1, "the end")


def test_a_later_policy_ends_connections(plane: ControlPlane, worker: Worker, address: str) -> None:
    long = [*PERFTEST, "-D", "3600"]
    start_server(worker, "server", long)
    in_background(worker, "client", *long, address)
    wait_until(lambda: worker.tenant_of("client")["counters"]["tx_bytes"] > 10**6, "traffic")
    plane.apply(
        network_policy("nobody", {"app": "server"}, policyTypes=["Ingress"]),
        network_policy("nowhere", {"app": "client"}, policyTypes=["Ingress"]),
    )
    wait_until(lambda: worker.metric("sluice_connections_ended_total", pod="default/client") == 1, "the end")
    assert worker.metric("sluice_connections_ended_total", pod="default/server") == 1
    code = wait_until(lambda: worker.execute("client", "cat", "/tmp/exit").stdout.strip(), "perftest to notice")
    assert code != "0"
    wait_until(lambda: "RDMAConnectionEnded" in plane.kubectl("describe", "pod", "client"), "the event")


def test_who_hears_whom_in_a_group(plane: ControlPlane, worker: Worker, address: str) -> None:
    """Where they meet nobody is named: a member that lets nobody in hears nobody, until its policy says otherwise."""
    only_friends = [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}]
    plane.apply(network_policy("friends-only", {"app": "server"}, policyTypes=["Ingress"], ingress=only_friends))
    wait_for_policies(1, worker)
    before = worker.metric("sluice_connections_forbidden_total", pod="default/client")
    join_group(worker, "server")

    def refused() -> bool:
        send_to_group(worker, "client")
        return worker.metric("sluice_connections_forbidden_total", pod="default/client") > before

    wait_until(refused, "the server to be in the group, where it doesn't hear the client")
    assert worker.tenant_of("server")["counters"]["rx_bytes"] == 0
    said = "RDMA multicast to default/server: no ingress rule of NetworkPolicy friends-only lets it through"
    wait_until(lambda: said in plane.kubectl("describe", "pod", "client"), "the event")
    plane.kubectl("label", "pod", "client", "app=friend", "--overwrite")

    def heard() -> bool:
        send_to_group(worker, "client")
        return worker.execute("server", "cat", "/tmp/exit").stdout.strip() == "0"

    wait_until(heard, "the server to hear the client")
    assert worker.tenant_of("server")["counters"]["rx_bytes"] > 0
