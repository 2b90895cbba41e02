"""What brings workers back to an earlier rung, for pools with `returnAfterMinutes`: one small pod, and its rights.

The program is `infra/kubernetes/scripts/ladder_return.py`. Nothing of it exists where no pool asks for it.
"""

from __future__ import annotations

from typing import Any, Final

from modelfleet.infra.kubernetes.manifests.pods import (
    CAUSE_IN_STATUS,
    RAY_USER,
    Manifest,
    container_security,
    pod_security,
    resources,
    single,
    system_placement,
    tolerations,
)
from modelfleet.infra.kubernetes.manifests.ray import whole_node
from modelfleet.infra.kubernetes.manifests.scripts import FOLDER
from modelfleet.infra.kubernetes.names import LADDER_RETURN, PLACEHOLDER, digest, labels, placeholder_priority
from modelfleet.infra.kubernetes.text import json_for_yaml
from modelfleet.infra.names import PLACEHOLDER_LABEL, POOL_LABEL, STACK_LABEL
from modelfleet.infra.planning.plan import Plan, PoolPlan, ReturnPlan, WorkerGroup

#: The least that cluster-autoscaler still buys nodes for (`--expendable-pods-priority-cutoff`, its FAQ on
#: overprovisioning); any worker takes the node from it.
PRIORITY: Final = -10
#: A placeholder on a node ends by itself after so many seconds: without its program the node would stay, and cost.
MOST_SECONDS: Final = 3600
PATH: Final = "/etc/modelfleet/return"
PROGRAM, LADDERS = "ladder_return.py", "ladders.json"


def ladder_return(plan: Plan) -> list[Manifest]:
    """PriorityClass, account, rights, program and Deployment; nothing where no worker returns."""
    if not plan.returning:
        return []
    nodes = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
    own = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "delete", "list"]},
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["list", "patch"]},
    ]
    # A ClusterRole has no namespace, and two stacks may share a cluster.
    shared = {"name": f"{plan.namespace}-{LADDER_RETURN}", "labels": labels(plan, LADDER_RETURN)}
    config = _config(plan)
    return [
        _priority(plan),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(plan)},
        *_rights(plan, "ClusterRole", shared, nodes),
        *_rights(plan, "Role", _metadata(plan), own),
        config,
        _deployment(plan, digest(config["data"])),
    ]


def _priority(plan: Plan) -> Manifest:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": placeholder_priority(plan), "labels": labels(plan, "priority")},
        "value": PRIORITY,
        "preemptionPolicy": "Never",
        "description": "Pods of a modelfleet stack that wait for a node and leave it to the first worker.",
    }


def _rights(plan: Plan, kind: str, metadata: Manifest, rules: list[Manifest]) -> list[Manifest]:
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{rbac}/v1", "kind": kind, "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": kind, "name": metadata["name"]},
            "subjects": [{"kind": "ServiceAccount", "name": LADDER_RETURN, "namespace": plan.namespace}],
        },
    ]


def ladders(plan: Plan, image: str) -> str:
    """The program's settings: each ladder, with placeholders of `image`, the workers'."""
    groups = {group.pool: group for group in plan.ray_cluster.worker_groups}
    own = [
        _ladder(plan, pool, pool.returns, groups[pool.name], image) for pool in plan.pools if pool.returns is not None
    ]
    return json_for_yaml(own, indent=1)


def _config(plan: Plan) -> Manifest:
    data = {PROGRAM: (FOLDER / PROGRAM).read_text(), LADDERS: ladders(plan, plan.ray_cluster.image)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(plan), "data": data}


def _ladder(plan: Plan, pool: PoolPlan, returns: ReturnPlan, group: WorkerGroup, image: str) -> dict[str, Any]:
    """One pool as the program reads it."""
    return {
        "pool": pool.name,
        "after_s": returns.after_s,
        "labels": {key: pool.labels[key] for key in (POOL_LABEL, STACK_LABEL)},
        "rungs": [{"name": f"{rung.accelerator} {rung.purchase}", "labels": dict(rung.labels)} for rung in pool.rungs],
        "label": PLACEHOLDER_LABEL,
        "placeholder": _placeholder(plan, group, image),
    }


def _placeholder(plan: Plan, group: WorkerGroup, image: str) -> Manifest:
    """As large as a worker, with the worker's image, which is then on the node when the worker comes."""
    container = {
        "name": "placeholder",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"],
        "resources": whole_node(group),
        "securityContext": container_security(read_only=True),
    }
    own = {**labels(plan, PLACEHOLDER), PLACEHOLDER_LABEL: group.pool}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": f"return-{group.pool}-", "labels": own},
        "spec": {
            "priorityClassName": placeholder_priority(plan),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "activeDeadlineSeconds": MOST_SECONDS,
            "securityContext": pod_security(RAY_USER),
            "tolerations": tolerations(group.taints),
            "containers": [container],
        },
    }


def _deployment(plan: Plan, content: str) -> Manifest:
    container = {
        "name": LADDER_RETURN,
        "image": plan.ray_cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", f"{PATH}/{PROGRAM}", f"{PATH}/{LADDERS}"],
        "resources": resources("50m", "128Mi"),
        **CAUSE_IN_STATUS,
        "securityContext": container_security(read_only=True),
        "volumeMounts": [{"name": "program", "mountPath": PATH, "readOnly": True}],
    }
    head = {"labelSelector": {"matchLabels": {"ray.io/node-type": "head"}}, "topologyKey": "kubernetes.io/hostname"}
    # The head's node has the image already, which is large.
    near = {
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": head}]}
    }
    made = single(
        plan,
        LADDER_RETURN,
        RAY_USER,
        containers=[container],
        affinity={**system_placement(plan), **near},
        volumes=[{"name": "program", "configMap": {"name": LADDER_RETURN}}],
    )
    # Python has read its program when it changes.
    made["spec"]["template"]["metadata"]["annotations"] = {"modelfleet.dev/content": content}
    return made


def _metadata(plan: Plan) -> Manifest:
    return {"name": LADDER_RETURN, "namespace": plan.namespace, "labels": labels(plan, LADDER_RETURN)}
