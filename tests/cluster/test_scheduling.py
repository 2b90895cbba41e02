"""The real scheduler puts every Ray pod on a node of its pool, one per node; on none if anything is wrong."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from modelfleet.infra.kubernetes.api import ApiError
from modelfleet.infra.kubernetes.manifests.ray import ray_service
from tests.cluster.conftest import Stack, wait_for
from tests.cluster.eks_nodes import allocatable
from tests.cluster.fleet import five_models, model

pytestmark = pytest.mark.slow

Make = Callable[..., Stack]
L4_ONLY = [{"name": "l4", "accelerator": "L4", "maxNodes": 3, "instanceTypes": ["g6.2xlarge"]}]


def unschedulable(stack: Stack) -> list[dict[str, Any]]:
    """The workers that the scheduler has refused."""
    refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return [
        pod
        for pod in stack.workers()
        if any(refused.items() <= condition.items() for condition in pod["status"].get("conditions", []))
    ]


def placed(stack: Stack, counts: dict[str, int]) -> list[dict[str, Any]]:
    """The worker pods once there are as many of each group as `counts` says, all on nodes."""

    def look() -> list[dict[str, Any]]:
        pods = stack.workers()
        groups = Counter(pod["metadata"]["labels"]["ray.io/group"] for pod in pods)
        whole = groups == Counter({k: v for k, v in counts.items() if v})
        return pods if whole and all(pod["spec"].get("nodeName") for pod in pods) else []

    return wait_for(f"workers {counts} on nodes", look)  # type: ignore[no-any-return]


def test_at_minimum_and_maximum_every_worker_has_a_node_of_its_pool_to_itself(stack_of: Make) -> None:
    stack = stack_of(five_models())
    for counts in (
        {pool.name: pool.min_nodes for pool in stack.plan.pools},
        {pool.name: pool.max_nodes for pool in stack.plan.pools},
    ):
        stack.scale(counts)
        pods = placed(stack, counts)
        nodes = [pod["spec"]["nodeName"] for pod in pods]
        assert len(set(nodes)) == len(nodes), "two workers share a node"
        for pod in pods:
            pool = pod["metadata"]["labels"]["ray.io/group"]
            node = stack.api.get("v1", "Node", pod["spec"]["nodeName"])
            assert node is not None and node["metadata"]["labels"]["modelfleet.dev/pool"] == pool
    pending = [
        p["metadata"]["name"] for p in stack.api.list("v1", "Pod", stack.namespace) if p["status"]["phase"] == "Pending"
    ]
    assert pending == []


def test_ray_start_declares_what_the_plan_promises_to_replicas(stack_of: Make) -> None:
    stack = stack_of(five_models())
    stack.scale({pool.name: 1 for pool in stack.plan.pools})
    pods = placed(stack, {pool.name: 1 for pool in stack.plan.pools})
    for pool in stack.plan.pools:
        (pod,) = (p for p in pods if p["metadata"]["labels"]["ray.io/group"] == pool.name)
        command = pod["spec"]["containers"][0]["args"][0]
        declared = json.loads(re.search(r"--resources='(.*?)'", command)[1])  # type: ignore[index]
        assert declared == {f"accelerator_type:{pool.accelerator}": 1}, command
        assert f"--num-gpus={pool.node.gpus} " in command
        assert f"--num-cpus={pool.node.cpu_millis // 1000} " in command
    head = stack.api.list("v1", "Pod", stack.namespace, "ray.io/node-type=head")[0]
    assert "--num-cpus=0 " in head["spec"]["containers"][0]["args"][0], "a replica could land on the head"


def test_on_eks_daemon_sets_fit_beside_the_worker(stack_of: Make) -> None:
    stack = stack_of(five_models(), target="eks", observability={"logs": "cloudwatch"})
    stack.scale({pool.name: pool.max_nodes for pool in stack.plan.pools})
    placed(stack, {pool.name: pool.max_nodes for pool in stack.plan.pools})
    gpu_nodes = sum(pool.max_nodes for pool in stack.plan.pools)
    nodes = len(stack.api.list("v1", "Node", selector=f"modelfleet.dev/stack={stack.plan.stack}"))

    def everywhere() -> bool:
        pods = [p for p in stack.api.list("v1", "Pod", "kube-system") if p["spec"].get("nodeName")]
        found = Counter(p["metadata"]["labels"]["app.kubernetes.io/name"] for p in pods)
        on_gpus = found["nvidia-device-plugin"] == found["dcgm-exporter"] == gpu_nodes
        return on_gpus and found["log-collector"] == nodes > gpu_nodes

    wait_for("device plugin and exporter next to each worker, the log collector on each node", everywhere)


def _label(group: dict[str, Any]) -> None:
    group["template"]["spec"]["nodeSelector"]["modelfleet.dev/pool"] = "another"


def _taint(group: dict[str, Any]) -> None:
    group["template"]["spec"]["tolerations"] = []


def _cpu(group: dict[str, Any]) -> None:
    group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "9"


def _gpu(group: dict[str, Any]) -> None:
    for part in ("requests", "limits"):
        group["template"]["spec"]["containers"][0]["resources"][part]["nvidia.com/gpu"] = "2"


def test_on_eks_each_mirror_job_has_a_node_for_copies_to_itself(stack_of: Make) -> None:
    """On a system node it would take the room of the Ray head."""
    models = [model(f"org/{name}", "L4", replicas=(0, 1)) for name in ("a", "b")]
    stack = stack_of(models, target="eks", pools=L4_ONLY)

    def jobs() -> list[dict[str, Any]]:
        pods = stack.api.list("v1", "Pod", stack.plan.mirror_namespace, selector="app.kubernetes.io/name=mirror")
        return pods if len(pods) == 2 and all(pod["spec"].get("nodeName") for pod in pods) else []

    nodes = {pod["spec"]["nodeName"] for pod in wait_for("both Jobs on nodes", jobs, seconds=60)}
    assert nodes <= {f"{stack.plan.stack}-mirror-{i}" for i in range(2)}
    # A job may end here before the other is placed, and then one node sees both: the scheduler's arithmetic counts.
    (kind,) = stack.plan.copies.pool.instance_types if stack.plan.copies.pool else ()
    offered = int(allocatable(kind)["cpu"].removesuffix("m"))
    assert offered < 2 * stack.plan.copies.job_cpu_millis < 2 * offered
    find_head = partial(stack.api.list, "v1", "Pod", stack.namespace, selector="ray.io/node-type=head")
    (head,) = wait_for("the head", find_head)
    assert head["spec"]["priority"] == 1_000_000, "the API server knows the class"


@pytest.mark.parametrize("spoil", [_label, _taint, _cpu, _gpu], ids=["label", "taint", "cpu", "gpu"])
def test_a_wrong_label_taint_or_request_leaves_the_worker_pending(
    stack_of: Make, spoil: Callable[[dict[str, Any]], None]
) -> None:
    """The mutation that proves that the tests above can fail."""
    stack = stack_of(five_models()[1:2], pools=L4_ONLY)
    manifest = copy.deepcopy(ray_service(stack.plan))
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    spoil(group)
    stack.api.delete("ray.io/v1", "RayService", "fleet", stack.namespace)
    wait_for(
        "the first RayService to go", lambda: stack.api.get("ray.io/v1", "RayService", "fleet", stack.namespace) is None
    )
    stack.api.apply(manifest, manager="modelfleet-tests")
    stack.scale({"l4": 1})

    wait_for("the scheduler to refuse", lambda: unschedulable(stack))
    assert not any(pod["spec"].get("nodeName") for pod in stack.workers())


def test_a_second_worker_waits_for_a_second_node(stack_of: Make) -> None:
    """A pod that requested less than the node would share it, and the node autoscaler would buy too few nodes."""
    stack = stack_of(five_models()[1:2], pools=L4_ONLY)
    for number in (1, 2):
        stack.api.delete("v1", "Node", f"{stack.plan.stack}-l4-{number}")
    stack.scale({"l4": 2})
    wait_for("one worker placed", lambda: [p for p in stack.workers() if p["spec"].get("nodeName")])
    wait_for("the other refused", lambda: unschedulable(stack))
    assert sum("nodeName" in pod["spec"] for pod in stack.workers()) == 1


def test_one_worker_at_a_time_may_be_drained(stack_of: Make) -> None:
    """The real disruption controller decides: with `maxUnavailable` it would refuse to drain any RayCluster pod."""
    models = [model("org/two-at-least", "L4", replicas=(2, 3))]
    stack = stack_of(models, pools=L4_ONLY)
    stack.scale({"l4": 2})
    first, second = placed(stack, {"l4": 2})

    def allowed() -> bool:
        budget = stack.api.get("policy/v1", "PodDisruptionBudget", "workers-l4", stack.namespace) or {}
        return budget.get("status", {}).get("disruptionsAllowed") == 1

    wait_for("the budget to allow one", allowed)
    stack.cluster.kill("kuberay-operator")  # it replaces the first at once, and then the second may go, rightly
    evict(stack, first)
    with pytest.raises(ApiError) as refused:
        evict(stack, second)
    assert refused.value.code == 429 and "disruption budget" in refused.value.message


def evict(stack: Stack, pod: dict[str, Any]) -> None:
    """What `kubectl drain` asks for."""
    name = pod["metadata"]["name"]
    meta = {"name": name, "namespace": stack.namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
    stack.api.call("post", "v1", "Pod", name, stack.namespace, "/eviction", body=body)
