# SPDX-License-Identifier: Apache-2.0
"""What deploy/ holds, applied: the DaemonSet with its own account, upgraded under running pods, and the examples."""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import DEPLOY, PERFTEST, ROOT, pod, start_server, template
from conftest import wait_until
from control_plane import WITHIN, ControlPlane
from image import NAME
from worker import Worker

pytest_plugins = ["cluster"]

SYSTEM = ("-n", "sluice-system")
IMAGE = ROOT / "build" / "images" / "router.tar"
"""Made by `make images`."""
PYTHON = "/opt/sluice/bin/python" if IMAGE.exists() else sys.executable
"""In the router's container."""


def manifests(plane: ControlPlane, folder: str = "kubernetes") -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(plane.kubectl("kustomize", DEPLOY / folder)))


def for_this_machine(plane: ControlPlane, worker: Worker, daemon_set: dict[str, Any]) -> dict[str, Any]:
    """The DaemonSet with this node's directories; without an image, with what was installed here in its place."""
    text = json.dumps(daemon_set)
    for usual, here in (
        ("/var/lib/kubelet", worker.kubelet_dir),
        ("/var/run/cdi", worker.cdi_dir),
        ("/run/sluice", worker.state_dir),
        ("/var/lib/sluice/shim", worker.root / "shim"),
        (":9479", f":{worker.http_port}"),
        ('"9479"', f'"{worker.http_port}"'),
        (" 9479", f" {worker.http_port}"),
    ):
        text = text.replace(usual, str(here))
    made: dict[str, Any] = json.loads(text)
    spec = made["spec"]["template"]["spec"]
    (router,) = spec["containers"]
    # No kube-proxy here: the API server's own address.
    router["env"] += [
        {"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"},
        {"name": "KUBERNETES_SERVICE_PORT", "value": str(plane.port)},
    ]
    if not IMAGE.exists():
        router |= {"image": NAME, "imagePullPolicy": "Never", "command": [sys.executable, "-m", "sluice"]}
        folders = {"/usr": "/usr", "/lib": "/usr/lib", "/lib64": "/usr/lib64"}
        folders |= {prefix: prefix for prefix in (sys.prefix, sys.base_prefix) if not prefix.startswith("/usr")}
        mount_programs(spec, folders)
    return made


def mount_programs(spec: dict[str, Any], folders: dict[str, str]) -> None:
    """This machine's folders in place of an image's, by where they are in the container."""
    (container,) = spec["containers"]
    for index, (inside, outside) in enumerate(folders.items()):
        mount = {"name": f"host{index}", "mountPath": inside, "readOnly": True}
        container.setdefault("volumeMounts", []).append(mount)
        spec.setdefault("volumes", []).append({"name": f"host{index}", "hostPath": {"path": outside}})


def deploy(plane: ControlPlane, worker: Worker, folder: str = "kubernetes") -> None:
    """All of a folder, with this machine's directories and NICs, and waits for the router."""
    objects = manifests(plane, folder)
    for each in objects:
        if each["kind"] == "ConfigMap":
            settings = yaml.safe_load(each["data"]["settings.yaml"])
            settings |= {
                "nics": worker.nics,
                "kubelet-dir": str(worker.kubelet_dir),
                "cdi-dir": str(worker.cdi_dir),
                "shim-dir": str(worker.root / "shim"),
            }
            each["data"]["settings.yaml"] = yaml.safe_dump(settings)
    plane.apply(*(for_this_machine(plane, worker, each) if each["kind"] == "DaemonSet" else each for each in objects))
    plane.kubectl("rollout", "status", "daemonset/sluice-router", *SYSTEM, WITHIN)


@pytest.fixture(scope="module")
def deployed(plane: ControlPlane, worker: Worker) -> Iterator[Worker]:
    """The node, whose router is a DaemonSet's."""
    worker.stop_router()
    try:
        if IMAGE.exists():
            worker.import_image(IMAGE)
        deploy(plane, worker)
        yield worker
    finally:
        plane.kubectl(
            "delete", "daemonset", "sluice-router", *SYSTEM, "--cascade=foreground", "--ignore-not-found", WITHIN
        )
        worker.start_router()


