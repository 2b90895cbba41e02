"""How many system nodes a stack needs, and whether the catalog's numbers are those of the manifests."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.kubernetes.manifests.autoscaler import cluster_autoscaler
from modelfleet.infra.kubernetes.manifests.gateway import gateway_deployment
from modelfleet.infra.kubernetes.manifests.operator import operator_deployment
from modelfleet.infra.kubernetes.manifests.ray import ray_cluster
from modelfleet.infra.planning.plan import NodeShape
from modelfleet.infra.planning.system_pool import nodes_for
from modelfleet.serving.config.errors import InputErrors, Severity
from tests.unit.planning.builders import model, planned, pool, stack

NODE = NodeShape(cpu_millis=1000, memory_mib=1000, gpus=0, shm_mib=0)


@pytest.mark.parametrize(
    ("requests", "nodes"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([(600, 100), (600, 100)], 2, id="cpu"),
        pytest.param([(100, 600), (100, 600)], 2, id="memory"),
        pytest.param([(300, 100), (800, 100), (200, 100), (700, 100)], 2, id="gaps-are-filled"),
        pytest.param([(1001, 1)], None, id="too-large"),
    ],
)
def test_pods_are_packed_by_cpu_and_memory(requests: list[tuple[int, int]], nodes: int | None) -> None:
    assert nodes_for(requests, NODE) == nodes


def test_there_is_room_for_a_second_ray_head_beside_all_that_always_runs() -> None:
    """With as many nodes at most as at least, a rollout waits for ever: no node has a head's 2.5 CPUs left."""
    system = planned([model()], stack(pool())).system
    assert system is not None
    assert (system.min_nodes, system.needed_nodes, system.max_nodes) == (2, 2, 3)
    assert (system.instance_type, system.vcpus_per_node) == ("m7i.xlarge", 4)
    assert (system.root_gib, system.disk_gb) == (50, 42), "four fifths of 50 GiB, in GB"


def test_more_gateways_take_more_nodes_which_count_in_the_cost() -> None:
    few, many = (planned([model()], stack(pool(), gateway={"replicas": n})) for n in (2, 14))
    assert few.system and many.system
    assert (many.system.needed_nodes, many.system.max_nodes) == (4, 5), (
        "six gateways of 0.6 CPU on a node, one beside the head"
    )
    counts = [next(cost.count for cost in plan.fixed if "system nodes" in cost.name) for plan in (few, many)]
    assert counts == [2, 4]
    (notice,) = [n for n in many.notices if n.path.endswith("systemNodes")]
    assert (notice.severity, "needs 4 nodes of m7i.xlarge" in notice.message) == (Severity.NOTICE, True)


def test_a_type_that_holds_no_head_is_refused() -> None:
    with pytest.raises(InputErrors) as refused:
        planned([model()], stack(pool(), cluster={"systemInstanceType": "m7i.large"}))
    (finding,) = refused.value.findings
    assert finding.path.endswith("systemInstanceType")
    assert "ray-head requests 2500m and 9216 MiB; choose a larger type" in finding.message


def test_a_type_that_the_catalog_does_not_know_is_allowed_with_a_warning() -> None:
    plan = planned([model()], stack(pool(), cluster={"systemInstanceType": "m9x.xlarge", "systemNodes": 3}))
    assert plan.system and (plan.system.needed_nodes, plan.system.max_nodes) == (3, 4)
    assert [n.severity for n in plan.notices if n.path.endswith("systemInstanceType")] == [Severity.WARNING]


def test_a_stack_that_makes_no_cluster_has_no_system_pool() -> None:
    assert planned([model()], stack(pool(instanceTypes=["g6.xlarge"]), target="kubernetes")).system is None


def test_the_catalog_has_the_requests_of_our_own_manifests() -> None:
    plan = planned([model()], stack(pool()))
    cluster = ray_cluster(plan)
    head = [*_containers(cluster["headGroupSpec"]), {"resources": cluster["autoscalerOptions"]["resources"]}]
    rows = {pod.name: (pod.cpu_millis, pod.memory_mib) for pod in default_catalog().system_pods}
    assert rows["ray-head"] == _sum(head)
    assert rows["cluster-autoscaler"] == _sum(_containers(_deployment(cluster_autoscaler(plan, "c"))))
    assert rows["gateway"] == _sum(_containers(gateway_deployment(plan, "1")["spec"]))
    assert rows["kuberay-operator"] == _sum(_containers(operator_deployment(plan)["spec"]))


def _deployment(manifests: list[Any]) -> Any:
    (found,) = [one["spec"] for one in manifests if one["kind"] == "Deployment"]
    return found


def _containers(spec: Any) -> list[Any]:
    containers: list[Any] = spec["template"]["spec"]["containers"]
    return containers


def _sum(containers: list[Any]) -> tuple[int, int]:
    asked = [container["resources"]["requests"] for container in containers]
    return sum(_millis(one["cpu"]) for one in asked), sum(_mib(one["memory"]) for one in asked)


def _millis(text: str) -> int:
    return int(text[:-1]) if text.endswith("m") else int(text) * 1000


def _mib(text: str) -> int:
    return int(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]
