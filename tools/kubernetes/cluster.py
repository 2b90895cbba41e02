"""A whole cluster: the control plane in a network of its own, one to three real nodes, DNS and enforced policies.

with Cluster(nodes=2) as cluster:
    cluster.plane.api.apply(...)
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from modelfleet.serving.config.errors import SetupError
from tools.kubernetes.api import WritingApi
from tools.kubernetes.binaries import BINARIES
from tools.kubernetes.control_plane import ControlPlane
from tools.kubernetes.node import images, machine
from tools.kubernetes.node.images import Archive, Recipe
from tools.kubernetes.node.network import Network
from tools.kubernetes.node.node import START_SECONDS, Node
from tools.kubernetes.node.settings import NodeSettings
from tools.kubernetes.processes import Running
from tools.paths import ROOT

MANAGER = "modelfleet-tools"
MANIFESTS = Path(__file__).parent / "node" / "manifests"
_numbers = itertools.count(1)


class Cluster(Running):
    """Raises `SetupError` where nodes cannot run, with all that the machine lacks.

    Images of `recipes` are there on each node beside the system's; `cpus` is how many CPUs each node claims.
    """

    def __init__(
        self,
        nodes: int = 1,
        *,
        folder: Path | None = None,
        recipes: Sequence[Recipe] = (),
        cpus: int | None = None,
    ) -> None:
        machine.require()
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="modelfleet-cluster-"))
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._cgroup = f"modelfleet-{os.getpid()}-{next(_numbers)}"
        self._recipes, self._cpus, self._count = recipes, cpus, nodes
        self._keeper: subprocess.Popen[bytes] | None = None
        self.network = Network(self.folder)
        self.plane = ControlPlane(self.folder, network=self.network)
        self.nodes: dict[int, Node] = {}

    @property
    def api(self) -> WritingApi:
        """The API as its administrator."""
        return self.plane.api

    def start(self) -> None:
        """Start everything; returns when all nodes are Ready and DNS answers."""
        self._keeper = self._start_keeper()
        self.network.start()
        self.plane.start()
        for number in range(1, self._count + 1):
            self.add_node(number)
        for name in ("coredns", "kube-network-policies"):
            self._apply(MANIFESTS / f"{name}.yaml")
        for number in self.nodes:
            self.wait_for_node(number)
        self._wait("the cluster's DNS", self._dns_is_ready)

    @cached_property
    def images(self) -> Archive:
        """What each node has; made when it is first asked for."""
        return images.archive(self._recipes)

    def add_node(self, number: int) -> Node:
        """Start one more node, or one again after `nodes[number].stop()`; it is Ready a while later."""
        self.nodes[number] = node = Node(self._settings(number), self.network)
        node.start()
        return node

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes.values() if node.settings.name == name)

    def wait_for_node(self, number: int) -> None:
        """Wait until the node is Ready."""
        node = self.nodes[number]
        node.wait()
        self._wait(f"{node.settings.name}, Ready", lambda: self._is_ready(node.settings.name))

    def stop(self) -> None:
        """End all of it; nothing is left, but a folder that was given."""
        for node in self.nodes.values():
            node.stop()
        self.plane.stop()
        self.network.stop()
        if self._keeper:
            said, _ = self._keeper.communicate()
            if self._keeper.returncode:
                raise SetupError(f"the cluster left something behind: {said.decode(errors='replace').strip()}")

    def _start_keeper(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tools.kubernetes.node.keeper", self._cgroup]
        return subprocess.Popen(
            [*command, str(self.folder) if self._temporary else ""],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _settings(self, number: int) -> NodeSettings:
        return NodeSettings(
            number=number,
            server=self.plane.server_for_nodes,
            folder=str(self.folder / f"node-{number}-{next(_numbers)}"),
            certificate=str(self.plane.certificate),
            token=self.plane.token_of(f"system:node:node-{number}"),
            proxy_token=self.plane.token_of("system:kube-proxy"),
            cgroup=f"/{self._cgroup}-{number}-{next(_numbers)}",
            images=(str(self.images.path),),
            programs=tuple((name, str(BINARIES[name].path)) for name in ("kubelet", "kube-proxy")),
            mounts=self.images.mounts,
            cpus=self._cpus,
        )

    def _apply(self, path: Path) -> None:
        for manifest in yaml.safe_load_all(path.read_text()):
            self.api.apply(manifest, manager=MANAGER, force=True)

    def _is_ready(self, name: str) -> bool:
        node: dict[str, Any] = self.api.get("v1", "Node", name) or {}
        conditions = {one["type"]: one["status"] for one in node.get("status", {}).get("conditions", [])}
        return conditions.get("Ready") == "True"

    def _dns_is_ready(self) -> bool:
        deployment: dict[str, Any] = self.api.get("apps/v1", "Deployment", "coredns", "kube-system") or {}
        return bool(deployment.get("status", {}).get("readyReplicas"))

    def _wait(self, what: str, done: Any) -> None:
        end = time.monotonic() + START_SECONDS
        while not done():
            if time.monotonic() > end:
                raise SetupError(f"{what}: not there after {START_SECONDS:.0f} s; the logs are in {self.folder}")
            time.sleep(0.2)
