"""The stack's namespace and its rules: Pod Security, GPU quota, service accounts, disruption budgets."""

from __future__ import annotations

from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.names import (
    GATEWAY,
    HEAD_ACCOUNT,
    MIRROR_ACCOUNT,
    WARM_UP_ACCOUNT,
    WORKER_ACCOUNT,
    front_priority,
    labels,
)
from modelfleet.infra.names import GPU
from modelfleet.infra.planning.plan import Plan


def namespaces(plan: Plan) -> list[Manifest]:
    """The stack's namespace and that of its mirror Jobs; none where the stack uses what exists.

    They enforce `restricted`, so no pod in them can be root, privileged or on the host's network.
    """
    if not plan.config.kubernetes.create_namespace:
        return []
    security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {**labels(plan, "namespace"), **security}},
        }
        for name in (plan.namespace, plan.mirror_namespace)
    ]


#: Far above the default of 0, far below the cluster's own classes (2 000 000 000).
#: https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/
FRONT_PRIORITY = 1_000_000


def priority_class(plan: Plan) -> list[Manifest]:
    """The class of head and gateway. In a cluster that is not ours they only come first; they evict nobody's pods."""
    name = front_priority(plan)
    if name is None:
        return []
    return [
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name, "labels": labels(plan, "priority")},
            "value": FRONT_PRIORITY,
            "preemptionPolicy": "PreemptLowerPriority" if plan.target.makes_cluster else "Never",
            "description": "Ray head and gateway of a modelfleet stack: before its workers and mirror Jobs.",
        }
    ]


def quotas(plan: Plan) -> list[Manifest]:
    """At most the GPUs of the worker groups, or twice that if an upgrade runs both clusters at once.

    A pool whose workers return has one worker that drains beside its successor, and a placeholder.
    Where mirror Jobs are alone, they have no GPU; warm-up Jobs beside them take one node of each sealed pool at a time,
    and the others of a pool wait. Their pods have no limit: a run deletes the Jobs of models that went
    last, so while these copy, a limit by the models that stay would keep its new Jobs from starting.
    """
    gpus = sum(group.max_replicas * group.node.gpus for group in plan.ray_cluster.worker_groups)
    returning = sum(2 * pool.node.gpus for pool in plan.returning)
    warming = sum(pool.node.gpus for pool in plan.sealed_pools)
    beside = 0 if plan.own_mirror_namespace else warming
    clusters = 1 if plan.ray_cluster.rollout == "replace" else 2
    found = [_quota(plan, "gpus", plan.namespace, {f"requests.{GPU}": str(gpus * clusters + returning + beside)})]
    if plan.own_mirror_namespace:
        found.append(_quota(plan, MIRROR_ACCOUNT, plan.mirror_namespace, {f"requests.{GPU}": str(warming)}))
    return found


def _quota(plan: Plan, name: str, where: str, most: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": name, "namespace": where, "labels": labels(plan, "quota")},
        "spec": {"hard": most},
    }


def service_accounts(plan: Plan) -> list[Manifest]:
    """One identity per duty. Only the head's autoscaler talks to the API server; the others get no token."""
    where = dict.fromkeys((HEAD_ACCOUNT, WORKER_ACCOUNT, MIRROR_ACCOUNT, GATEWAY), plan.namespace)
    where[MIRROR_ACCOUNT] = plan.mirror_namespace
    if plan.sealed_pools:
        where[WARM_UP_ACCOUNT] = plan.mirror_namespace
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace, "labels": labels(plan, name)},
            "automountServiceAccountToken": name == HEAD_ACCOUNT,
        }
        for name, namespace in where.items()
    ]


def disruption_budgets(plan: Plan) -> list[Manifest]:
    """Let at most one gateway be drained at a time, and one worker of a pool's minimum.

    `minAvailable` is a number: `maxUnavailable` and percentages need a controller with a scale subresource. RayCluster
    has none, so they would block every drain.
    """
    budgets = [("gateway", {"app.kubernetes.io/name": GATEWAY}, plan.gateway.settings.replicas - 1)]
    for pool in plan.pools:
        match = {"ray.io/node-type": "worker", "ray.io/group": pool.name}
        budgets.append((f"workers-{pool.name}", match, pool.min_nodes - 1))
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": name, "namespace": plan.namespace, "labels": labels(plan, name)},
            "spec": {
                "minAvailable": least,
                "selector": {"matchLabels": match},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
        for name, match, least in budgets
        if least > 0
    ]
