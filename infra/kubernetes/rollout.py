"""Announces what a change will do to a live Ray cluster: nothing, or a new cluster and its GPUs."""

from __future__ import annotations

from contextlib import closing
from typing import Any, Final

from modelfleet.infra.kubernetes.api import Api, ApiError, Unreachable
from modelfleet.infra.kubernetes.manifests.ray import cluster_parts, live_configs, rebuilt_by
from modelfleet.infra.kubernetes.names import RAY_SERVICE
from modelfleet.infra.planning.plan import Plan
from modelfleet.infra.planning.release import release_notice
from modelfleet.infra.planning.rollout import second_cluster

_SENTENCES: Final = {
    "surge": "KubeRay builds a second Ray cluster; the live one serves until the new one is ready: {gpus} more "
    "GPUs ({nodes} nodes) for about {minutes} min{slowest}, and {grace} s longer for open streams{usd}",
    "replace": "the live Ray cluster is deleted first, so no more GPUs are needed; no model answers for about "
    "{minutes} min{slowest}, until the models are loaded again",
}


def rebuild_notice(kubeconfig: str, plan: Plan, *, preview: bool) -> str | None:
    """`rollout_notice` for the cluster in a kubeconfig's text. A preview reports a cluster that does not answer."""
    try:
        with closing(Api.from_kubeconfig(kubeconfig)) as api:
            return rollout_notice(api, plan)
    except (Unreachable, ApiError) as error:
        if not preview:
            return None  # a cluster that this run makes does not have to answer yet
        return f"rollout {plan.ray_cluster.rollout}: cannot tell whether the live Ray cluster will be rebuilt: {error}"


def rollout_notice(api: Api, plan: Plan) -> str | None:
    """The sentence for the preview if the plan rebuilds the live Ray cluster, or gives live models new code."""
    live = api.get("ray.io/v1", "RayService", RAY_SERVICE, plan.namespace)
    if live is None:
        return None
    if not rebuilds(live, plan):
        return release_notice(live_configs(live), plan)
    return f"rollout {plan.ray_cluster.rollout}: {sentence(plan)}"


def sentence(plan: Plan) -> str:
    """What a rebuild costs with the plan's `rollout`, and how long it takes."""
    more = second_cluster(plan)
    return _SENTENCES[plan.ray_cluster.rollout].format(
        gpus=_between(more.least_gpus, more.most_gpus),
        nodes=_between(more.least_nodes, more.most_nodes),
        minutes=more.minutes,
        slowest=f" ({more.slowest} is the last)" if more.slowest else "",
        grace=plan.gateway.settings.timeout_s,
        usd=f" (gateway.timeoutS); about {more.usd:.0f} USD at the fewest replicas"
        if more.usd
        else " (gateway.timeoutS)",
    )


def _between(least: int, most: int) -> str:
    return str(most) if least == most else f"{least} to {most}"


def rebuild_reasons(before: Plan, after: Plan) -> list[str]:
    """Why KubeRay builds another cluster when `after` follows `before`; empty if it keeps the cluster."""
    (old_shared, *old), (new_shared, *new) = cluster_parts(before), cluster_parts(after)
    if old_shared != new_shared:
        was, will = _shared(before), _shared(after)
        return [key for key in was if was[key] != will[key]] or ["what its pods share"]
    groups = before.ray_cluster.worker_groups
    changed = [group.name for i, group in enumerate(groups) if new[i : i + 1] != [old[i]]]
    return [f"worker groups {', '.join(changed)}; pools appended at the end change none"] if changed else []


def _shared(plan: Plan) -> dict[str, str | int | None]:
    """What all pods of the cluster take from the stack file, by its keys."""
    return {
        "kubernetes.image": plan.ray_cluster.image,
        "kubernetes.headStorage": plan.head_storage is not None,
        "kubernetes.redisAddress": plan.ray_cluster.redis_address,
        "kubernetes.rayTls": plan.ray_cluster.authority,
        # Both are in the name of the head's PriorityClass. Whoever changes them moves the stack anyway.
        "kubernetes.namespace": plan.namespace,
        "kubernetes.createNamespace": plan.config.kubernetes.create_namespace,
        "gateway.timeoutS": plan.ray_cluster.longest_stream_s,
        "aws:region": plan.region,
    }


def rebuilds(live: dict[str, Any], plan: Plan) -> bool:
    """Whether KubeRay would build another cluster: something other than groups appended at the end differs."""
    return rebuilt_by(live, cluster_parts(plan))
