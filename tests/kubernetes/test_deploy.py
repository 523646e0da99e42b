# SPDX-License-Identifier: Apache-2.0
"""What deploy/ holds, applied: the DaemonSet with its own account, upgraded under running pods, and the examples."""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import DEPLOY, PERFTEST, pod, start_server, template
from conftest import wait_until
from control_plane import ControlPlane
from image import NAME
from worker import Worker

pytest_plugins = ["cluster"]

SYSTEM = ("-n", "sluice-system")


def manifests(plane: ControlPlane) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(plane.kubectl("kustomize", DEPLOY / "kubernetes")))


def for_this_machine(plane: ControlPlane, worker: Worker, daemon_set: dict[str, Any]) -> dict[str, Any]:
    """The DaemonSet with this node's directories, and with what was installed here in place of an image."""
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
    router |= {"image": NAME, "imagePullPolicy": "Never", "command": [sys.executable, "-m", "sluice"]}
    # No kube-proxy here: the API server's own address.
    router["env"] += [
        {"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"},
        {"name": "KUBERNETES_SERVICE_PORT", "value": str(plane.port)},
    ]
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


@pytest.fixture(scope="module")
def deployed(plane: ControlPlane, worker: Worker) -> Iterator[Worker]:
    """The node, whose router is a DaemonSet's."""
    worker.stop_router()
    objects = manifests(plane)
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
    plane.kubectl("rollout", "status", "daemonset/sluice-router", *SYSTEM, "--timeout=120s")
    yield worker
    plane.kubectl("delete", "daemonset", "sluice-router", *SYSTEM, "--cascade=foreground", "--timeout=90s")
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
    plane.kubectl("rollout", "status", "daemonset/sluice-router", *SYSTEM, "--timeout=120s")
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


def apply_example(
    plane: ControlPlane, name: str, jobs: bool = False, programs: dict[str, str] | None = None, **environment: str
) -> None:
    """As it is, but that images are not pulled, and jobs get addresses in place of names: there is no DNS here."""
    objects = [each for each in yaml.safe_load_all((DEPLOY / "examples" / name).read_text()) if each]
    objects = [each for each in objects if (each["kind"] == "Job") == jobs]
    for each in objects:
        spec = each["spec"].get("template", {}).get("spec") or each["spec"]
        for container in spec.get("containers", []):
            container["imagePullPolicy"] = "Never"
            container["env"] = [{"name": key, "value": value} for key, value in environment.items()]
            if programs is not None:
                container["image"] = NAME
                mount_programs(spec, programs)
    plane.apply(*objects)


def test_example_perftest(plane: ControlPlane, worker: Worker) -> None:
    apply_example(plane, "perftest.yaml")
    plane.wait_for("pod/perftest-server", "condition=Ready")
    address = plane.pod("perftest-server")["status"]["podIP"]
    apply_example(plane, "perftest.yaml", jobs=True, SERVER=address)
    plane.wait_for("job/perftest-client", "condition=Complete", timeout=90)
    text = plane.kubectl("logs", "job/perftest-client")
    rows = [line.split() for line in text.splitlines() if line.startswith(" 65536")]
    assert rows, text
    assert 0 < float(rows[0][3]) < 13
    plane.kubectl("delete", "-f", DEPLOY / "examples" / "perftest.yaml", "--timeout=60s")


@pytest.mark.skipif(
    not all(map(shutil.which, ("mpicc", "mpirun", "ucx_info"))), reason="Open MPI with UCX is not installed"
)
def test_example_mpi(plane: ControlPlane, worker: Worker) -> None:
    """With a program of ours, and this machine's Open MPI in place of an image's."""
    source, folder = Path(__file__).parent / "exchange.c", worker.root / "program"
    folder.mkdir()
    subprocess.run(["mpicc", "-Wall", "-Wextra", "-Werror", "-o", folder / "exchange", source], check=True)
    apply_example(plane, "mpi.yaml")
    libraries = f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}"
    # Not all of /usr: the shim is mounted into it.
    folders = {"/program": str(folder), libraries.removeprefix("/usr"): libraries, "/lib64": "/usr/lib64"}
    folders |= {
        each: each for each in (libraries, "/usr/bin", "/usr/share/openmpi", "/etc/openmpi", "/etc/alternatives")
    }
    apply_example(plane, "mpi.yaml", jobs=True, programs=folders, PROGRAM="/program/exchange")
    try:
        plane.wait_for("job/mpi", "condition=Complete", timeout=90)
    finally:
        text = plane.try_kubectl("logs", "job/mpi").stdout
    assert text.count("of 2: exchanged") == 2, text
    plane.kubectl("delete", "-f", DEPLOY / "examples" / "mpi.yaml", "--timeout=60s")


def test_example_isolation(plane: ControlPlane, worker: Worker) -> None:
    apply_example(plane, "isolation.yaml")
    for name in ("quiet", "greedy"):
        plane.wait_for(f"pod/{name}", "condition=Ready")
    assert worker.tenant_of("greedy")["max_bps"] == 2 * 10**9
    rows = {name: row for nic in worker.nic_states().values() for name, row in nic["tenants"].items()}
    assert sorted(row["min_bps"] for row in rows.values()) == [10**8, 5 * 10**9]
    plane.kubectl("annotate", "pod", "greedy", "rdma.sluice.dev/max=1G", "--overwrite")
    wait_until(lambda: worker.tenant_of("greedy")["max_bps"] == 10**9, "the new ceiling")
    plane.kubectl("delete", "-f", DEPLOY / "examples" / "isolation.yaml", "--timeout=60s")


def test_every_example_is_accepted(plane: ControlPlane) -> None:
    """The API server's own validation, strict: no field that it doesn't know."""
    for example in sorted(Path(DEPLOY / "examples").glob("*.yaml")):
        plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", example)


@pytest.mark.skipif(not Path("/usr/bin/systemd-analyze").exists(), reason="systemd-analyze is not installed")
def test_the_systemd_unit(tmp_path: Path) -> None:
    unit = tmp_path / "sluice-router.service"
    text = (DEPLOY / "systemd" / "sluice-router.service").read_text()
    # Verifying asks for the program: one that is there.
    unit.write_text(text.replace("/usr/bin/sluice", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "sluice-router" not in done.stderr, done.stderr
