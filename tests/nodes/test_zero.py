"""A model that sleeps on real nodes: no replica and no worker, until a request alone brings both.

All is real but the node's coming: Serve's controller, Ray's autoscaler, KubeRay, kubelet, vLLM and its model. That a pod
that no node takes brings a node is cluster-autoscaler's, which `tests/cluster` has on pretended nodes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.infra.kubernetes.forward import get
from modelfleet.infra.kubernetes.manifests.gateway import PORT
from modelfleet.infra.kubernetes.names import GATEWAY_METRICS_PORT, RAY_METRICS_PORT
from modelfleet.infra.planning.gateway_paths import READY
from tests.nodes.fleet import MODEL, NodesFleet
from tests.nodes.life import HEAD, workers
from tests.nodes.pods import Pods
from tests.waiting import wait_until
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.trial.trial import local_weights, namespaces_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.long(why="a stack more, and the five minutes after which Ray's autoscaler gives a worker back"),
]

NODE = 3
CALM_S = 20
QUESTION = "What is the capital of France?"


@pytest.fixture
def asleep(cluster: Cluster, storage: dict[str, str], tmp_path: Path) -> Iterator[NodesFleet]:
    """A stack whose model may sleep and does, and whose pool is a free node."""
    node = cluster.add_node(NODE)
    cluster.wait_for_node(NODE)
    with NodesFleet(cluster, storage, tmp_path, stack="asleep") as made:
        made.write(nodes=1, replicas=1, sleeps_after_s=CALM_S)
        made.trial.seed(storage, local_weights())
        made.trial.label_node(node.settings.name, "cpu")
        made.trial.give_namespaces(made.plan)
        made.project.up()
        made.wait_for_gateways()
        yield made
    for name in namespaces_of(made.plan):
        cluster.api.delete("v1", "Namespace", name)
    node.stop()
    cluster.api.delete("v1", "Node", node.settings.name)


def test_a_request_alone_wakes_a_model_with_its_worker_and_both_go_again(asleep: NodesFleet, pods: Pods) -> None:
    api = asleep.cluster.api

    def asked_for() -> list[str]:
        pods = api.list("v1", "Pod", asleep.namespace, "ray.io/node-type=worker")
        return [pod["metadata"]["name"] for pod in pods]

    def page(selector: str, port: int, path: str) -> str:
        name = api.list("v1", "Pod", asleep.namespace, selector)[0]["metadata"]["name"]
        return get(api, asleep.namespace, name, port, path, 10)

    gateway = "app.kubernetes.io/name=gateway"
    for _ in range(10):  # more replicas come after 5 s of load, and Ray's autoscaler looks every 5 s
        page(gateway, PORT, READY)
        assert MODEL in {one["id"] for one in json.loads(page(gateway, PORT, "/v1/models"))["data"]}
        page(gateway, GATEWAY_METRICS_PORT, "/metrics")
        page(HEAD, RAY_METRICS_PORT, "/metrics")
        time.sleep(2)
        assert not asked_for(), "nobody asked the model anything"

    held = f"{asleep.question(QUESTION)} --max-time 590 -w '\\n%{{http_code}}\\n'"
    began = time.monotonic()
    for name in ("first", "second"):
        pods.create(name, held)
    for name in ("first", "second"):
        pod = pods.wait(name, "Succeeded", "Failed", seconds=600)
        said = pods.log(name)
        assert pod["status"]["phase"] == "Succeeded" and "Paris" in said and said.endswith("\n200\n"), said
    woke_s = time.monotonic() - began
    ready = lambda: workers(asleep).keys() == {f"node-{NODE}"}  # noqa: E731
    wait_until(ready, what="its worker is ready", seconds=60)

    began = time.monotonic()
    wait_until(lambda: not asked_for(), what="neither replica nor worker", seconds=900, every_s=2)
    print(f"woken by a request: answered after {woke_s:.0f} s; asleep again {time.monotonic() - began:.0f} s later")
    page(gateway, PORT, READY)
