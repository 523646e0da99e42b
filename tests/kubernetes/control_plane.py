# SPDX-License-Identifier: Apache-2.0
"""A real control plane: etcd, kube-apiserver, kube-scheduler, kube-controller-manager, on loopback ports."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml
from conftest import PATIENCE, wait_until
from programs import free_port, kill, program, start, stop

WITHIN = f"--timeout={2 * PATIENCE}s"
"""How long kubectl waits for what it is to wait for: a condition of a pod is several components' work."""

ROUTER = "system:serviceaccount:sluice-system:sluice-router"
CLUSTER_CIDR = "10.244.0.0/16"


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class ControlPlane:
    """start() it; stop() it. kubectl() is how the tests talk to it."""

    def __init__(self, scheduler_requests: int = 1000) -> None:
        """scheduler_requests: that the scheduler may send in a second; its own default is 50."""
        self._scheduler_requests = scheduler_requests
        self.root = Path(tempfile.mkdtemp(prefix="sluice-kubernetes-"))
        self.logs = [self.root]
        """Folders with logs, those of the nodes among them."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd_port, self._etcd_peer_port = free_port(), free_port()
        self.port = free_port()
        self.kubeconfig = self.root / "admin.conf"
        self._make_certificates()
        self._write_kubeconfig(self.kubeconfig, "admin")

    # ---- certificates ----------------------------------------------------

    def _make_certificates(self) -> None:
        """A CA, the server's certificate, and a client certificate for whoever asks (client_kubeconfig)."""
        root = self.root
        _openssl("genrsa", "-out", root / "sa.key", "2048")
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
            "-subj", "/CN=ca", "-keyout", root / "ca.key", "-out", root / "ca.crt",
        )  # fmt: skip
        self._issue("apiserver", "/CN=kube-apiserver", "subjectAltName=IP:127.0.0.1,DNS:localhost")
        self._issue("admin", "/O=system:masters/CN=admin")

    def _issue(self, name: str, subject: str, extension: str = "basicConstraints=CA:FALSE") -> None:
        root = self.root
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject,
            "-keyout", root / f"{name}.key", "-out", root / f"{name}.csr",
        )  # fmt: skip
        (root / f"{name}.ext").write_text(extension + "\n")
        _openssl(
            "x509", "-req", "-in", root / f"{name}.csr", "-CA", root / "ca.crt", "-CAkey", root / "ca.key",
            "-CAcreateserial", "-days", "30", "-extfile", root / f"{name}.ext", "-out", root / f"{name}.crt",
        )  # fmt: skip

    def _write_kubeconfig(self, path: Path, name: str) -> None:
        user: dict[str, Any] = {
            "client-certificate": str(self.root / f"{name}.crt"),
            "client-key": str(self.root / f"{name}.key"),
        }
        self._write_config(path, user)

    def _write_config(self, path: Path, user: dict[str, Any]) -> None:
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": str(self.root / "ca.crt")}
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": "user", "user": user}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
                    "current-context": "test",
                }
            )
        )

    def node_kubeconfig(self, node: str) -> Path:
        """As the kubelet of this node."""
        path = self.root / f"kubelet-{node}.conf"
        if not path.exists():
            self._issue(f"kubelet-{node}", f"/O=system:nodes/CN=system:node:{node}")
            self._write_kubeconfig(path, f"kubelet-{node}")
        return path

    def account_kubeconfig(self, namespace: str, account: str, pod: str = "") -> Path:
        """As a pod with this service account; pod: the token is bound to it, and through it to its node."""
        bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}"] if pod else []
        token = self.kubectl("create", "token", account, "-n", namespace, "--duration=24h", *bound).strip()
        path = self.root / f"{namespace}-{account}-{pod}.conf"
        self._write_config(path, {"token": token})
        return path

    # ---- processes -------------------------------------------------------

    def start(self) -> None:
        self._run(
            "etcd", "--data-dir", self.root / "etcd",
            "--listen-client-urls", f"http://127.0.0.1:{self._etcd_port}",
            "--advertise-client-urls", f"http://127.0.0.1:{self._etcd_port}",
            "--listen-peer-urls", f"http://127.0.0.1:{self._etcd_peer_port}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{self._etcd_peer_port}",
            "--initial-cluster", f"default=http://127.0.0.1:{self._etcd_peer_port}",
            "--unsafe-no-fsync", "--log-level", "warn",
        )  # fmt: skip
        self.start_apiserver()
        scheduler = self.root / "scheduler.yaml"
        scheduler.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubescheduler.config.k8s.io/v1",
                    "kind": "KubeSchedulerConfiguration",
                    "leaderElection": {"leaderElect": False},
                    "clientConnection": {
                        "kubeconfig": str(self.kubeconfig),
                        "qps": self._scheduler_requests,
                        "burst": 2 * self._scheduler_requests,
                    },
                }
            )
        )
        self._run("kube-scheduler", "--config", scheduler, "--secure-port", "0")
        self._run(
            "kube-controller-manager", "--kubeconfig", self.kubeconfig, "--leader-elect=false", "--secure-port", "0",
            "--service-account-private-key-file", self.root / "sa.key", "--root-ca-file", self.root / "ca.crt",
            "--use-service-account-credentials=false", "--kube-api-qps", "500", "--kube-api-burst", "1000",
            "--node-monitor-grace-period", "10s", "--node-monitor-period", "1s", "--allocate-node-cidrs=false",
        )  # fmt: skip
        self._wait_for_account("default")

    def start_apiserver(self) -> None:
        policy = self.root / "audit.yaml"
        policy.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "audit.k8s.io/v1",
                    "kind": "Policy",
                    "omitStages": ["RequestReceived"],
                    "rules": [{"level": "Metadata", "users": [ROUTER]}],
                }
            )
        )
        self._run(
            "kube-apiserver", "--etcd-servers", f"http://127.0.0.1:{self._etcd_port}",
            "--bind-address", "127.0.0.1", "--secure-port", str(self.port),
            "--tls-cert-file", self.root / "apiserver.crt", "--tls-private-key-file", self.root / "apiserver.key",
            "--client-ca-file", self.root / "ca.crt", "--authorization-mode", "Node,RBAC",
            "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-account-key-file", self.root / "sa.key",
            "--service-account-signing-key-file", self.root / "sa.key",
            "--service-cluster-ip-range", "10.96.0.0/16", "--allow-privileged=true",
            "--kubelet-preferred-address-types", "InternalIP",
            "--audit-policy-file", policy, "--audit-log-path", self.root / "audit.log",
            "--max-requests-inflight", "2000", "--max-mutating-requests-inflight", "1000",
        )  # fmt: skip
        wait_until(lambda: self.try_kubectl("get", "--raw", "/readyz").returncode == 0, "the API server")

    def stop_apiserver(self) -> None:
        stop(self._processes.pop("kube-apiserver"))

    def kill_apiserver(self) -> None:
        kill(self._processes.pop("kube-apiserver"))

    def requests_of_routers(self) -> list[dict[str, Any]]:
        """What routers with their own account have asked for: audit.k8s.io/v1 Events."""
        # What comes after the last line's end is half written.
        lines, _, _ = (self.root / "audit.log").read_text().rpartition("\n")
        return [json.loads(line) for line in lines.splitlines()]

    def processor_seconds(self) -> dict[str, float]:
        """CPU that each process has used (proc_pid_stat(5))."""
        found = {}
        for name, process in self._processes.items():
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            found[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return found

    def _run(self, name: str, *arguments: str | Path) -> None:
        self._processes[name] = start([program(name), *arguments], self.root / f"{name}.log")

    def stop(self) -> None:
        for process in reversed(self._processes.values()):
            kill(process)
        shutil.rmtree(self.root)

    # ---- talking to it ---------------------------------------------------

    def try_kubectl(
        self, *arguments: str | Path, stdin: str | None = None, kubeconfig: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [program("kubectl"), f"--kubeconfig={kubeconfig or self.kubeconfig}", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=3 * PATIENCE,
        )

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        done = self.try_kubectl(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(map(str, arguments))}: {done.stderr}"
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def make_namespace(self, name: str, **labels: str) -> None:
        """One that takes pods. labels: by key."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        self._wait_for_account(name)

    def _wait_for_account(self, namespace: str) -> None:
        """Its default one, which the controller manager makes: pods are refused without it."""
        self.wait_for("serviceaccount/default", "create", "-n", namespace)

    def pod(self, name: str, namespace: str = "default") -> dict[str, Any]:
        return self.get("pod", name, "-n", namespace)

    def wait_for(self, what: str, condition: str, *options: str) -> None:
        self.kubectl("wait", what, f"--for={condition}", WITHIN, *options)

    def events(self, name: str, namespace: str = "default") -> list[dict[str, Any]]:
        """Of the object with this name."""
        found = self.get("events", "-n", namespace)["items"]
        return [event for event in found if event["involvedObject"]["name"] == name]
