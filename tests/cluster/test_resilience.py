"""Operator, API server, head and worker are killed; the stack recovers on its own, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelfleet.infra.kubernetes.api import Unreachable
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
