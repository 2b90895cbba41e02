"""The stack's namespace and who lives in it: Pod Security, GPU quota, service accounts, disruption budgets."""

from __future__ import annotations

from infra.kubernetes.manifests.pods import Manifest
from infra.kubernetes.names import (
    GATEWAY,
    HEAD_ACCOUNT,
    MIRROR_ACCOUNT,
    POOL_LABEL,
    WORKER_ACCOUNT,
    labels,
)
from infra.planning.plan import Plan

GPU = "nvidia.com/gpu"


def namespace(plan: Plan) -> Manifest:
    """The namespace; `restricted` is enforced, so no pod in it can be root, privileged or on the host's network."""
    security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": plan.namespace, "labels": {**labels(plan, "namespace"), **security}},
    }


def quota(plan: Plan) -> Manifest:
    """No more GPUs than the pools' nodes have, twice that when an upgrade runs both clusters side by side."""
    gpus = sum(pool.max_nodes * pool.node.gpus for pool in plan.pools)
    clusters = 1 if plan.ray_cluster.rollout == "replace" else 2
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus", "namespace": plan.namespace, "labels": labels(plan, "quota")},
        "spec": {"hard": {f"requests.{GPU}": str(gpus * clusters)}},
    }


def service_accounts(plan: Plan) -> list[Manifest]:
    """One identity per duty. Only the head talks to the API server (its autoscaler), the others get no token."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": plan.namespace, "labels": labels(plan, name)},
            "automountServiceAccountToken": name == HEAD_ACCOUNT,
        }
        for name in (HEAD_ACCOUNT, WORKER_ACCOUNT, MIRROR_ACCOUNT, GATEWAY)
    ]


def disruption_budgets(plan: Plan) -> list[Manifest]:
    """At most one gateway, and one worker of what a pool needs at least, may be drained at a time.

    `minAvailable` as a number: `maxUnavailable` and percentages need a controller with a scale subresource, which
    RayCluster is not, and would then block every drain.
    """
    budgets = [("gateway", {"app.kubernetes.io/name": GATEWAY}, plan.gateway.replicas - 1)]
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


__all__ = ["GPU", "POOL_LABEL", "disruption_budgets", "namespace", "quota", "service_accounts"]
