# SPDX-License-Identifier: Apache-2.0
"""One control plane and one real node for all tests; objects of the tests' own are deleted after each."""

import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPORTS, wait_until
from control_plane import WITHIN, ControlPlane
from worker import Worker

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

NEEDED = ("runc", "openssl", "ip", "unshare", "ib_write_bw")


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0:
        pytest.skip("a kubelet needs root")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    running = ControlPlane()
    try:
        running.start()
        running.kubectl("apply", "-k", DEPLOY / "kubernetes")
        # Its pods are for the test that is about them (test_deploy.py).
        running.kubectl("delete", "daemonset", "sluice-router", "-n", "sluice-system")
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def worker(plane: ControlPlane) -> Iterator[Worker]:
    running = Worker(plane, "worker-1", {"mlx5_0": "25G", "mlx5_1": "25G"})
    running.start()
    yield running
    running.stop()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


def show(plane: ControlPlane) -> None:
    """What there is to look at when a test has failed: it is gone afterwards."""
    for command in (
        ("describe", "pods,nodes", "-A"),
        ("get", "resourceslices,resourceclaims", "-A", "-o", "yaml"),
        ("get", "events", "-A", "--sort-by=.metadata.creationTimestamp"),
    ):
        print("$ kubectl", *command, plane.try_kubectl(*command).stdout, sep="\n")
    for log in (log for folder in plane.logs for log in sorted(folder.glob("*.log")) if log.name != "audit.log"):
        print(f"==> {log} <==", *log.read_text(errors="replace").splitlines()[-150:], sep="\n")


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "plane" in request.fixturenames:
        plane: ControlPlane = request.getfixturevalue("plane")
        if request.node.stash.get(FAILED, False):
            show(plane)
        plane.kubectl("delete", "pods", "--all", "--grace-period=1", WITHIN)
        plane.kubectl(
            "delete", "resourceclaims,resourceclaimtemplates,networkpolicies,resourcequotas,limitranges", "--all"
        )


def template(name: str, bandwidth: str | None, requests: int = 1, **parameters: Any) -> dict[str, Any]:
    """A ResourceClaimTemplate; with several requests, each on a NIC of its own."""
    names = [f"rdma{index}" for index in range(requests)]
    exactly: dict[str, Any] = {"deviceClassName": "rdma.sluice.dev"}
    if bandwidth is not None:
        exactly["capacity"] = {"requests": {"bandwidth": bandwidth}}
    devices: dict[str, Any] = {"requests": [{"name": each, "exactly": exactly} for each in names]}
    if requests > 1:
        devices["constraints"] = [{"requests": names, "distinctAttribute": "rdma.sluice.dev/interface"}]
    if parameters:
        opaque = {"apiVersion": "rdma.sluice.dev/v1", "kind": "Bandwidth", **parameters}
        devices["config"] = [{"opaque": {"driver": "rdma.sluice.dev", "parameters": opaque}}]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name},
        "spec": {"spec": {"devices": devices}},
    }


def claim(name: str, bandwidth: str, **parameters: Any) -> dict[str, Any]:
    made = template(name, bandwidth, **parameters)
    return {**made, "kind": "ResourceClaim", "spec": made["spec"]["spec"]}


def pod(name: str, *templates: str, claims: tuple[str, ...] = (), **changed: Any) -> dict[str, Any]:
    """A pod that sleeps, with a claim of each template; claims: by their own names. Unprivileged, as any user."""
    named = [{"name": each, "resourceClaimTemplateName": each} for each in templates]
    named += [{"name": each, "resourceClaimName": each} for each in claims]
    container = {
        "name": "main",
        "image": "sluice.test/perftest:1",
        "imagePullPolicy": "Never",
        # The first process of a container ends by a signal only where it says so.
        "command": ["/bin/sh", "-c", "trap exit TERM; sleep infinity & wait"],
        "resources": {"claims": [{"name": each["name"]} for each in named]},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    metadata = {"name": name, "labels": changed.pop("labels", {}), "annotations": changed.pop("annotations", {})}
    spec = {
        "containers": [container],
        "resourceClaims": named,
        "terminationGracePeriodSeconds": 1,
        "dnsPolicy": "Default",
        "automountServiceAccountToken": False,
        **changed,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def network_policy(name: str, selects: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": selects}, **spec},
    }


def wait_for_policies(count: int, *workers: Worker) -> None:
    """Until their routers know so many NetworkPolicies. A test begins with none, or it would count the last one's."""

    def known(worker: Worker) -> float:
        return worker.metric("sluice_watch_objects", path="/apis/networking.k8s.io/v1/networkpolicies")

    wait_until(lambda: {known(worker) for worker in workers} == {count}, "the routers to know the policies")


RETRY_EXCEEDED = "status 12"
"""IBV_WC_RETRY_EXC_ERR, as perftest prints it: nobody answers."""


PERFTEST = ("ib_write_bw", REPORTS, "-s", "65536", "-p", "18600", "--report_gbits")


def in_background(worker: Worker, name: str, *command: str, mark: str = "") -> None:
    """Its output goes to /tmp/outMARK, its exit code to /tmp/exitMARK."""
    end = f"/tmp/exit{mark}"
    script = f"(rm -f {end}; {' '.join(command)} >/tmp/out{mark} 2>&1; echo $? >{end}) </dev/null >/dev/null 2>&1 &"
    worker.output(name, "sh", "-c", script)


def start_server(worker: Worker, name: str, command: Sequence[str] = PERFTEST) -> None:
    in_background(worker, name, *command)
    # perftest tells nobody that it listens; its port is 0x48A8, state 0A.
    wait_until(lambda: ":48A8 00000000:0000 0A" in worker.output(name, "cat", "/proc/net/tcp"), "perftest's server")


UCX = ("env", "UCX_TLS=rc_verbs,ud_verbs,self", "UCX_NET_DEVICES=sluice0:1", "ucx_perftest", "-p", "18700")


def start_ucx_server(worker: Worker, name: str, mark: str = "") -> None:
    in_background(worker, name, *UCX, mark=mark)
    # Port 18700 is 0x490C.
    wait_until(lambda: ":490C 00000000:0000 0A" in worker.output(name, "cat", "/proc/net/tcp"), "UCX's server")


def write_bandwidth(worker: Worker, server: str, client: str, address: str) -> float:
    """Gbit/s that perftest's client prints, between two pods, in two seconds."""
    short = (*PERFTEST, "-D", "2")
    start_server(worker, server, short)
    text = worker.output(client, *short, address)
    rows = [line.split() for line in text.splitlines() if line.startswith(" 65536")]
    assert rows, text
    return float(rows[0][3])


GROUP = "239.1.2.3"


def join_group(worker: Worker, name: str) -> None:
    """A pod's mckey, which ends when ten datagrams have come."""
    address = worker.plane.pod(name)["status"]["podIP"]
    in_background(worker, name, "mckey", "-b", address, "-m", GROUP)


def send_to_group(worker: Worker, name: str) -> None:
    """Ten datagrams; who isn't there yet hears none of them."""
    address = worker.plane.pod(name)["status"]["podIP"]
    assert "return status 0" in worker.output(name, "mckey", "-b", address, "-m", GROUP, "-s")