def router_pod(plane: ControlPlane) -> str:
    (found,) = plane.get("pods", *SYSTEM, "-l", "app.kubernetes.io/component=router")["items"]
    name: str = found["metadata"]["name"]
    return name


def test_it_is_upgraded_under_running_pods(plane: ControlPlane, deployed: Worker) -> None:
    plane.apply(template("ten", "10G"), pod("before", "ten"))
    plane.wait_for("pod/before", "condition=Ready")
    old = router_pod(plane)
    plane.kubectl("rollout", "restart", "daemonset/sluice-router", *SYSTEM)
    plane.kubectl("rollout", "status", "daemonset/sluice-router", *SYSTEM, WITHIN)
    assert router_pod(plane) != old
    assert "sluice0" in deployed.output("before", "ibv_devinfo")
    plane.apply(pod("after", "ten"))
    plane.wait_for("pod/after", "condition=Ready")
    assert "sluice0" in deployed.output("after", "ibv_devinfo")
    assert deployed.metric("sluice_grants") == 2
    wait_until(
        lambda: all(each["status"].get("devices") for each in plane.get("resourceclaims")["items"]),
        "the claims' status",
    )
    # Memory that can't be moved, a file on disk: the router has to reach into the processes.
    command = [*PERFTEST, "--mmap=/tmp/memory", "-n", "100"]
    for name in ("before", "after"):
        deployed.output(name, "busybox", "dd", "if=/dev/zero", "of=/tmp/memory", "bs=1M", "count=1")
    start_server(deployed, "before", command)
    written = deployed.execute("after", *command, plane.pod("before")["status"]["podIP"])
    assert written.returncode == 0, written.stdout + written.stderr
    logged = plane.kubectl("logs", router_pod(plane), *SYSTEM)
    assert "Traceback" not in logged
    assert "forbidden" not in logged, "the account's rights are enough"


def test_an_upgrade_waits_for_the_operator(plane: ControlPlane, deployed: Worker) -> None:
    """With OnDelete: a node keeps its router until it is drained, and the router's pod deleted."""
    (usual,) = (each for each in manifests(plane) if each["kind"] == "DaemonSet")
    usual = for_this_machine(plane, deployed, usual)
    later = deepcopy(usual)
    later["spec"]["updateStrategy"] = {"type": "OnDelete"}
    later["spec"]["template"]["metadata"]["annotations"]["version"] = "later"
    plane.apply(template("any", "1G"), pod("one", "any"))
    plane.wait_for("pod/one", "condition=Ready")
    old = router_pod(plane)

    def daemon_set() -> dict[str, Any]:
        return plane.get("daemonset", "sluice-router", *SYSTEM)

    def is_seen() -> bool:
        found = daemon_set()
        seen: bool = found["status"]["observedGeneration"] == found["metadata"]["generation"]
        return seen

    def is_ready() -> bool:
        status = daemon_set()["status"]
        ready: bool = status.get("updatedNumberScheduled") == 1 == status["numberReady"]
        return ready

    try:
        plane.apply(later)
        wait_until(is_seen, "the controller to have seen it")
        assert daemon_set()["status"].get("updatedNumberScheduled", 0) == 0
        assert router_pod(plane) == old
        # A pod without a controller is ended by force only.
        plane.kubectl("drain", "worker-1", "--ignore-daemonsets", "--force", WITHIN)
        assert plane.get("pods")["items"] == []
        plane.kubectl("delete", "pod", *SYSTEM, "--field-selector", "spec.nodeName=worker-1", WITHIN)
        wait_until(is_ready, "the new router")
        assert router_pod(plane) != old
        plane.kubectl("uncordon", "worker-1")
        plane.apply(pod("one", "any"))
        plane.wait_for("pod/one", "condition=Ready")
        assert "sluice0" in deployed.output("one", "ibv_devinfo")
    finally:
        plane.kubectl("uncordon", "worker-1")
        plane.apply(usual)
        plane.kubectl("rollout", "status", "daemonset/sluice-router", *SYSTEM, WITHIN)


