# SPDX-License-Identifier: Apache-2.0
"""Routers that go and come, an API server that is away, a past that it has forgotten."""

import asyncio
import json
import shutil

from cluster import PERFTEST, UCX, in_background, pod, start_server, start_ucx_server, template, write_bandwidth
from conftest import PATIENCE, wait_until
from control_plane import WITHIN, ControlPlane
from sluice.kubernetes.api import Api
from sluice.kubernetes.pod import Pod, read_pod
from sluice.kubernetes.watch import Watch
from worker import Worker

pytest_plugins = ["cluster"]


def two_pods(plane: ControlPlane) -> str:
    plane.apply(template("ten", "10G"), pod("server", "ten"), pod("client", "ten"))
    for name in ("server", "client"):
        plane.wait_for(f"pod/{name}", "condition=Ready")
    address: str = plane.pod("server")["status"]["podIP"]
    return address


def test_the_router_is_restarted_under_running_pods(plane: ControlPlane, worker: Worker) -> None:
    address = two_pods(plane)
    before = worker.nic_states()
    for end in (worker.stop_router, worker.kill_router):
        end()
        worker.start_router()
        assert worker.nic_states() == before
        # The containers are the same, and so is the directory that they have mounted.
        assert write_bandwidth(worker, "server", "client", address) > 0
    assert {plane.pod(name)["status"]["containerStatuses"][0]["restartCount"] for name in ("server", "client")} == {0}
    plane.kubectl("delete", "pods", "--all", WITHIN)
    wait_until(lambda: not worker.tenants(), "everything to be returned")


def test_programs_lose_their_device_with_the_router(plane: ControlPlane, worker: Worker) -> None:
    """Their sessions end with it: they end with an error instead of waiting for ever, and find the device again."""
    address = two_pods(plane)
    long = [*PERFTEST, "-D", "3600"]
    start_server(worker, "server", long)
    in_background(worker, "client", *long, address)
    wait_until(lambda: worker.tenant_of("client")["counters"]["tx_bytes"] > 10**6, "traffic")
    ends = ["/tmp/exit"]
    if shutil.which("ucx_perftest") is not None:
        start_ucx_server(worker, "server", "-ucx")
        in_background(worker, "client", *UCX, "-t", "tag_bw", "-n", "1000000000", address, mark="-ucx")
        wait_until(lambda: worker.tenant_of("client")["counters"]["qps"] > 1, "UCX's connections")
        ends.append("/tmp/exit-ucx")
    worker.stop_router()
    worker.start_router()

    def codes() -> list[str]:
        return worker.execute("client", "cat", *ends).stdout.split()

    wait_until(lambda: len(codes()) == len(ends), "the programs to notice")
    assert "0" not in codes()
    assert write_bandwidth(worker, "server", "client", address) > 0


def test_a_pod_ends_while_the_router_is_away(plane: ControlPlane, worker: Worker) -> None:
    two_pods(plane)
    worker.stop_router()
    plane.kubectl("delete", "pods", "--all", "--wait=false")
    worker.start_router()
    wait_until(lambda: not worker.tenants(), "the kubelet to ask again, and everything to be returned")


def test_a_node_is_rebooted(plane: ControlPlane, worker: Worker) -> None:
    """All that ran has ended, and /run is empty: the pods come back with what they were granted."""
    two_pods(plane)
    before = worker.nic_states()
    worker.lose()
    for directory in (worker.state_dir, worker.cdi_dir):
        shutil.rmtree(directory)
    worker.cdi_dir.mkdir()
    worker.run_kubelet()
    worker.start_router()

    def starts() -> set[int]:
        statuses = (plane.pod(name)["status"] for name in ("server", "client"))
        return {status["containerStatuses"][0]["restartCount"] for status in statuses}

    wait_until(lambda: starts() == {1}, "the containers to be started again")
    for name in ("server", "client"):
        plane.wait_for(f"pod/{name}", "condition=Ready")
    address = plane.pod("server")["status"]["podIP"]
    assert worker.nic_states() == before
    assert write_bandwidth(worker, "server", "client", address) > 0


