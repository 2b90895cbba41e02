"""Head, autoscaler and workers of a stack as real processes, each with the command that KubeRay wrote into its pod."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.cluster.conftest import Stack, wait_for
from tests.cluster.pod_network import PodNetwork, end

ROOT = Path(__file__).parents[2]
S3_PORT = 8443
BUCKET = "fleet-mirror"
DASHBOARD, SERVE = 8265, 8000
STARTED = "Ray runtime started."
#: A raylet gives its agents 30 s, a fixed limit (Ray 2.60, `WaitForPersistedPort`), and ends if they take longer. A
#: kubelet restarts the container for as long as the pod lives, which a busy machine needs; these seconds bound it here.
RESTART_SECONDS = 600.0
WORKER_SECONDS = 500.0


@dataclass
class Storage:
    """An S3 that pods reach."""

    url: str
    environment: dict[str, str]
    client: Any


@pytest.fixture
def network(cluster: Any, tmp_path: Path) -> Iterator[PodNetwork]:
    folder = Path("/tmp") / f"mf{os.getpid()}"  # Ray's sockets need a short path
    folder.mkdir()
    with PodNetwork(folder, int(cluster.server.rpartition(":")[2]), cluster.pod_network) as made:
        yield made
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def storage(network: PodNetwork) -> Iterator[Storage]:
    url = f"http://{network.gateway}:{S3_PORT}"
    moto = Path(sys.executable).parent / "moto_server"
    with (network.folder / "moto.log").open("wb") as log:
        process = subprocess.Popen(
            [str(moto), "-H", network.gateway, "-p", str(S3_PORT)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    environment = {**keys, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": url, "NO_PROXY": "*", "no_proxy": "*"}
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(proxies={}, s3={"addressing_style": "path"}),
    )
    wait_for("moto", lambda: answers(f"{url}/moto-api/"), seconds=60)
    client.create_bucket(Bucket=BUCKET)
    yield Storage(url, environment, client)
    end(process)


def answers(url: str) -> bool:
    """Whether something there answers with success."""
    try:
        with open_url(url, timeout=2):
            return True
    except OSError:
        return False


def open_url(url: str, data: bytes | None = None, timeout: float = 60) -> Any:
    """An answer without a proxy in between; a body makes it a POST."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=timeout)


def _ended_or_up(process: subprocess.Popen[bytes], log: Path) -> bool:
    return process.poll() is not None or STARTED in log.read_text(errors="replace")


class RealPods:
    """The pods' processes."""

    def __init__(self, stack: Stack, network: PodNetwork, storage: Storage) -> None:
        self.stack, self.network = stack, network
        #: Environment in addition to that of the pods.
        self.extra = {
            **storage.environment,
            "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "0",
            "RAY_TMPDIR": str(network.folder),
            "RAY_worker_niceness": "0",  # 15 by default, with which everything else on the machine comes first
            # What every kubelet sets; the name is one that the server's certificate has.
            "KUBERNETES_SERVICE_HOST": "kubernetes.default",
            "KUBERNETES_SERVICE_PORT": "443",
            "RAY_agent_register_timeout_ms": "300000",
        }
        command = network.folder / "bin" / "ray"
        command.parent.mkdir()
        # The local stack's own command, for a machine that is small and busy.
        command.write_text(f'#!/bin/sh\nexec {network.python} -P {ROOT}/infra/local/ray_head.py "$@"\n')
        command.chmod(0o755)
        self.head: dict[str, Any] = {}

    def start_head(self) -> None:
        namespace = self.stack.namespace
        self.head = wait_for("the head pod", lambda: self._running("head"), seconds=60)
        token = self.stack.api.token(namespace, "ray-head", seconds=3600)
        ca = self.stack.cluster.folder / "certificates" / "apiserver.crt"
        self.network.give_token("ray-head", token, ca, namespace)
        self._start_ray(self.head)

    def _start_ray(self, pod: dict[str, Any]) -> None:
        name = f"{pod['metadata']['name']}-{pod['spec']['containers'][0]['name']}"
        log = self.network.folder / f"{name}.log"
        until, starts = time.monotonic() + RESTART_SECONDS, 0
        while time.monotonic() < until:
            process = self.network.run(pod, extra=self.extra, names=self._names())
            starts += 1
            wait_for(f"{name} to start or to end", partial(_ended_or_up, process, log), seconds=300)
            if process.poll() is None:
                return
            self.network.kill(pod)
        end = log.read_text(errors="replace")[-2000:]
        raise AssertionError(f"{name} ended {starts} times in {RESTART_SECONDS:.0f} s; its last log:\n{end}")

    def start_autoscaler(self) -> None:
        container = [c["name"] for c in self.head["spec"]["containers"]].index("autoscaler")
        self.network.run(self.head, container=container, extra=self.extra, names=self._names())

    def start_worker(self, group: str) -> None:
        """A worker of the group, once the autoscaler has asked for it."""
        worker = wait_for(
            f"a worker of {group}, which the autoscaler asks for; logs in {self.network.folder}",
            lambda: self._running("worker", f",ray.io/group={group}"),
            seconds=WORKER_SECONDS,
        )
        self._start_ray(worker)

    def applications(self) -> dict[str, Any]:
        """What Ray Serve reports about its applications, by name."""
        with open_url(f"http://{self.address}:{DASHBOARD}/api/serve/applications/") as answer:
            found: dict[str, Any] = json.load(answer)["applications"]
        return found

    @property
    def address(self) -> str:
        """The head's address."""
        return str(self.head["status"]["podIP"])

    def _running(self, kind: str, more: str = "") -> dict[str, Any] | None:
        return self._pod(f"ray.io/node-type={kind}{more}")

    def _pod(self, selector: str) -> dict[str, Any] | None:
        pods = self.stack.api.list("v1", "Pod", self.stack.namespace, selector)
        alive = [p for p in pods if p["status"].get("podIP") and "deletionTimestamp" not in p["metadata"]]
        return alive[0] if alive else None

    def _names(self) -> dict[str, str]:
        """What DNS would return, and a size for a small machine."""
        cluster = self.head["metadata"]["labels"]["ray.io/cluster"]
        service = f"{cluster}-head-svc.{self.stack.namespace}.svc.cluster.local"
        return {
            service: self.address,
            "--object-store-memory=536870912": "--object-store-memory=100000000",
        }


def is_ready(stack: Stack) -> bool:
    """Whether KubeRay reports the RayService as ready."""
    service = stack.api.get("ray.io/v1", "RayService", "fleet", stack.namespace)
    conditions = {c["type"]: c["status"] for c in (service or {}).get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True"