def opens_devices(plane: ControlPlane) -> bool:
    """Whether the router may."""
    opening = "import os; os.open('/dev/userfaultfd', os.O_RDWR)"
    return plane.try_kubectl("exec", router_pod(plane), *SYSTEM, "--", PYTHON, "-c", opening).returncode == 0


def doctor(plane: ControlPlane, worker: Worker) -> dict[str, dict[str, Any]]:
    """What `sluice doctor` finds in the router's own container, by check."""
    command = (PYTHON, "-m", "sluice", "doctor", "--json", "--state-dir", str(worker.state_dir))
    said = plane.try_kubectl("exec", router_pod(plane), *SYSTEM, "--", *command).stdout
    return {each["check"]: each for each in json.loads(said)}


def test_the_doctor_in_the_routers_container(plane: ControlPlane, deployed: Worker) -> None:
    plane.apply(template("any", "1G"), pod("one", "any"))
    plane.wait_for("pod/one", "condition=Ready")
    found = doctor(plane, deployed)
    assert not [each for each in found.values() if each["verdict"] == "wrong"], found
    assert found["Kubernetes"]["text"] == "node worker-1, 1 claims or allocations"
    if Path("/sys/class/misc/userfaultfd").exists():
        assert found["userfaultfd"]["verdict"] == "ok", "it is not the router's own container that needs it"


@pytest.mark.skipif(not Path("/dev/userfaultfd").exists(), reason="the kernel has no /dev/userfaultfd")
def test_memory_is_guarded_though_the_router_may_open_nothing(plane: ControlPlane, deployed: Worker) -> None:
    """A pod's container gets the device for it."""
    plane.apply(template("any", "1G"), pod("guarded", "any"))
    plane.wait_for("pod/guarded", "condition=Ready")
    assert not opens_devices(plane)
    start_server(deployed, "guarded")
    assert "anon_inode:[userfaultfd]" in deployed.output("guarded", "sh", "-c", "ls -l /proc/$(pidof ib_write_bw)/fd")


@pytest.mark.skipif(not Path("/dev/userfaultfd").exists(), reason="the kernel has no device that every machine has")
def test_with_nics_the_router_opens_devices(plane: ControlPlane, deployed: Worker) -> None:
    (usual,) = (each for each in manifests(plane) if each["kind"] == "DaemonSet")
    (privileged,) = (each for each in manifests(plane, "kubernetes-nic") if each["kind"] == "DaemonSet")
    try:
        plane.apply(for_this_machine(plane, deployed, privileged))
        plane.kubectl("rollout", "status", "daemonset/sluice-router", *SYSTEM, WITHIN)
        assert opens_devices(plane)
        (router,) = plane.pod(router_pod(plane), "sluice-system")["spec"]["containers"]
        assert "--device=auto" in router["args"]
        plane.apply(template("any", "1G"), pod("one", "any"))
        plane.wait_for("pod/one", "condition=Ready")
        assert "sluice0" in deployed.output("one", "ibv_devinfo")
    finally:
        plane.apply(for_this_machine(plane, deployed, usual))
        plane.kubectl("rollout", "status", "daemonset/sluice-router", *SYSTEM, WITHIN)


def test_without_claims(plane: ControlPlane, deployed: Worker) -> None:
    """For clusters without DRA: none of its kinds, and no rights to them."""
    folder = "kubernetes-device-plugin"
    assert "resource.k8s.io" not in plane.kubectl("kustomize", DEPLOY / folder)
    try:
        deploy(plane, deployed, folder)
        plane.kubectl("rollout", "restart", "daemonset/sluice-router", *SYSTEM)
        plane.kubectl("rollout", "status", "daemonset/sluice-router", *SYSTEM, WITHIN)
        made = pod("one")
        made["spec"]["containers"][0]["resources"] = {"limits": {"rdma.sluice.dev/bandwidth": "1"}}
        plane.apply(made)
        plane.wait_for("pod/one", "condition=Ready")
        assert "sluice0" in deployed.output("one", "ibv_devinfo")
        assert "forbidden" not in plane.kubectl("logs", router_pod(plane), *SYSTEM), "the account's rights are enough"
        plane.kubectl("delete", "pod", "one", WITHIN)
    finally:
        deploy(plane, deployed)
        plane.kubectl("rollout", "restart", "daemonset/sluice-router", *SYSTEM)
        plane.kubectl("rollout", "status", "daemonset/sluice-router", *SYSTEM, WITHIN)


