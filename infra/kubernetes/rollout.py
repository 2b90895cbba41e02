"""What a change does to a live Ray cluster, said before it happens: nothing, or a new cluster and its GPUs."""

from __future__ import annotations

from typing import Any, Final

from infra.kubernetes.api import Api, ApiError, Unreachable
from infra.kubernetes.manifests.ray import CLUSTER_ANNOTATION, cluster_parts
from infra.kubernetes.names import RAY_SERVICE
from infra.planning.plan import Plan
from infra.planning.rollout import second_cluster

_SENTENCES: Final = {
    "surge": "a second Ray cluster is built beside the live one, which serves until the new one is ready: {gpus} more "
    "GPUs ({nodes} nodes) for about {minutes} min{slowest}, and {grace} s longer for open streams",
    "replace": "the live Ray cluster is taken away first and no more GPUs are needed; nothing answers for about "
    "{minutes} min{slowest}, until the models are loaded again",
    "incremental": "a second Ray cluster takes the load over step by step, half at a time: up to {half} more GPUs "
    "for about {minutes} min{slowest} and the steps",
}


def rebuild_notice(kubeconfig: str, plan: Plan, *, preview: bool) -> str | None:
    """`rollout_notice` of the cluster behind a kubeconfig's text; a preview says it when that does not answer."""
    try:
        api = Api.from_kubeconfig(kubeconfig)
        try:
            return rollout_notice(api, plan)
        finally:
            api.close()
    except (Unreachable, ApiError) as error:
        if not preview:
            return None  # a cluster that this run makes may not answer yet
        return f"rollout {plan.ray_cluster.rollout}: whether the live Ray cluster is rebuilt cannot be said: {error}"


def rollout_notice(api: Api, plan: Plan) -> str | None:
    """The sentence for the preview when the plan rebuilds the live Ray cluster; None when not, or when none lives."""
    live = api.get("ray.io/v1", "RayService", RAY_SERVICE, plan.namespace)
    if live is None or not rebuilds(live, plan):
        return None
    return f"rollout {plan.ray_cluster.rollout}: {sentence(plan)}"


def sentence(plan: Plan) -> str:
    """What the plan's way of a rebuild costs and how long it takes."""
    more = second_cluster(plan)
    return _SENTENCES[plan.ray_cluster.rollout].format(
        gpus=_between(more.least_gpus, more.most_gpus),
        nodes=_between(more.least_nodes, more.most_nodes),
        half=-(-more.most_gpus // 2),
        minutes=more.minutes,
        slowest=f" ({more.slowest} is the last)" if more.slowest else "",
        grace=plan.gateway.timeout_s,
    )


def _between(least: int, most: int) -> str:
    return str(most) if least == most else f"{least} to {most}"


def rebuilds(live: dict[str, Any], plan: Plan) -> bool:
    """Whether KubeRay would build another cluster: anything but groups appended at the end differs."""
    noted = (live["metadata"].get("annotations") or {}).get(CLUSTER_ANNOTATION)
    if noted is None:
        return False
    before: list[str] = noted.split(".")
    return cluster_parts(plan)[: len(before)] != before
