"""Brings the limits of a live cluster's worker groups to the plan's; KubeRay leaves them as they were made.

KubeRay 1.6.2 updates a RayCluster in place only when a hash differs, and that hash has neither `minReplicas` nor
`maxReplicas` (`GenerateHashWithoutReplicasAndWorkersToDelete`, `shouldUpdateCluster`). Ray's autoscaler reads both from
the RayCluster before each decision, so they are patched there, as it patches `replicas`.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, Final

from modelfleet.infra.kubernetes.api import Api, ApiError, Manifest, Unreachable
from modelfleet.infra.kubernetes.names import RAY_SERVICE
from modelfleet.infra.planning.plan import Plan

LIMITS: Final = ("minReplicas", "maxReplicas")
#: KubeRay's label on the RayClusters of a RayService, old and new (`RayOriginatedFromCRNameLabelKey`).
ORIGIN: Final = f"ray.io/originated-from-cr-name={RAY_SERVICE}"


def follow_limits(kubeconfig: str | None, plan: Plan) -> list[str]:
    """`set_limits` in the cluster of `kubeconfig` (a text or a path), else in that of the stack's settings.

    A cluster that does not answer is one sentence: the run's other changes fail on it with all that they need.
    """
    settings = plan.config.kubernetes
    context = None if kubeconfig else settings.context
    try:
        with closing(Api.from_kubeconfig(kubeconfig or settings.kubeconfig, context)) as api:
            return set_limits(api, plan)
    except (Unreachable, ApiError) as error:
        return [f"cannot tell whether the live worker groups have the limits of the pools: {error}"]


def set_limits(api: Api, plan: Plan) -> list[str]:
    """Patch what differs; one sentence for each RayCluster that was changed."""
    said: list[str] = []
    if api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "rayclusters.ray.io") is None:
        return said
    for live in api.list("ray.io/v1", "RayCluster", plan.namespace, ORIGIN):
        name = live["metadata"]["name"]
        if changes := limit_changes(live, plan):
            api.patch_parts("ray.io/v1", "RayCluster", name, plan.namespace, changes)
            said.append(f"RayCluster {name}: the limits of its worker groups are those of the pools now")
    return said


def limit_changes(live: Manifest, plan: Plan) -> list[dict[str, Any]]:
    """The JSON patch (RFC 6902) that gives the live groups their limits; a group that has moved refuses it."""
    wanted = {
        group.name: dict(zip(LIMITS, (group.min_replicas, group.max_replicas), strict=True))
        for group in plan.ray_cluster.worker_groups
    }
    changes: list[dict[str, Any]] = []
    for index, group in enumerate(live["spec"]["workerGroupSpecs"]):
        name, path = group["groupName"], f"/spec/workerGroupSpecs/{index}"
        different = {key: value for key, value in wanted.get(name, {}).items() if group.get(key) != value}
        if different:
            changes.append({"op": "test", "path": f"{path}/groupName", "value": name})
            changes += [{"op": "add", "path": f"{path}/{key}", "value": value} for key, value in different.items()]
    return changes
