"""Ray's processes with the certificates that pods make for themselves: two pods, and whoever has no certificate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.authority import make_authority
from modelfleet.infra.kubernetes.manifests.ray import ray_cluster
from modelfleet.infra.kubernetes.scripts import certificate
from modelfleet.infra.local import ray_head
from tests.bare_python import bare_python
from tests.cluster.fleet import model, planned
from tests.serving.ray_pods import BRIDGE_ADDRESS, Pods
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for pods' namespaces")]

HEAD, WORKER = "10.213.0.2", "10.213.0.3"
CPU_POOL = {"name": "cpu", "accelerator": "CPU", "maxNodes": 1, "instanceTypes": ["m7i.2xlarge"]}
#: Machines are busy: a raylet ends if its agent starts late, and a node that answers late counts as dead.
PATIENCE = {"RAY_agent_register_timeout_ms": "300000", "RAY_health_check_failure_threshold": "60"}
OBJECT_STORE = f"--object-store-memory={80 << 20}"
WORKER_OPTIONS = ("--num-cpus=1", '--resources={"accelerator_type:CPU": 1}')
#: For each set of variables whether a channel comes up: with TLS and a certificate, without one, in plain text.
CALLER = """
import grpc, json, sys
for wish in sys.argv[2:]:
    env = json.loads(wish)
    read = lambda name: open(env[name], "rb").read() if name in env else None
    files = [read("RAY_TLS_" + name) for name in ("CA_CERT", "SERVER_KEY", "SERVER_CERT")]
    tls = grpc.ssl_channel_credentials(*files)
    channel = grpc.secure_channel(sys.argv[1], tls) if env else grpc.insecure_channel(sys.argv[1])
    ask = channel.unary_unary("/ray.rpc.InternalPubSubGcsService/GcsPublish")
    try:
        ask(b"", timeout=4 if wish != sys.argv[2] else 60, wait_for_ready=True)
        print(True)
    except grpc.RpcError as error:
        print(error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))
"""
#: A task on the worker, whose answer is too large for a message and so crosses from raylet to raylet.
DRIVER = """
import ray
ray.init(address="10.213.0.2:6379", log_to_driver=False)

@ray.remote(resources={"accelerator_type:CPU": 0.001})
def far():
    return ray.util.get_node_ip_address(), b"x" * (8 << 20)

address, large = ray.get(far.remote())
print(address, len(large))
"""


class Cluster:
    """A head and a worker as KubeRay starts them for a stack with `rayTls`."""

    def __init__(self, pods: Pods, folder: Path) -> None:
        self.pods, self.folder = pods, folder
        plan = planned(
            folder / "project", [model("org/m", "CPU")], pools=[CPU_POOL], kubernetes={"rayTls": True, "image": "i:1"}
        )
        #: By which workers know their head, as KubeRay 1.6.2 names it (`FQ_RAY_IP`).
        self.head_name = f"fleet-x7k2p-head-svc.{plan.namespace}.svc.cluster.local"
        cluster = ray_cluster(plan)
        self._groups = {"head": cluster["headGroupSpec"], "worker": cluster["workerGroupSpecs"][0]}
        self._namespace = plan.namespace
        self._env: dict[str, dict[str, str]] = {}
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "RAY_AUTH_MODE")}
        self._common = kept | PATIENCE | {"PYTHONUNBUFFERED": "1"}
        self._python = str(bare_python(folder / "python"))
        self._authority = _authority(folder / "authority")

    def certified(self, pod: str, address: str, authority: Path | None = None) -> dict[str, str]:
        """Runs the pod's init container, and returns the variables of its Ray container."""
        spec = self._groups[pod]["template"]["spec"]
        (init,), (ray,) = spec["initContainers"], spec["containers"]
        made = Path(tempfile.mkdtemp(dir=self.folder))
        own = {**_values(init["env"]), "POD_IP": address, "NAMESPACE": self._namespace}
        paths = {own["AUTHORITY"]: str(authority or self._authority), own["CERTIFICATES"]: str(made)}
        here = {name: paths.get(value, value) for name, value in own.items()}
        subprocess.run([self._python, certificate.__file__], env=self._common | here, check=True)
        inside = own["CERTIFICATES"]
        return {name: value.replace(inside, str(made)) for name, value in _values(ray["env"]).items()}

    def start(self, pod: str, address: str, *options: str) -> None:
        """The pod of a group; a worker knows its head by name."""
        self.pods.resolve(self.head_name, [pod], HEAD)
        common = [f"--node-ip-address={address}", OBJECT_STORE]
        command = [self._python, "-P", ray_head.__file__, "start", "--block", *common, *options]
        self._env[pod] = self._common | self.certified(pod, address)
        self.pods.start(pod, address, command, self._env[pod])
        wait_until(lambda: self._has_started(pod), what=f"{pod}'s Ray", seconds=480, every_s=0.5)

    def _has_started(self, pod: str) -> bool:
        log = (self.folder / f"{pod}.log").read_text()
        assert "Traceback" not in log, log[-3000:]
        return "Ray runtime started" in log

    def drive(self, pod: str, program: str) -> str:
        """What a driver in a pod prints."""
        command = self.pods.inside(pod, self._python, "-P", "-c", program)
        done = subprocess.run(command, env=self._env[pod], check=False, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"{done.stderr[-2000:]}\n{(self.folder / f'{pod}.log').read_text()[-3000:]}"
        return done.stdout.strip()

    def is_served(self, *folders: str) -> list[bool]:
        """Whether the head's control store speaks with who has these certificates, one after the other."""
        command = self.pods.beside(self._python, "-P", "-c", CALLER, f"{HEAD}:6379", *folders)
        done = subprocess.run(command, env=self._common, check=True, capture_output=True, text=True, timeout=180)
        return [line == "True" for line in done.stdout.split()]


def _values(env: list[dict[str, Any]]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in env if "value" in one}


def _authority(folder: Path) -> Path:
    """The Secret's files."""
    folder.mkdir()
    made = make_authority(folder.name)
    (folder / "tls.crt").write_text(made.certificate)
    (folder / "tls.key").write_text(made.key)
    return folder


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="mft-", dir="/var/tmp"))
    try:
        with Pods(folder) as pods:
            yield Cluster(pods, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.may_rerun(
    cause="a raylet gives its agents 15 s to start (Ray 2.60 `WaitForDashboardAgentPorts`), which a busy machine exceeds"
)
def test_ray_serves_its_own_pods_and_nobody_without_a_certificate(cluster: Cluster) -> None:
    """Whoever reads the network has Ray's token, and whoever has the token runs code in every replica."""
    cluster.start("head", HEAD, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false")
    cluster.start("worker", WORKER, f"--address={cluster.head_name}:6379", *WORKER_OPTIONS)
    assert cluster.drive("head", DRIVER) == f"{WORKER} {8 << 20}"

    own = cluster.certified("head", BRIDGE_ADDRESS)
    foreign = cluster.certified("head", BRIDGE_ADDRESS, _authority(cluster.folder / "foreign"))
    foreign["RAY_TLS_CA_CERT"] = own["RAY_TLS_CA_CERT"]  # the authority's certificate is no secret
    wishes = [json.dumps(env) for env in (own, foreign, {"RAY_TLS_CA_CERT": own["RAY_TLS_CA_CERT"]}, {})]
    assert cluster.is_served(*wishes) == [True, False, False, False]
