"""What a node is told: one frozen record, written by `node` as JSON and read by `inside`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

#: The cluster's network, which no machine has: TEST-NET addresses would do, but some tools refuse them.
GATEWAY = "172.30.0.1"
PODS = "10.244.0.0/16"
DNS = "10.96.0.10"
#: The queue in which the enforcer of NetworkPolicies decides about new connections.
QUEUE = 98


@dataclass(frozen=True)
class NodeSettings:
    """One node; paths are absolute."""

    number: int
    """1, 2 or 3."""
    server: str
    """The API server's URL as the node reaches it."""
    folder: str
    """The node's state, logs and kubeconfigs."""
    certificate: str
    """The API server's certificate, which is also its authority."""
    token: str
    """The kubelet's."""
    proxy_token: str
    """kube-proxy's."""
    cgroup: str
    """Its cgroup in each hierarchy, which exists beforehand."""
    images: tuple[str, ...]
    """OCI archives that containerd imports at its start."""
    programs: tuple[tuple[str, str], ...]
    """(name, path) of kubelet and kube-proxy."""
    mounts: tuple[tuple[str, str], ...] = ()
    """(source, target): folders that every container sees, read-only, as if its image held them."""
    cpus: int | None = None
    """How many CPUs the node claims, with 4 GiB of memory each; None: those of the machine."""

    @property
    def name(self) -> str:
        """The Node object's name and the node's host name."""
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        """Its address in the cluster's network."""
        return f"172.30.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        """The addresses of its pods."""
        return f"10.244.{self.number}.0/24"

    def write(self, path: Path) -> None:
        """Write them where only the owner reads: tokens are among them."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> NodeSettings:
        """What `write` wrote."""
        data = json.loads(path.read_text())
        pairs = {key: tuple(map(tuple, data[key])) for key in ("programs", "mounts")}
        return cls(**{**data, **pairs, "images": tuple(data["images"])})
