"""Frees a stack's Ray objects for deletion when their operator is gone and nothing would remove their finalizers.

`pulumi destroy` deletes the RayService first and waits for KubeRay, which ends the pods and then removes the finalizer.
Without an operator it would wait forever. `modelfleet down` calls `release` before it destroys.
"""

from __future__ import annotations

from contextlib import closing

from modelfleet.infra.kubernetes.api import Api, ApiError, Unreachable
from modelfleet.infra.kubernetes.names import OPERATOR
from modelfleet.infra.stack.schema import Kubernetes
from modelfleet.serving.config.errors import SetupError

KINDS = ("RayService", "RayCluster")
GROUP = "ray.io/v1"


def release_orphans(settings: Kubernetes, stack: str, *, kubeconfig: str | None = None) -> list[str]:
    """Call `release` in the cluster of `kubeconfig` (the text that an EKS stack exports), else in that of `settings`.

    Raises `SetupError` when the cluster does not answer.
    """
    try:
        context = None if kubeconfig else settings.context
        with closing(Api.from_kubeconfig(kubeconfig or settings.kubeconfig, context)) as api:
            return release(api, settings.namespace_of(stack), settings.operator_namespace_of(stack))
    except (Unreachable, ApiError) as error:
        raise SetupError(f"{error}; the stack cannot be destroyed while its cluster does not answer") from error


def operator_is_there(api: Api, namespace: str) -> bool:
    """Whether an operator has a pod in the namespace that could finish a deletion."""
    deployment = api.get("apps/v1", "Deployment", OPERATOR, namespace)
    return deployment is not None and bool(deployment.get("status", {}).get("availableReplicas"))


def release(api: Api, namespace: str, operator_namespace: str) -> list[str]:
    """Remove the finalizers of the namespace's Ray objects if no operator can; returns the objects released.

    Kubernetes' garbage collector deletes a RayCluster's pods along with it.
    """
    if operator_is_there(api, operator_namespace):
        return []
    released = []
    for kind in KINDS:
        if api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", f"{kind.lower()}s.ray.io") is None:
            continue
        for item in api.list(GROUP, kind, namespace):
            name = item["metadata"]["name"]
            if item["metadata"].get("finalizers"):
                api.merge(GROUP, kind, name, namespace, {"metadata": {"finalizers": None}})
                released.append(f"{kind} {name}")
    return released
