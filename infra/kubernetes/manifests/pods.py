"""Parts that several pods share: security, environment, volumes. Every pod passes Pod Security `restricted`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelfleet.infra.kubernetes.names import OBJECT_STORAGE, front_priority, labels, selector
from modelfleet.infra.names import DISK, POOL_LABEL, STACK_LABEL, SYSTEM_POOL
from modelfleet.infra.planning.plan import Plan, Taint

Manifest = dict[str, Any]

#: The user `ray` of the official Ray images and of serving/Dockerfile.
RAY_USER: Final = 1000
WEIGHTS_PATH: Final = "/var/lib/modelfleet"
#: For a container that writes nothing but logs, of which the kubelet keeps five files of 10 MiB.
SMALL_DISK: Final = "100Mi"
#: Of a container that fails, the status has the end of its log (80 lines, 2 KiB), which outlives the container.
#: https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
CAUSE_IN_STATUS: Final = {"terminationMessagePolicy": "FallbackToLogsOnError"}


def pod_security(user: int) -> Manifest:
    """Pod level: not root, its own group on volumes, the runtime's seccomp profile."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        # Weights are hundreds of GB: changing the owner of every file at each start would take minutes.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security(*, read_only: bool) -> Manifest:
    """Container level, as `restricted` demands it."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": read_only,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def environment(values: Mapping[str, str | None]) -> list[Manifest]:
    """Environment entries in the mapping's order; those without a value are left out."""
    return [{"name": name, "value": value} for name, value in values.items() if value is not None]


def object_storage() -> list[Manifest]:
    """Credentials of the object store, from a Secret that need not exist: on EKS the pod's role is enough."""
    return [{"secretRef": {"name": OBJECT_STORAGE, "optional": True}}]


def tolerations(taints: Iterable[Taint]) -> list[Manifest]:
    """One toleration per taint of the pool."""
    return [{"key": t.key, "operator": "Equal", "value": t.value, "effect": t.effect} for t in taints]


def system_placement(plan: Plan) -> Manifest:
    """Prefer the system pool; any untainted node will do, so that an existing cluster needs no label."""
    expressions = [
        {"key": STACK_LABEL, "operator": "In", "values": [plan.stack]},
        {"key": POOL_LABEL, "operator": "In", "values": [SYSTEM_POOL]},
    ]
    preferred = [{"weight": 100, "preference": {"matchExpressions": expressions}}]
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def in_front(plan: Plan) -> Manifest:
    """What head, gateway and operator add to their pods, so that they start before mirror Jobs and workers."""
    name = front_priority(plan)
    return {"priorityClassName": name} if name else {}


def single(plan: Plan, name: str, user: int, **pod: Any) -> Manifest:
    """A Deployment of one pod on the system nodes; its successor starts after its end, for two would both act."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": plan.namespace, "labels": labels(plan, name)},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": selector(name)},
            "template": {
                "metadata": {"labels": labels(plan, name)},
                "spec": {
                    "serviceAccountName": name,
                    "securityContext": pod_security(user),
                    "affinity": system_placement(plan),
                    **in_front(plan),
                    **pod,
                    "terminationGracePeriodSeconds": 10,
                },
            },
        },
    }


def mib(amount: int) -> str:
    """MiB as the shortest quantity, as Kubernetes and KubeRay write it back: `1024Mi` would show as drift."""
    for unit in ("Mi", "Gi"):
        if amount % 1024 or not amount:
            return f"{amount}{unit}"
        amount //= 1024
    return f"{amount}Ti"


def gb(amount: int) -> str:
    """GB as the shortest quantity, as Kubernetes and KubeRay write it back."""
    return f"{amount}G" if amount % 1000 else f"{amount // 1000}T"


def millis(amount: int) -> str:
    """Thousandths of a CPU as the shortest quantity: `500m`, `2`."""
    return f"{amount}m" if amount % 1000 else str(amount // 1000)


def resources(cpu: str, memory: str, *, disk: str = SMALL_DISK, limit_memory: str | None = None) -> Manifest:
    """Requests, and a limit for memory only: a CPU limit throttles the pod and gives nothing to any other.

    `disk` is for logs and files; when a node's disk fills up, the kubelet first evicts pods beyond their request.
    """
    return {"requests": {"cpu": cpu, DISK: disk, "memory": memory}, "limits": {"memory": limit_memory or memory}}
