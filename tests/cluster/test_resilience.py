"""Operator, API server, head and worker are killed; the stack recovers on its own, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from modelfleet.infra.kubernetes.api import Api, ApiError, Unreachable
from modelfleet.infra.kubernetes.names import HEAD_ACCOUNT
from tests.cluster.conftest import Stack, wait_for
from tests.cluster.fleet import model
from tests.cluster.head import FakeRay, head_address, head_token, on_loopback

pytestmark = pytest.mark.slow

POOLS = [{"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.2xlarge"]}]


@pytest.fixture
def stack(stack_of: Callable[..., Stack]) -> Iterator[Stack]:
    made = stack_of([model("org/one", "L4")], pools=POOLS)
    where = made.api, made.namespace
    with on_loopback(head_address(*where)) as address, FakeRay(address, head_token(*where)):
        made.scale({"l4": 1})
        wait_for("Ready", lambda: ready(made), seconds=120)
        wait_for("the worker", lambda: running(made, "worker"))
        yield made


def ready(stack: Stack) -> bool:
    service = stack.api.get("ray.io/v1", "RayService", "fleet", stack.namespace) or {}
    conditions = {c["type"]: c["status"] for c in service.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True"


def running(stack: Stack, kind: str) -> list[dict[str, Any]]:
    pods = stack.api.list("v1", "Pod", stack.namespace, f"ray.io/node-type={kind}")
    return [p for p in pods if p["status"].get("phase") == "Running" and "deletionTimestamp" not in p["metadata"]]


def uids(pods: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def test_every_part_of_ray_has_the_token_and_the_operator_shows_it(stack: Stack) -> None:
    """The stack is ready only because the operator's requests had the token: `FakeRay` answers 401 without."""
    for pod in running(stack, "worker") + running(stack, "head"):
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            env = {one["name"]: one for one in container.get("env", [])}
            assert env["RAY_AUTH_MODE"]["value"] == "token", container["name"]
            named = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"]
            assert named == stack.ray_cluster()["metadata"]["name"], "the token is of this Ray cluster alone"
            assert "value" not in env["RAY_AUTH_TOKEN"], "whoever may list pods would read it"


GROUP = "/spec/workerGroupSpecs/0"
FROM_SECRET = [{"secretRef": {"name": "huggingface"}}]
#: What whoever has the head's token would like to change, and could with the rights that KubeRay gives it.
ESCALATIONS: dict[str, dict[str, Any]] = {
    "workers with the mirror's account": {"path": f"{GROUP}/template/spec/serviceAccountName", "value": "mirror"},
    "workers with another image": {"path": f"{GROUP}/template/spec/containers/0/image", "value": "evil/image"},
    "more workers than the plan pays for": {"path": f"{GROUP}/maxReplicas", "value": 1000},
    "another head": {"path": "/spec/headGroupSpec/template/spec/serviceAccountName", "value": "mirror"},
    "a Secret in the autoscaler": {"path": "/spec/autoscalerOptions/envFrom", "value": FROM_SECRET},
    "Ray without a token": {"path": "/spec/authOptions/mode", "value": "disabled"},
    "pods that start with another command": {
        "path": "/metadata/annotations/ray.io~1overwrite-container-cmd",
        "value": "true",
    },
    "a label of others": {"path": "/metadata/labels/kueue.x-k8s.io~1queue-name", "value": "theirs"},
    "no deletion": {"path": "/metadata/finalizers", "value": ["evil.example/stays"]},
    "nobody's cluster": {"path": "/metadata/ownerReferences", "value": []},
    "a new field": {"path": "/spec/headServiceAnnotations", "value": {"a": "b"}},
}


def test_the_heads_token_scales_and_does_nothing_else(stack: Stack) -> None:
    """It could make pods with the account that writes all weights, and read the Hub's token: see `BuildRole`."""
    name, where = stack.ray_cluster()["metadata"]["name"], stack.namespace
    with closing(Api.from_kubeconfig(stack.cluster.kubeconfig_for(where, HEAD_ACCOUNT))) as head:
        for what, change in ESCALATIONS.items():
            with pytest.raises(ApiError, match="only how many workers") as refused:
                head.patch_parts("ray.io/v1", "RayCluster", name, where, [{"op": "add", **change}])
            assert refused.value.code == 422, what
        groups = stack.ray_cluster()["spec"]["workerGroupSpecs"]
        another = {**groups[0], "groupName": "another"}
        with pytest.raises(ApiError, match="only how many workers"):
            add = {"op": "add", "path": "/spec/workerGroupSpecs/-", "value": another}
            head.patch_parts("ray.io/v1", "RayCluster", name, where, [add])
        (pod,) = running(stack, "head")
        image = {"op": "replace", "path": "/spec/containers/0/image", "value": "evil/image"}
        with pytest.raises(ApiError, match="change no pods"):
            head.patch_parts("v1", "Pod", pod["metadata"]["name"], where, [image])
        # What Ray's autoscaler sends.
        counts = [
            {"op": "replace", "path": f"{GROUP}/replicas", "value": 2},
            {"op": "replace", "path": f"{GROUP}/scaleStrategy", "value": {"workersToDelete": []}},
        ]
        head.patch_parts("ray.io/v1", "RayCluster", name, where, counts)
    wait_for("the second worker", lambda: len(running(stack, "worker")) == 2, seconds=60)


def test_a_killed_operator_finds_everything_as_it_left_it(stack: Stack) -> None:
    cluster, pods = stack.ray_cluster()["metadata"]["uid"], uids(running(stack, "worker") + running(stack, "head"))
    stack.cluster.kill("kuberay-operator")
    stack.start_operator()
    stack.scale({"l4": 2})
    wait_for("the second worker", lambda: len(running(stack, "worker")) == 2, seconds=60)
    assert stack.ray_cluster()["metadata"]["uid"] == cluster
    assert uids(running(stack, "worker") + running(stack, "head")) > pods


def test_a_killed_api_server_comes_back_to_the_same_stack(stack: Stack) -> None:
    cluster, pods = stack.ray_cluster()["metadata"]["uid"], uids(running(stack, "worker") + running(stack, "head"))
    stack.cluster.kill("kube-apiserver")
    with pytest.raises(Unreachable):
        stack.api.list("v1", "Node")
    stack.cluster.start_apiserver()
    stack.scale({"l4": 2})

    def second_worker() -> bool:
        if "kuberay-operator" not in stack.cluster.pids():
            stack.start_operator()  # it ends when it loses its lease, and its Deployment restarts it
        return len(running(stack, "worker")) == 2

    wait_for("the second worker", second_worker, seconds=240)
    assert stack.ray_cluster()["metadata"]["uid"] == cluster
    assert uids(running(stack, "worker") + running(stack, "head")) > pods


def test_a_deleted_worker_is_made_again(stack: Stack) -> None:
    (worker,) = running(stack, "worker")
    stack.api.delete("v1", "Pod", worker["metadata"]["name"], stack.namespace)
    wait_for("another worker", lambda: uids(running(stack, "worker")) - uids([worker]), seconds=60)
    assert len(stack.api.list("ray.io/v1", "RayCluster", stack.namespace)) == 1


def test_a_deleted_head_is_made_again_in_the_same_cluster(stack: Stack) -> None:
    cluster = stack.ray_cluster()["metadata"]["uid"]
    (head,) = running(stack, "head")
    stack.api.delete("v1", "Pod", head["metadata"]["name"], stack.namespace)
    wait_for("another head", lambda: uids(running(stack, "head")) - uids([head]), seconds=60)
    assert stack.ray_cluster()["metadata"]["uid"] == cluster
