"""Starts and stops a real control plane on loopback: `with ControlPlane() as cluster: cluster.api.apply(...)`."""

from __future__ import annotations

import base64
import json
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from filelock import FileLock
from kubernetes.client import ApiException

from modelfleet.infra.kubernetes.api import ApiError, Unreachable
from modelfleet.serving.config.errors import SetupError
from tools.kubernetes.api import WritingApi
from tools.kubernetes.binaries import BINARIES, kuberay_sources, require
from tools.kubernetes.node.network import Network
from tools.kubernetes.node.settings import GATEWAY
from tools.kubernetes.processes import Running, end_with_parent, without_proxies
from tools.paths import tools_cache

#: No other program's default, and below the ephemeral range, from which outgoing connections take their ports.
PORTS = range(16400, 16600)
START_SECONDS = 240.0
#: Users with a token, and their groups. The API server reads them once, so nodes that come later are among them.
_USERS = {
    "admin": ["system:masters"],
    "system:kube-proxy": [],
    **{f"system:node:node-{number}": ["system:nodes"] for number in (1, 2, 3)},
}
CORE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")


class ControlPlane(Running):
    """etcd, API server, scheduler, controller manager and kwok; `start_operator` adds KubeRay.

    Everything binds to 127.0.0.1, or runs in `network`, where nodes and their pods reach it and one loopback port leads
    to the API server. State and logs are under `folder` (default: a temporary one). The processes end with the one that
    started them, however it ends, unless `outlive` is set.
    """

    def __init__(self, folder: Path | None = None, *, network: Network | None = None, outlive: bool = False) -> None:
        self._temporary = folder is None
        self._network = network
        self._outlive = outlive
        self.folder = folder or Path(tempfile.mkdtemp(prefix="modelfleet-kubernetes-"))
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        #: First two numbers of the pods' addresses; random, because two control planes on one machine share its routes.
        self.pod_network = f"10.{random.randrange(64, 224)}"
        self._tokens = {user: secrets.token_urlsafe(24) for user in _USERS}
        self.api: WritingApi

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "kubeconfig"

    @property
    def server(self) -> str:
        """The API server's address, here and for what runs in the network beside it."""
        # Where it listens everywhere, its certificate has the name and not the address.
        return f"https://{'localhost' if self._network else '127.0.0.1'}:{self._ports['apiserver']}"

    @property
    def server_for_nodes(self) -> str:
        """The API server's address in the network."""
        return f"https://{GATEWAY}:{self._ports['apiserver']}"

    @property
    def certificate(self) -> Path:
        """The API server's certificate, which is its own authority."""
        return self.folder / "certificates" / "apiserver.crt"

    def token_of(self, user: str) -> str:
        """The token of `system:kube-proxy` or of a kubelet, `system:node:node-N` with N from 1 to 3."""
        return self._tokens[user]

    def pids(self) -> dict[str, int]:
        """The running processes, by name."""
        return {name: process.pid for name, process in self._processes.items() if process.poll() is None}

    def start(self) -> None:
        """Start everything and wait until the API server is ready; raises `SetupError` if a process ends."""
        require(CORE)
        # A port looks free until its process listens, so two control planes that start at once could share an etcd.
        with FileLock(tools_cache() / "control-plane.lock"):
            self._start_on_free_ports()

    def _start_on_free_ports(self) -> None:
        self._choose_ports()
        if self._network:
            self._network.forward(self._ports["apiserver"], "127.0.0.1", self._ports["apiserver"])
        self._write_files()
        self.start_etcd()
        self.start_apiserver()
        self.api = WritingApi.from_kubeconfig(self.kubeconfig)
        self._spawn("kube-controller-manager", self._controller_manager_arguments())
        self._spawn("kube-scheduler", self._scheduler_arguments())
        self._spawn("kwok", self._kwok_arguments())
        self._wait(self._has_default_account, "the service account controller", *self._processes)
        if not self._network:  # until it listens, another one may choose the same port; a network has its own
            self._wait(self._listens, "a port", *self._processes)

    def start_etcd(self) -> None:
        """Start etcd (again)."""
        self._spawn("etcd", self._etcd_arguments())

    def start_apiserver(self) -> None:
        """Start the API server (again) and wait until it is ready."""
        self._spawn("kube-apiserver", self._apiserver_arguments())
        # The operator may end meanwhile: it has lost its lease, and its Deployment would start it again.
        self._wait(self._ready, "the API server", "etcd", "kube-apiserver")

    def start_operator(self, kubeconfig: Path | None = None, *, arguments: tuple[str, ...] = ()) -> None:
        """Start the KubeRay operator as `kubeconfig` (default: the administrator), through the API server's proxy."""
        require(["kuberay-operator"])
        flags = ["-metrics-addr=0", "-health-probe-bind-address=0", "-use-kubernetes-proxy", *arguments]
        environment = {"KUBECONFIG": str(kubeconfig or self.kubeconfig), "ENABLE_INIT_CONTAINER_INJECTION": "true"}
        self._spawn("kuberay-operator", flags, environment)

    def kubeconfig_for(self, namespace: str, service_account: str) -> Path:
        """Return a kubeconfig that acts as a ServiceAccount, as one of its pods would."""
        path = self.folder / f"kubeconfig-{namespace}-{service_account}"
        _write_private(path, self._kubeconfig_text(self.api.token(namespace, service_account, seconds=24 * 3600)))
        return path

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End one process, by default like a crash."""
        process = self._processes.pop(name)
        process.send_signal(number)
        process.wait(timeout=30)

    def log(self, name: str) -> str:
        """Return the log of a process."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """End all processes, the last started first, and remove a temporary folder."""
        if hasattr(self, "api"):
            self.api.close()
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(timeout=10)
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- inside -------------------------------------------------------------------------------------------

    def _choose_ports(self) -> None:
        names = ("etcd", "peer", "apiserver", "controller", "scheduler", "kwok")
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))

    def _write_files(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        _write_private(self.folder / "service-account.key", pem.decode())
        rows = [[self._tokens[user], user, user, *groups] for user, groups in _USERS.items()]
        _write_private(self.folder / "tokens.csv", "".join(f"{','.join(row)}\n" for row in rows))
        _write_private(self.folder / "kwok.yaml", json.dumps(_KWOK_CONFIGURATION))

    def _kubeconfig_text(self, token: str) -> str:
        ca = base64.b64encode(self.certificate.read_bytes()).decode()
        cluster = {"server": self.server, "certificate-authority-data": ca}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "local", "cluster": cluster}],
                "users": [{"name": "user", "user": {"token": token}}],
                "contexts": [{"name": "local", "context": {"cluster": "local", "user": "user"}}],
                "current-context": "local",
            },
            indent=2,
        )

    def _etcd_arguments(self) -> list[str]:
        client, peer = (f"http://127.0.0.1:{self._ports[name]}" for name in ("etcd", "peer"))
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # test data need not survive a power cut
            "--log-level=warn",
        ]

    def _apiserver_arguments(self) -> list[str]:
        key = self.folder / "service-account.key"
        if self._network:
            place = [f"--advertise-address={GATEWAY}", "--kubelet-preferred-address-types=InternalIP"]
        else:
            # Loopback is no endpoint of the Service `kubernetes`, and no pod asks for it.
            place = ["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"]
        return [
            *place,
            f"--etcd-servers=http://127.0.0.1:{self._ports['etcd']}",
            f"--secure-port={self._ports['apiserver']}",
            f"--cert-dir={self.folder / 'certificates'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",  # as on EKS, where Pod Security decides per namespace
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={key}",
            f"--service-account-key-file={key}",
        ]

    def _controller_manager_arguments(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self.folder / 'service-account.key'}",
            f"--root-ca-file={self.certificate}",
            "--use-service-account-credentials=false",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['controller']}",
            f"--cert-dir={self.folder / 'controller'}",
            "--allocate-node-cidrs=false",
            # On a busy machine kwok's heartbeats are late, and without a kubelet an unready pod stays unready.
            *([] if self._network else ["--node-monitor-grace-period=30m"]),
        ]

    def _scheduler_arguments(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['scheduler']}",
            f"--cert-dir={self.folder / 'scheduler'}",
        ]

    def _kwok_arguments(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            f"--config={self.folder / 'kwok.yaml'}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            f"--server-address=127.0.0.1:{self._ports['kwok']}",
            f"--cidr={self.pod_network}.0.1/16",  # EndpointSlices refuse loopback addresses
        ]

    def _ready(self) -> bool:
        if not self.certificate.exists():
            return False
        if not self.kubeconfig.exists():
            _write_private(self.kubeconfig, self._kubeconfig_text(self._tokens["admin"]))
        try:
            with closing(WritingApi.from_kubeconfig(self.kubeconfig)) as api:
                api.client.request("get", "/readyz", serializer=lambda _, data: data)
                return api.get("v1", "Namespace", "kube-system") is not None
        except (Unreachable, ApiError, ApiException):
            return False

    def _listens(self) -> bool:
        for port in self._ports.values():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)):
                    return False
        return True

    def _has_default_account(self) -> bool:
        return self.api.get("v1", "ServiceAccount", "default", "default") is not None

    def _spawn(self, name: str, arguments: list[str], extra: dict[str, str] | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self._here(str(BINARIES[name].path), *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**without_proxies(), **(extra or {})},
                preexec_fn=None if self._outlive else end_with_parent,  # noqa: PLW1509  one system call, no lock
                start_new_session=True,  # Ctrl-C must reach only the test, which then stops these in order
            )

    def _here(self, *command: str) -> list[str]:
        return self._network.command(*command) if self._network else list(command)

    def _wait(self, done: Callable[[], bool], what: str, *needed: str) -> None:
        end = time.monotonic() + START_SECONDS
        while not done():
            for name in needed:
                if (process := self._processes[name]).poll() is not None:
                    raise SetupError(f"{name} ended with exit code {process.returncode}: {self.log(name)[-800:]}")
            if time.monotonic() > end:
                raise SetupError(f"{what} was not ready after {START_SECONDS:.0f} s; the logs are in {self.folder}")
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Return free loopback ports from `PORTS`, in random order so that two runs rarely clash; raises `SetupError`."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise SetupError(f"fewer than {count} ports are free in {PORTS.start} to {PORTS.stop - 1} on 127.0.0.1")


def crd_manifests() -> list[dict[str, Any]]:
    """Return KubeRay's CustomResourceDefinitions from its own Go module."""
    import yaml

    folder = kuberay_sources() / "config" / "crd" / "bases"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [yaml.load(path.read_text(), Loader=loader) for path in sorted(folder.glob("*.yaml"))]


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


_KWOK_CONFIGURATION = {
    "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
    "kind": "KwokConfiguration",
    "options": {"nodeIP": "127.0.0.1", "nodePort": 10250},
}

__all__ = ["CORE", "ControlPlane", "crd_manifests", "free_ports"]
