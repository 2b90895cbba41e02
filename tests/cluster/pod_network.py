"""A network of real processes at the addresses of pods: one network namespace per pod, on a bridge, as a CNI makes it.

kwok runs no container. A test that wants a pod to live runs the pod's own command, as KubeRay wrote it, in a namespace
that has the pod's address. Its ports cannot collide, and the API server's proxy reaches them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.bare_python import bare_python

KUBERNETES_PORT = 443
#: Folders of the image that a test maps to its own folders.
IMAGE_FOLDER = "/var/lib/modelfleet"
#: Files from here replace those of /etc under `ip netns exec`.
NETNS_FILES = Path("/etc/netns")


class PodNetwork:
    """The bridge, its namespaces, and the processes in them; all gone at the end."""

    def __init__(self, folder: Path, api_port: int, prefix: str) -> None:
        self.folder, self._api_port = folder, api_port
        #: This machine's address on the bridge.
        self.gateway = f"{prefix}.255.254"
        #: What runs in the pods: the image's packages, and nothing of this checkout.
        self.python = bare_python(folder / "python")
        self._bridge = f"mf{prefix.replace('.', '-')}"
        self._namespaces: dict[str, str] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._forward: socket.socket | None = None

    def __enter__(self) -> PodNetwork:
        if os.geteuid() != 0:
            pytest.skip("needs root, to make network namespaces")
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.gateway}/16", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        self._forward = forward((self.gateway, KUBERNETES_PORT), ("127.0.0.1", self._api_port))
        return self

    def __exit__(self, *error: object) -> None:
        # As a node that loses its power: a Ray that is asked to end takes half a minute, and nothing of it is kept.
        for name in self._namespaces.values():
            _kill_all(name)
        for process in self._processes:
            process.wait(timeout=60)
        for name in self._namespaces.values():
            ip("netns", "del", name)
            shutil.rmtree(NETNS_FILES / name)
        if self._forward is not None:
            # Closing alone leaves the port in use for as long as a thread waits in accept(), and the next network of
            # the same control plane has the same address.
            self._forward.shutdown(socket.SHUT_RDWR)
            self._forward.close()
        ip("link", "del", self._bridge)

    def run(
        self, pod: dict[str, Any], *, container: int = 0, extra: Mapping[str, str], names: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a container's command at the pod's address; `names` replaces what DNS would resolve, and sizes."""
        spec, address = pod["spec"]["containers"][container], pod["status"]["podIP"]
        command = " ".join(spec.get("args") or spec["command"])
        for name, value in names.items():
            command = command.replace(name, value)
        environment = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("RAY_", "AWS_", "PYTHON")) and "proxy" not in k.lower()
        }
        environment |= {k: v.replace(IMAGE_FOLDER, str(self.folder)) for k, v in pod_environment(pod, spec).items()}
        programs = [str(self.folder / "bin"), str(self.python.parent), os.environ["PATH"]]
        environment |= {"PATH": ":".join(programs), **extra}
        command = re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], command)
        with (self.folder / f"{pod['metadata']['name']}-{spec['name']}.log").open("wb") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._namespace(address), "bash", "-c", f"{self._secrets(pod)}{command}"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def kill(self, pod: dict[str, Any]) -> None:
        """End what still runs at the pod's address, as the end of a container ends all that it started."""
        _kill_all(self._namespace(pod["status"]["podIP"]))

    def give_token(self, account: str, token: str, ca: Path, namespace: str) -> None:
        """What the kubelet mounts for a ServiceAccount at /var/run/secrets/kubernetes.io/serviceaccount."""
        place = self.folder / "secrets" / account / "kubernetes.io" / "serviceaccount"
        place.mkdir(parents=True)
        (place / "token").write_text(token)
        (place / "ca.crt").write_bytes(ca.read_bytes())
        (place / "namespace").write_text(namespace)

    def _secrets(self, pod: dict[str, Any]) -> str:
        """`ip netns exec` has its own mounts, so only the pod's processes see this one."""
        folder = self.folder / "secrets" / pod["spec"].get("serviceAccountName", "none")
        if not folder.is_dir():
            return ""
        return f"mkdir -p /var/run/secrets && mount --bind {folder} /var/run/secrets && "

    def _namespace(self, address: str) -> str:
        if address not in self._namespaces:
            name = f"mf{address.replace('.', '-')}"
            outer, inner = f"o{address[-8:]}".replace(".", ""), f"i{address[-8:]}".replace(".", "")
            files = NETNS_FILES / name
            files.mkdir(parents=True, exist_ok=True)
            # A kubelet also writes the pod's own name. Any other name fails at once, without DNS timeouts.
            own = f"{address} {socket.gethostname()}"
            (files / "hosts").write_text(f"127.0.0.1 localhost\n{self.gateway} kubernetes.default\n{own}\n")
            (files / "resolv.conf").write_text("nameserver 127.0.0.1\n")
            ip("netns", "add", name)
            ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            ip("link", "set", outer, "master", self._bridge, "up")
            ip("link", "set", inner, "netns", name)
            for command in (f"addr add {address}/16 dev {inner}", f"link set {inner} up", "link set lo up"):
                ip("-n", name, *command.split())
            ip("-n", name, "route", "add", "default", "via", self.gateway)
            self._namespaces[address] = name
        return self._namespaces[address]


def _kill_all(namespace: str) -> None:
    while pids := ip("netns", "pids", namespace).split():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def pod_environment(pod: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
    """The container's environment: literals, and what the kubelet would take from the pod itself."""
    found = {}
    for entry in container.get("env", []):
        if "value" in entry:
            found[entry["name"]] = entry["value"]
        elif path := entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath"):
            label = re.fullmatch(r"metadata\.labels\['(.*)'\]", path)
            meta = pod["metadata"]
            found[entry["name"]] = meta["labels"][label[1]] if label else meta[path.removeprefix("metadata.")]
    return found


def ip(*arguments: str) -> str:
    """The `ip` command."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its session."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=15)


def forward(listen: tuple[str, int], target: tuple[str, int]) -> socket.socket:
    """Connections to `listen` go to `target`, as a Service would send them; closing the socket ends it."""
    server = socket.create_server(listen, reuse_port=False)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass  # one side has closed; the other is closed below
        for side in (source, sink):
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return  # closed: the end
            upstream = socket.create_connection(target)
            for pair in ((client, upstream), (upstream, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return server
