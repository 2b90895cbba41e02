"""What a change does to a live Ray cluster, said before it happens: nothing, or a new cluster and its GPUs."""

from __future__ import annotations

from typing import Any, Final

from infra.kubernetes.api import Api
from infra.kubernetes.manifests.ray import CLUSTER_ANNOTATION, cluster_parts
from infra.kubernetes.names import RAY_SERVICE
from infra.planning.plan import Plan

_SENTENCES: Final = {
    "surge": "a second Ray cluster is built beside the live one, which serves until the new one is ready: up to {gpus} "
    "more GPUs ({nodes} nodes) while its models load, and {grace} s longer for open streams",
    "replace": "the live Ray cluster is taken away first and no more GPUs are needed; nothing answers until the models "
    "are loaded again",
    "incremental": "a second Ray cluster takes the load over step by step: up to half of {gpus} more GPUs at a time",
}


def rollout_notice(api: Api, plan: Plan) -> str | None:
    """The sentence for the preview when the plan rebuilds the live Ray cluster; None when not, or when none lives."""
    live = api.get("ray.io/v1", "RayService", RAY_SERVICE, plan.namespace)
    if live is None or not rebuilds(live, plan):
        return None
    gpus = sum(pool.node.gpus * pool.max_nodes for pool in plan.pools)
    nodes = sum(pool.max_nodes for pool in plan.pools)
    sentence = _SENTENCES[plan.ray_cluster.rollout].format(gpus=gpus, nodes=nodes, grace=plan.gateway.timeout_s)
    return f"rollout {plan.ray_cluster.rollout}: {sentence}"


def rebuilds(live: dict[str, Any], plan: Plan) -> bool:
    """Whether KubeRay would build another cluster: anything but groups appended at the end differs."""
    noted = (live["metadata"].get("annotations") or {}).get(CLUSTER_ANNOTATION)
    if noted is None:
        return False
    before: list[str] = noted.split(".")
    return cluster_parts(plan)[: len(before)] != before
