# SPDX-License-Identifier: Apache-2.0
"""Two real nodes: what holds within a node holds between pods of different nodes, and a node that is lost."""

from collections.abc import Iterator
from typing import Any

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
    write_bandwidth,
)
from conftest import wait_until
from control_plane import WITHIN, ControlPlane
from worker import Worker

pytest_plugins = ["cluster"]


@pytest.fixture(scope="module")
def second(plane: ControlPlane, worker: Worker) -> Iterator[Worker]:
    running = Worker(plane, "worker-2", {"mlx5_0": "25G"})
    running.start()
    wait_until(lambda: worker.peers().get("worker-2", {}).get("alive"), "the link to the second")
    yield running
    running.stop()
    plane.kubectl("delete", "node", "worker-2", "--ignore-not-found")
    wait_until(lambda: slices(plane) == ["worker-1-rdma.sluice.dev"], "its bandwidth to go")


def slices(plane: ControlPlane) -> list[str]:
    return [each["metadata"]["name"] for each in plane.get("resourceslices")["items"]]


def on(node: str, name: str, template_name: str) -> dict[str, Any]:
    return pod(name, template_name, labels={"app": name}, nodeSelector={"kubernetes.io/hostname": node})


@pytest.fixture
def address(plane: ControlPlane, worker: Worker, second: Worker) -> str:
    """Of the server, on the second node; the client, which may have 1 Gbit/s, is on the first."""
    wait_for_policies(0, worker, second)
    plane.apply(
        template("open", "1G"),
        template("tight", "1G", max="1G"),
        on("worker-2", "server", "open"),
        on("worker-1", "client", "tight"),
    )
    for name in ("server", "client"):
        plane.wait_for(f"pod/{name}", "condition=Ready")
    found: str = plane.pod("server")["status"]["podIP"]
    return found


def test_routers_find_each_other(worker: Worker, second: Worker) -> None:
    """And each other's keys, by their nodes' ResourceSlices: no cluster file."""
    assert worker.peers()["worker-2"]["alive"]
    wait_until(lambda: second.peers().get("worker-1", {}).get("alive"), "the link back")


def test_the_ceiling_holds(plane: ControlPlane, worker: Worker, second: Worker, address: str) -> None:
    assert 0 < write_bandwidth(worker, "server", "client", address) < 1.1
    assert worker.tenant_of("client")["counters"]["tx_bytes"] == second.tenant_of("server")["counters"]["rx_bytes"] > 0


def test_a_forbidden_connection_is_to_nobody(plane: ControlPlane, worker: Worker, second: Worker, address: str) -> None:
    plane.apply(
        network_policy("server-closed", {"app": "server"}, policyTypes=["Ingress"]),
        network_policy("client-closed", {"app": "client"}, policyTypes=["Ingress"]),
    )
    wait_for_policies(2, worker, second)
    start_server(worker, "server")
    refused = worker.execute("client", *PERFTEST, address)
    assert refused.returncode != 0
    assert RETRY_EXCEEDED in refused.stdout + refused.stderr
    assert worker.metric("sluice_connections_forbidden_total", pod="default/client") >= 1
    text = "no ingress rule of NetworkPolicy server-closed lets it through at pod default/server"
    wait_until(lambda: text in plane.kubectl("describe", "pod", "client"), "the event")


def test_a_later_policy_ends_connections(plane: ControlPlane, worker: Worker, second: Worker, address: str) -> None:
    long = [*PERFTEST, "-D", "3600"]
    start_server(worker, "server", long)
    in_background(worker, "client", *long, address)
    wait_until(lambda: worker.tenant_of("client")["counters"]["tx_bytes"] > 10**6, "traffic")
    # Whichever node is first: the other end doesn't go away by itself.
    worker.output("server", "sh", "-c", "kill -STOP $(pidof ib_write_bw)")
    plane.apply(
        network_policy("nobody", {"app": "server"}, policyTypes=["Ingress"]),
        network_policy("nowhere", {"app": "client"}, policyTypes=["Ingress"]),
    )
    # Each node's router ends its own end.
    ended = "sluice_connections_ended_total"
    wait_until(lambda: worker.metric(ended, pod="default/client") == 1, "the client's end")
    wait_until(lambda: second.metric(ended, pod="default/server") == 1, "the server's end")

    def told(name: str) -> bool:
        return "RDMAConnectionEnded" in plane.kubectl("describe", "pod", name)

    wait_until(lambda: told("client") and told("server"), "the events")
    code = wait_until(lambda: worker.execute("client", "cat", "/tmp/exit").stdout.strip(), "perftest to notice")
    assert code != "0"


def test_who_hears_whom_in_a_group(plane: ControlPlane, worker: Worker, second: Worker, address: str) -> None:
    """It is the member's node that asks."""
    friend = [{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}]}]
    plane.apply(network_policy("friends-only", {"app": "server"}, policyTypes=["Ingress"], ingress=friend))
    wait_for_policies(1, worker, second)
    join_group(second, "server")

    def refused() -> bool:
        send_to_group(worker, "client")
        return second.metric("sluice_connections_forbidden_total", pod="default/client") >= 1

    wait_until(refused, "the server to be in the group, where it doesn't hear the client")
    assert second.tenant_of("server")["counters"]["rx_bytes"] == 0
    plane.kubectl("label", "pod", "client", "friend=yes")

    def heard() -> bool:
        send_to_group(worker, "client")
        return worker.execute("server", "cat", "/tmp/exit").stdout.strip() == "0"

    wait_until(heard, "the server to hear the client")


def test_a_node_is_lost(plane: ControlPlane, worker: Worker, second: Worker, address: str) -> None:
    """As by a power cut; it comes last, since nobody comes back."""
    long = [*PERFTEST, "-D", "3600"]
    start_server(worker, "server", long)
    in_background(worker, "client", *long, address)
    wait_until(lambda: worker.tenant_of("client")["counters"]["tx_bytes"] > 10**6, "traffic")
    second.lose()
    code = wait_until(lambda: worker.execute("client", "cat", "/tmp/exit").stdout.strip(), "perftest to notice")
    assert code != "0"
    assert RETRY_EXCEEDED in worker.output("client", "cat", "/tmp/out")
    plane.wait_for("node/worker-2", "condition=Ready=Unknown")
    plane.kubectl("delete", "node", "worker-2")
    wait_until(lambda: slices(plane) == ["worker-1-rdma.sluice.dev"], "its bandwidth to go")
    wait_until(lambda: "worker-2" not in worker.peers(), "its router to be forgotten")
    # Who needs the pod has it placed where there is room. The control plane would collect it too, a minute later.
    plane.kubectl("delete", "pod", "server", "--force", "--grace-period=0", WITHIN)
    plane.apply(pod("server", "open"))
    plane.wait_for("pod/server", "condition=Ready")
    assert write_bandwidth(worker, "server", "client", plane.pod("server")["status"]["podIP"]) > 0