def test_a_router_that_cannot_run_says_why(plane: ControlPlane, deployed: Worker) -> None:
    """Where one looks first: in the description of its pod, with file, line, field and what would be right."""
    settings = plane.get("configmap", "sluice-settings", *SYSTEM)
    good = settings["data"]["settings.yaml"]
    settings["data"]["settings.yaml"] = "# two lines\nover-commit: much\n"
    settings["metadata"] = {"name": "sluice-settings", "namespace": "sluice-system"}
    plane.apply(settings)
    plane.kubectl("rollout", "restart", "daemonset/sluice-router", *SYSTEM)
    try:
        said = "sluice: /etc/sluice/settings.yaml:2: over-commit: 'much' is not a ratio: write a number from 1 to 100"
        chosen = ("pod", *SYSTEM, "-l", "app.kubernetes.io/component=router")
        # A pod may end between the list and its description.
        wait_until(lambda: said in plane.try_kubectl("describe", *chosen).stdout, "the reason")
    finally:
        settings["data"]["settings.yaml"] = good
        plane.apply(settings)
        plane.kubectl("rollout", "restart", "daemonset/sluice-router", *SYSTEM)
        plane.kubectl("rollout", "status", "daemonset/sluice-router", *SYSTEM, WITHIN)


def test_the_account_has_the_least_rights(plane: ControlPlane, deployed: Worker) -> None:
    account = plane.account_kubeconfig("sluice-system", "sluice-router", router_pod(plane))
    for verb, resource in (
        ("get", "secrets"),
        ("get", "pods"),
        ("update", "pods"),
        ("update", "nodes"),
        ("update", "resourceclaims"),
        ("delete", "resourceslices"),
        ("create", "pods"),
    ):
        answer = plane.try_kubectl("auth", "can-i", verb, resource, "-A", kubeconfig=account)
        assert answer.stdout.strip() == "no", f"{verb} {resource}"
    foreign = plane.get("resourceslice", "worker-1-rdma.sluice.dev")
    foreign["metadata"] = {"name": "other"}
    foreign["spec"] |= {"nodeName": "worker-2"}
    foreign["spec"]["pool"]["name"] = "worker-2"
    refused = plane.try_kubectl("create", "-f", "-", stdin=json.dumps(foreign), kubeconfig=account)
    assert "the router of node worker-1 writes the slice of that node only" in refused.stderr


