"""A stack in a cluster for trying out, and around it what a platform team has: an object store and labelled nodes.

`make up STACK=cluster` asks kubectl's own cluster, such as one of kind. Where none answers, it starts one with a real
node on this machine, which goes on until `make down STACK=cluster`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.config import Config

from modelfleet.infra.local.weights import materialize
from modelfleet.infra.names import POOL_LABEL, STACK_LABEL
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.infra.stack import load_stack
from modelfleet.serving.config.errors import SetupError
from tools.kubernetes.api import WritingApi
from tools.kubernetes.node.serving_image import OBJECT_STORE
from tools.kubernetes.trial.port_forward import PortForward
from tools.paths import ROOT
from tools.progress import Step, say

MANAGER = "modelfleet-tools"
STORE = "object-store"
STORE_PORT, GATEWAY_PORT = 5000, 8080
#: Where the weights lie that the mirror Job copies, as a platform team's own bucket.
SEED_BUCKET = "seed"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "trial", "AWS_SECRET_ACCESS_KEY": "trial"}
WAIT_SECONDS = 300.0


@dataclass
class Trial:
    """One stack file of a checkout on one cluster."""

    stack: str
    kubeconfig: Path
    api: WritingApi
    root: Path = ROOT

    @property
    def plan(self) -> Plan:
        """The stack's plan."""
        return make_plan(self.root, self.stack)

    def prepare(self, environment: Mapping[str, str], weights: Mapping[str, str]) -> None:
        """What the stack expects of its cluster: weights in a bucket, labelled nodes, namespaces with the Secret.

        `environment` reaches the object store from here; `weights` are sources of `materialize`, by prefix.
        """
        plan = self.plan
        self.seed(environment, weights)
        for pool in plan.pools:
            for name in self._nodes()[: pool.max_nodes]:
                self.label_node(name, pool.name)
        self.give_namespaces(plan)

    def give_namespaces(self, plan: Plan) -> None:
        """The namespaces of the stack and of its mirror Jobs, made by their owner, each with the Secret of a bucket."""
        for namespace in namespaces_of(plan):
            restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
            self._apply("Namespace", namespace, None, {"metadata": {"labels": restricted}})
            self.give_secret(namespace, plan.region)

    def give_secret(self, namespace: str, region: str | None, **other: str) -> None:
        """Secret `object-storage`, with which pods that have no role reach the object store; `other` wins."""
        service = self.api.get("v1", "Service", STORE, STORE)
        assert service is not None
        # By its address: before a name, S3 clients put the bucket's.
        address = f"http://{service['spec']['clusterIP']}"
        inside = {
            "AWS_ENDPOINT_URL": address,
            **dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), region or "us-east-1"),
        }
        self._apply("Secret", "object-storage", namespace, {"stringData": {**CREDENTIALS, **inside, **other}})

    def label_node(self, name: str, pool: str) -> None:
        """Make a node one of the pool, as `docs/kubernetes.md` has its owner do."""
        labels = {STACK_LABEL: self.stack, POOL_LABEL: pool}
        say(f"node {name} becomes one of pool {pool}: {' '.join(f'{k}={v}' for k, v in labels.items())}")
        self.api.merge("v1", "Node", name, None, {"metadata": {"labels": labels}})

    @contextmanager
    def object_store(self) -> Iterator[dict[str, str]]:
        """An S3 in the cluster; gives the environment in which it is reached from here."""
        text = (Path(__file__).parent / "object-store.yaml").read_text().replace("IMAGE", OBJECT_STORE)
        for manifest in yaml.safe_load_all(text):
            self.api.apply(manifest, manager=MANAGER, force=True)
        with Step("the object store"):
            pod = self._ready_pod(STORE, STORE)
        with PortForward(self.kubeconfig, STORE, pod, STORE_PORT) as forward:
            yield {**CREDENTIALS, "AWS_ENDPOINT_URL": forward.url, "AWS_REGION": "us-east-1"}

    def gateway(self, *, port: int = 0) -> PortForward:
        """A port of this machine that leads to the stack's gateway."""
        namespace = self.plan.namespace
        return PortForward(self.kubeconfig, namespace, self._ready_pod(namespace, "gateway"), GATEWAY_PORT, port=port)

    def close(self) -> None:
        """Close the connection."""
        self.api.close()

    def forget(self) -> None:
        """Take back what `prepare` and `object_store` made."""
        plan = self.plan
        for namespace in (*namespaces_of(plan), STORE):
            self.api.delete("v1", "Namespace", namespace)
        for node in self.api.list("v1", "Node", selector=f"{STACK_LABEL}={plan.stack}"):
            labels = {STACK_LABEL: None, POOL_LABEL: None}
            self.api.merge("v1", "Node", node["metadata"]["name"], None, {"metadata": {"labels": labels}})

    def seed(self, environment: Mapping[str, str], weights: Mapping[str, str]) -> None:
        """Weights in the bucket that a stack's mirror copies from."""
        s3: Any = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )
        s3.create_bucket(Bucket=SEED_BUCKET)
        for prefix, source in weights.items():
            for file in materialize(source, report=say).iterdir():
                s3.upload_file(str(file), SEED_BUCKET, f"{prefix}/{file.name}")

    def _nodes(self) -> list[str]:
        """The nodes that take pods without a toleration."""
        nodes = [node for node in self.api.list("v1", "Node") if not node["spec"].get("taints")]
        return sorted(node["metadata"]["name"] for node in nodes)

    def _ready_pod(self, namespace: str, name: str) -> str:
        def ready() -> str | None:
            for pod in self.api.list("v1", "Pod", namespace, f"app.kubernetes.io/name={name}"):
                conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
                if conditions.get("Ready") == "True":
                    return str(pod["metadata"]["name"])
            return None

        return _wait(f"a ready pod {name} in namespace {namespace}", ready)

    def _apply(self, kind: str, name: str, namespace: str | None, content: dict[str, Any]) -> None:
        place = {"namespace": namespace} if namespace else {}
        meta = {"name": name, **place, **content.pop("metadata", {})}
        self.api.apply({"apiVersion": "v1", "kind": kind, "metadata": meta, **content}, manager=MANAGER, force=True)


def namespaces_of(plan: Plan) -> tuple[str, ...]:
    """The stack's, and that of its mirror Jobs where it is another one."""
    return tuple(dict.fromkeys((plan.namespace, plan.mirror_namespace)))


def local_weights() -> dict[str, str]:
    """What the bucket of a trial holds, by prefix: the local stack's weights, which need no Hub."""
    sources = load_stack(ROOT, "local").config.mirror.sources
    return {"smollm2": next(iter(sources.values()))}


def _wait(what: str, look: Callable[[], str | None]) -> str:
    end = time.monotonic() + WAIT_SECONDS
    while not (found := look()):
        if time.monotonic() > end:
            raise SetupError(f"{what}: not there after {WAIT_SECONDS:.0f} s")
        time.sleep(0.5)
    return found