def test_the_drivers_sockets_are_removed(plane: ControlPlane, worker: Worker) -> None:
    """As when a kubelet is installed anew: it finds the driver again, and the node is not taken for ready till then."""

    def registrations() -> int:
        return worker.logged().count("the kubelet has registered")

    def remove(path: str) -> None:
        before = registrations()
        (worker.kubelet_dir / path).unlink()
        wait_until(lambda: registrations() > before, "the kubelet to come again")
        wait_until(worker.ready, "the router to be ready")

    remove("plugins/rdma.sluice.dev/dra.sock")
    remove("plugins_registry/rdma.sluice.dev-reg.sock")
    plane.apply(template("ten", "10G"), pod("one", "ten"))
    plane.wait_for("pod/one", "condition=Ready")


def test_the_api_server_is_away_for_a_minute(plane: ControlPlane, worker: Worker) -> None:
    address = two_pods(plane)
    minute = [*PERFTEST, "-D", "60"]
    start_server(worker, "server", minute)
    in_background(worker, "client", *minute, address)
    wait_until(lambda: worker.tenant_of("client")["counters"]["tx_bytes"] > 10**6, "traffic")
    plane.stop_apiserver()
    try:
        wait_until(lambda: worker.metric("sluice_watch_up", path="/api/v1/pods") == 0, "the router to notice")
        # What runs goes on to its end, by what the routers know.
        wait_until(lambda: worker.tenant_of("client")["counters"]["sessions"] == 0, "perftest's end")
        assert worker.http("healthz") == "ok\n", "no reason to be restarted"
        assert "the API server does not answer" in " ".join(worker.wrong())
        assert {tenant["address"] for tenant in worker.tenants().values()} >= {address}
    finally:
        plane.start_apiserver()
    wait_until(lambda: worker.metric("sluice_watch_up", path="/api/v1/pods") == 1, "the router to come back")
    wait_until(lambda: worker.execute("client", "cat", "/tmp/exit").stdout.strip() == "0", "the pods again")
    wait_until(lambda: not worker.wrong(), "the router to have nothing to complain of")
    plane.apply(pod("third", "ten"))
    # Scheduler, controllers and kubelet come back each in its own time.
    plane.wait_for("pod/third", "condition=Ready")
    assert write_bandwidth(worker, "server", "client", address) > 0


def test_a_forgotten_past_is_read_anew(plane: ControlPlane, worker: Worker) -> None:
    """410 Gone: the API server no longer knows what happened since the version that we have."""
    two_pods(plane)
    # It remembers what it saw itself, since it started.
    plane.kill_apiserver()
    plane.start_apiserver()

    async def follow() -> tuple[int, set[str], set[str]]:
        api = await Api.connect(plane.kubeconfig)
        seen: set[str] = set()

        def changed(old: Pod | None, new: Pod | None) -> None:
            seen.add(f"{old.name if old else ''}>{new.name if new else ''}")

        watch: Watch[Pod] = Watch(api, "/api/v1/namespaces/default/pods", read_pod, changed)
        vanished = json.loads(json.dumps(plane.pod("server")))
        vanished["metadata"] |= {"name": "vanished", "uid": "vanished"}
        watch.objects["vanished"] = read_pod(vanished)
        watch._version = "1"
        task = asyncio.create_task(watch.run())
        try:
            await asyncio.wait_for(watch.synced.wait(), PATIENCE)
        finally:
            task.cancel()
            await api.close()
        return watch.lists, {each.name for each in watch.objects.values()}, seen

    lists, names, seen = asyncio.run(follow())
    assert (lists, names) == (1, {"server", "client"})
    # What went away meanwhile is told as if it had been watched.
    assert seen == {">server", ">client", "vanished>"}