def test_the_account_needs_each_of_its_rights(plane: ControlPlane, deployed: Worker) -> None:
    """No verb on no resource that a router has not used by now; whoever changes or deletes its slice finds it back."""
    slice_of = ("resourceslice", "worker-1-rdma.sluice.dev")

    def capacity() -> str:
        done = plane.try_kubectl("get", *slice_of, "-o", "jsonpath={.spec.devices[0].capacity.bandwidth.value}")
        return done.stdout

    plane.kubectl("delete", *slice_of)
    wait_until(lambda: capacity() == "25G", "the slice again")
    where = "/spec/devices/0/capacity/bandwidth/value"
    wrong = json.dumps([{"op": "replace", "path": where, "value": "50G"}])
    plane.kubectl("patch", *slice_of, "--type=json", "-p", wrong)
    wait_until(lambda: capacity() == "25G", "the right capacity again")
    plane.apply(template("any", "1G"), pod("one", "any"))
    plane.wait_for("pod/one", "condition=Ready")
    wait_until(lambda: plane.get("resourceclaims")["items"][0]["status"].get("devices"), "the claim's status")

    (role,) = (each for each in manifests(plane) if each["kind"] == "ClusterRole")
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    # The API server looks for it with each patch of a claim's status.
    granted.remove(("resource.k8s.io", "resourceclaims/driver", "associated-node:patch"))
    mine = [router_pod(plane)]

    def used() -> set[tuple[str, str, str]]:
        found = set()
        for request in plane.requests_of_routers():
            if request["userAgent"].startswith("kubectl") or "objectRef" not in request:
                continue
            about = request["objectRef"]
            path = "/".join(filter(None, (about["resource"], about.get("subresource", ""))))
            if request["responseStatus"]["code"] == 403:
                # An earlier router had its rights taken while it ran (test_without_claims).
                assert request["user"]["extra"]["authentication.kubernetes.io/pod-name"] != mine, request
                continue
            found.add((about.get("apiGroup", ""), path, request["verb"]))
        return found

    # A request is logged when it has been answered.
    wait_until(lambda: used() >= granted, f"the log to have all of {granted}")
    assert used() == granted


def test_who_uses_it_is_restricted(plane: ControlPlane, worker: Worker) -> None:
    """Pod Security's strictest level, enforced for all of a namespace: the examples, and a pod that runs."""
    plane.make_namespace("strict", **{"pod-security.kubernetes.io/enforce": "restricted"})
    try:
        for each in (template("any", "1G"), pod("one", "any")):
            each["metadata"]["namespace"] = "strict"
            plane.apply(each)
        plane.wait_for("pod/one", "condition=Ready", "-n", "strict")
        seen = plane.kubectl("exec", "one", "-n", "strict", "--", "ibv_devinfo")
        assert "sluice0" in seen
        for file in sorted((DEPLOY / "examples").glob("*.yaml")):
            done = plane.try_kubectl("apply", "--dry-run=server", "-n", "strict", "-f", file)
            # A Job is let in with a warning: its pods would not be.
            assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    finally:
        plane.kubectl("delete", "namespace", "strict", WITHIN)


def example(name: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((DEPLOY / "examples" / name).read_text()) if each]


@contextmanager
def applied(plane: ControlPlane, *objects: dict[str, Any]) -> Iterator[None]:
    """Objects that are gone afterwards, whatever happens."""
    plane.apply(*objects)
    try:
        yield
    finally:
        plane.kubectl("delete", "-f", "-", WITHIN, "--ignore-not-found", stdin=yaml.safe_dump_all(objects))


def row_of(text: str, size: int) -> list[str]:
    """perftest's row for messages of this size."""
    rows = [line.split() for line in text.splitlines() if line.startswith(f" {size}")]
    assert len(rows) == 1, text
    return rows[0]


def test_example_perftest(plane: ControlPlane, worker: Worker) -> None:
    with applied(plane, *example("perftest.yaml")):
        # What it is guaranteed, and the client's ceiling: as long as the job runs.
        client = wait_until(lambda: [each for each in worker.tenants() if "perftest-client" in each], "the client")[0]
        wait_until(lambda: worker.tenants().get(client, {}).get("max_bps") == 12 * 10**9, "its ceiling")
        # Either may be the first; the client goes on until it has written.
        server = wait_until(lambda: [name for name in worker.tenants() if "perftest-server" in name], "the server")[0]
        assert [worker.tenants()[server][bound] for bound in ("min_bps", "max_bps")] == [10**10, 0]
        plane.wait_for("job/perftest-client", "condition=Complete")
        assert 0 < float(row_of(plane.kubectl("logs", "job/perftest-client"), 65536)[3]) < 12.5


