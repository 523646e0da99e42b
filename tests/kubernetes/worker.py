# SPDX-License-Identifier: Apache-2.0
"""A real node: containerd, kubelet, and the router under test, all in one directory of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from conftest import PATIENCE, wait_until
from control_plane import WITHIN, ControlPlane
from image import NAME, write_image
from names import DOMAIN, Names
from programs import folder, free_port, program, start, stop
from sluice.control.operator import ask
from sluice.kubernetes import DRIVER
from sluice.kubernetes.quantity import parse_quantity
from sluice.kubernetes.settings import load_settings
from sluice.kubernetes.slices import capacity_bps


def restricted() -> bool:
    """Whether this machine lets nobody lower an oom_score_adj; containerd then has to be told."""
    return subprocess.run(["sh", "-c", "echo -998 > /proc/self/oom_score_adj"], check=False, stderr=-3).returncode != 0


def apart(source: Path, target: Path) -> list[str]:
    """A mount namespace of its own for a command, in which one directory stands in another's place."""
    script = f'mount --bind {source} {target} && exec "$@"'
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"]


CGROUPS = Path("/sys/fs/cgroup")
HIGHEST = 250


def take_number() -> int:
    """A number that no other node on this machine has, of whichever run of the tests: the first free bridge's."""
    for number in range(1, HIGHEST):
        link = ["ip", "link", "add", f"sluicen{number}", "type", "bridge"]
        if subprocess.run(link, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return number
    raise RuntimeError("no bridge sluicen1, sluicen2, … can be made")


class Worker:
    """nics: as in the settings of `sluice router --kubernetes`. Several can be on one machine."""

    def __init__(self, plane: ControlPlane, name: str, nics: dict[str, str]) -> None:
        self.plane = plane
        self.name = name
        self.nics = nics
        # Socket paths are short.
        self.root = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
        plane.logs.append(self.root)
        self._number = number = take_number()
        self.address = f"10.245.{number}.1"
        self._link = f"sluicen{number}"
        # Kubelets end pods that they don't know: each below a cgroup of its own.
        self._cgroup = f"sluice-{number}"
        self._containerd: subprocess.Popen[bytes] | None = None
        self._kubelet: subprocess.Popen[bytes] | None = None
        self._router: subprocess.Popen[bytes] | None = None
        self._names: Names | None = None
        self.http_port = free_port()
        self.state_dir = self.root / "s"
        self.kubelet_dir = self.root / "k"
        self.cdi_dir = self.root / "cdi"
        self.settings: dict[str, Any] = {}
        self.router_kubeconfig = plane.kubeconfig

    # ---- containerd ------------------------------------------------------

    def _start_containerd(self) -> None:
        runtime = "io.containerd.cri.v1.runtime"
        images = "io.containerd.cri.v1.images"
        quote = json.dumps
        config = self.root / "containerd.toml"
        config.write_text(
            f"""version = 3
root = {quote(str(self.root / "c"))}
state = {quote(str(self.root / "r"))}
[grpc]
address = {quote(str(self.root / "c.sock"))}
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins.{quote(images)}.pinned_images]
sandbox = {quote(NAME)}
[plugins.{quote(runtime)}]
enable_cdi = true
cdi_spec_dirs = [{quote(str(self.cdi_dir))}]
disable_apparmor = true
restrict_oom_score_adj = {str(restricted()).lower()}
[plugins.{quote(runtime)}.cni]
bin_dirs = [{quote(str(folder()))}]
conf_dir = {quote(str(self.root / "cni"))}
[plugins.{quote(runtime)}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""
        )
        (self.root / "cni").mkdir()
        ipam = {
            "type": "host-local",
            "dataDir": str(self.root / "ipam"),
            "ranges": [[{"subnet": f"10.244.{self._number}.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {"type": "bridge", "bridge": f"sluicek{self._number}", "isGateway": True, "ipam": ipam}
        (self.root / "cni" / "10.conflist").write_text(
            json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]})
        )
        # The device plugins' directory can't be moved: the kubelet sees ours in its place. What it mounts for
        # pods, containerd must see.
        plugins = self.kubelet_dir / "device-plugins"
        plugins.mkdir()
        well_known = Path("/var/lib/kubelet/device-plugins")
        well_known.mkdir(parents=True, exist_ok=True)
        path = {"PATH": f"{folder()}:{os.environ['PATH']}"}
        self._containerd = start(
            [*apart(plugins, well_known), program("containerd"), "-c", config],
            self.root / "containerd.log",
            environment=path,
        )
        wait_until(lambda: self._ctr("version").returncode == 0, "containerd")
        write_image(self.root / "image.tar")
        self.import_image(self.root / "image.tar")

    def import_image(self, archive: Path) -> None:
        done = self._ctr("images", "import", str(archive))
        assert done.returncode == 0, done.stderr

    def _ctr(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [program("ctr"), "-a", self.root / "c.sock", "-n", "k8s.io", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    # ---- kubelet ---------------------------------------------------------

    def _start_kubelet(self) -> None:
        config = self.root / "kubelet.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "failCgroupV1": False,
                    "cgroupDriver": "cgroupfs",
                    "cgroupRoot": f"/{self._cgroup}",
                    "enforceNodeAllocatable": [],
                    "containerRuntimeEndpoint": f"unix://{self.root}/c.sock",
                    "failSwapOn": False,
                    "port": free_port(),
                    "healthzPort": free_port(),
                    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
                    "authorization": {"mode": "AlwaysAllow"},
                    "tlsCertFile": str(self.plane.root / "apiserver.crt"),
                    "tlsPrivateKeyFile": str(self.plane.root / "apiserver.key"),
                    "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
                    "imageGCHighThresholdPercent": 100,
                    "podLogsDir": str(self.root / "logs"),
                    "nodeStatusUpdateFrequency": "2s",
                    # The API server may not have learnt yet that a claim is this node's; then the kubelet tries again.
                    "syncFrequency": "3s",
                    "resolvConf": "",
                    "clusterDNS": [self.address],
                    "clusterDomain": DOMAIN,
                }
            )
        )
        for path in self._cgroups():
            path.mkdir(exist_ok=True)
        # An address of the node's own, where the API server reaches the kubelet.
        for command in (
            ["ip", "address", "add", f"{self.address}/32", "dev", self._link],
            ["ip", "link", "set", self._link, "up"],
        ):
            subprocess.run(command, check=True)
        self._names = Names(self.plane, self.address)
        self.run_kubelet()

    def run_kubelet(self) -> None:
        assert self._containerd is not None
        config = self.root / "kubelet.yaml"
        self._kubelet = start(
            [
                "nsenter", "--target", str(self._containerd.pid), "--mount", program("kubelet"),
                "--config", config, "--root-dir", self.kubelet_dir,
                "--kubeconfig", self.plane.node_kubeconfig(self.name), "--hostname-override", self.name,
                "--node-ip", self.address,
            ],
            self.root / "kubelet.log",
            environment={"PATH": f"{folder()}:{os.environ['PATH']}"},
        )  # fmt: skip
        wait_until(lambda: self.plane.try_kubectl("get", "node", self.name).returncode == 0, "the node's object")
        self.plane.wait_for(f"node/{self.name}", "condition=Ready")

    def _cgroups(self) -> list[Path]:
        """The node's cgroup; with cgroup v1 in each hierarchy."""
        if (CGROUPS / "cgroup.controllers").exists():
            return [CGROUPS / self._cgroup]
        return [each / self._cgroup for each in CGROUPS.iterdir() if each.is_dir() and not each.is_symlink()]

    def _remove_cgroups(self) -> None:
        for root in self._cgroups():
            for path in sorted((each for each in root.rglob("*") if each.is_dir()), reverse=True):
                with suppress(OSError):
                    path.rmdir()
            with suppress(OSError):
                root.rmdir()

    # ---- router ----------------------------------------------------------

    def start_router(self, **changed: Any) -> None:
        self.settings |= changed
        settings = self.root / "settings.yaml"
        settings.write_text(
            yaml.safe_dump(
                {
                    "node": self.name,
                    "kubeconfig": str(self.router_kubeconfig),
                    "address": self.address,
                    "nics": self.nics,
                    "kubelet-dir": str(self.kubelet_dir),
                    "cdi-dir": str(self.cdi_dir),
                    "shim-dir": str(self.root / "shim"),
                    **{name.replace("_", "-"): value for name, value in self.settings.items()},
                }
            )
        )
        self._router = start(
            [
                sys.executable, "-m", "sluice", "router", "--verbose", "--state-dir", self.state_dir,
                "--kubernetes", settings, "--http", str(self.http_port),
            ],
            self.root / "router.log",
        )  # fmt: skip
        wait_until(self.ready, "the router to be ready")
        loaded = load_settings(settings)
        if loaded.dra:
            # Until then the scheduler goes by what an earlier router had.
            offer = {nic.name: capacity_bps(nic, loaded) for nic in loaded.nics}
            wait_until(lambda: self._offered() == offer, "the node's slice to be as the settings say")

    def _offered(self) -> dict[str, int]:
        """Bandwidth by NIC, in the node's ResourceSlice."""
        found = self.plane.try_kubectl("get", "resourceslice", f"{self.name}-{DRIVER}", "-o", "json")
        devices = json.loads(found.stdout)["spec"]["devices"] if found.returncode == 0 else []
        return {each["name"]: parse_quantity(each["capacity"]["bandwidth"]["value"]) for each in devices}

    @contextmanager
    def changed(self, **settings: Any) -> Iterator[None]:
        """Its router with other settings. Pods that were made meanwhile end before it has the old ones again."""
        before = dict(self.settings)
        self.stop_router()
        try:
            self.start_router(**settings)
            yield
        finally:
            self.plane.kubectl("delete", "pods", "--all", "--grace-period=1", WITHIN)
            self.stop_router()
            self.settings = before
            self.start_router()

    def stop_router(self) -> None:
        stop(self._router)
        assert self._router is not None
        assert self._router.returncode == 0, self.logged()

    @contextmanager
    def router_asleep(self) -> Iterator[None]:
        """It does nothing meanwhile, and is not gone."""
        assert self._router is not None
        self._router.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._router.send_signal(signal.SIGCONT)

    def kill_router(self) -> None:
        assert self._router is not None
        self._router.kill()
        self._router.wait()

    def ready(self) -> bool:
        assert self._router is not None
        assert self._router.poll() is None, self.logged()
        try:
            return self.http("readyz") == "ok\n"
        except OSError:
            return False

    def http(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/{path}", timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
        return text

    def nic_states(self) -> dict[str, dict[str, Any]]:
        return {nic["name"]: nic for nic in json.loads(self.http("nics"))}

    def metric(self, name: str, **labels: str) -> float:
        """Of the first sample with these labels; 0 where there is none."""
        for line in self.http("metrics").splitlines():
            if line.partition("{")[0].partition(" ")[0] == name and all(
                f'{label}="{value}"' in line for label, value in labels.items()
            ):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def tenants(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = ask(self.state_dir, "status", PATIENCE)["tenants"]
        return found

    def wrong(self) -> list[str]:
        """What `sluice doctor` finds of Kubernetes."""
        found: list[str] = ask(self.state_dir, "status", PATIENCE)["orchestrator"]["wrong"]
        return found

    def peers(self) -> dict[str, dict[str, Any]]:
        """The other nodes' routers."""
        status = ask(self.state_dir, "status", PATIENCE)
        found: dict[str, dict[str, Any]] = (status.get("cluster") or {}).get("peers", {})
        return found

    def tenant_of(self, pod: str) -> dict[str, Any]:
        """Of a pod, by the start of its tenant's name."""
        found = [tenant for name, tenant in self.tenants().items() if name.startswith(f"default-{pod}-")]
        assert len(found) == 1, f"{pod}: {list(self.tenants())}"
        return found[0]

    def logged(self) -> str:
        return (self.root / "router.log").read_text()

    def execute(self, pod: str, *command: str, container: str = "main") -> "subprocess.CompletedProcess[str]":
        """Runs a command in a pod's container, with its environment."""
        return self.plane.try_kubectl("exec", pod, "-c", container, "--", *command)

    def output(self, pod: str, *command: str) -> str:
        done = self.execute(pod, *command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # ---- all of it -------------------------------------------------------

    def start(self) -> None:
        for directory in (self.kubelet_dir, self.cdi_dir):
            directory.mkdir()
        self._start_containerd()
        self._start_kubelet()
        self.start_router()

    def _kill_containers(self) -> None:
        for task in self._ctr("tasks", "ls", "-q").stdout.split():
            self._ctr("tasks", "kill", "-s", "SIGKILL", task)

    def lose(self) -> None:
        """All that runs on the node ends at once, and says nothing."""
        for process in (self._router, self._kubelet):
            assert process is not None
            process.kill()
            process.wait()
        self._kill_containers()

    def stop(self) -> None:
        mine = ["--field-selector", f"spec.nodeName={self.name}"]
        self.plane.try_kubectl("delete", "pods", *mine, "--grace-period=1", "--timeout=60s")
        stop(self._router)
        stop(self._kubelet)
        self._kill_containers()
        stop(self._containerd)
        if self._names is not None:
            self._names.close()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((one for one in mounts if one.startswith(f"{self.root}/")), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        for link in (self._link, f"sluicek{self._number}"):
            subprocess.run(["ip", "link", "del", link], check=False, stderr=subprocess.DEVNULL)
        self._remove_cgroups()
        shutil.rmtree(self.root, ignore_errors=True)