@pytest.mark.skipif(
    not all(map(shutil.which, ("mpicc", "mpirun", "ucx_info", "dropbear"))),
    reason="Open MPI with UCX, or dropbear, is not installed",
)
def test_example_mpi(plane: ControlPlane, worker: Worker) -> None:
    """Between two pods, with a program of ours, and this machine's Open MPI in place of an image's."""
    source, folder = Path(__file__).parent / "exchange.c", worker.root / "program"
    folder.mkdir()
    subprocess.run(["mpicc", "-Wall", "-Wextra", "-Werror", "-o", folder / "exchange", source], check=True)
    subprocess.run(["dropbearkey", "-t", "ed25519", "-f", folder / "id"], check=True, capture_output=True)
    shown = subprocess.run(["dropbearkey", "-y", "-f", folder / "id"], check=True, capture_output=True, text=True)
    (public,) = (line for line in shown.stdout.splitlines() if line.startswith("ssh-"))
    files = [f"--from-file={folder}/id", f"--from-literal=authorized_keys={public}"]
    secret = yaml.safe_load(
        plane.kubectl("create", "secret", "generic", "mpi-ssh", *files, "--dry-run=client", "-o", "yaml")
    )
    libraries = f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}"
    # Not all of /usr: the shim is mounted into it.
    folders = {"/program": str(folder), libraries.removeprefix("/usr"): libraries, "/lib64": "/usr/lib64"}
    folders |= {
        each: each
        for each in (libraries, "/usr/bin", "/usr/sbin", "/usr/share/openmpi", "/etc/openmpi", "/etc/alternatives")
    }
    objects = example("mpi.yaml")
    (job,) = (each for each in objects if each["kind"] == "Job")
    spec = job["spec"]["template"]["spec"]
    spec["containers"][0] |= {"image": NAME, "env": [{"name": "PROGRAM", "value": "/program/exchange"}]}
    mount_programs(spec, folders)
    first = ("-l", "job-name=mpi,batch.kubernetes.io/job-completion-index=0")
    with applied(plane, secret, *objects):
        wait_until(lambda: len(worker.tenants()) == 2, "a tenant for each of its pods")
        assert {tenant["min_bps"] for tenant in worker.tenants().values()} == {5 * 10**9}
        done = plane.try_kubectl("wait", "job/mpi", "--for=condition=Complete", WITHIN)
        text = plane.kubectl("logs", *first)
        assert done.returncode == 0, text
        assert text.count("of 2: exchanged") == 2, text


def test_example_isolation(plane: ControlPlane, worker: Worker) -> None:
    def last_rate() -> float:
        rows = [line.split() for line in plane.kubectl("logs", "greedy").splitlines() if line.startswith(" 65536")]
        return float(rows[-1][3]) if rows else 0.0

    with applied(plane, *example("isolation.yaml")):
        for name in ("quiet", "greedy"):
            plane.wait_for(f"pod/{name}", "condition=Ready")
        assert worker.tenant_of("greedy")["max_bps"] == 2 * 10**9
        rows = {name: row for nic in worker.nic_states().values() for name, row in nic["tenants"].items()}
        assert sorted(row["min_bps"] for row in rows.values()) == [10**8, 5 * 10**9]
        assert wait_until(last_rate, "perftest's first row") < 2.2
        plane.kubectl("annotate", "pod", "greedy", "rdma.sluice.dev/max=1G", "--overwrite")
        wait_until(lambda: worker.tenant_of("greedy")["max_bps"] == 10**9, "the new ceiling")
        wait_until(lambda: 0 < last_rate() < 1.1, "perftest to see it")


def test_every_example_is_accepted(plane: ControlPlane) -> None:
    """The API server's own validation, strict: no field that it doesn't know."""
    for each in sorted((DEPLOY / "examples").glob("*.yaml")):
        plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", each)


@pytest.mark.skipif(not Path("/usr/bin/systemd-analyze").exists(), reason="systemd-analyze is not installed")
def test_the_systemd_unit(tmp_path: Path) -> None:
    unit = tmp_path / "sluice-router.service"
    text = (DEPLOY / "systemd" / "sluice-router.service").read_text()
    # Verifying asks for the program: one that is there.
    unit.write_text(text.replace("/usr/bin/sluice", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "sluice-router" not in done.stderr, done.stderr
