"""Looks at an existing cluster before the first resource is registered: what is missing comes as one message.

Only for `target: kubernetes`; a new EKS cluster is not there yet, and is made to fit.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

from infra.kubernetes.api import Api, ApiError, Unreachable
from infra.kubernetes.manifests.namespace import GPU
from infra.kubernetes.names import OPERATOR, POOL_LABEL, STACK_LABEL
from infra.kubernetes.rollout import rollout_notice
from infra.planning.plan import Plan, PoolPlan
from serving.config.errors import SetupError

#: What the run does, as (group, resource, in the namespace?); each must be allowed for every verb below.
NEEDED: Final = (
    ("", "namespaces", False),
    ("apiextensions.k8s.io", "customresourcedefinitions", False),
    ("", "configmaps", True),
    ("", "secrets", True),
    ("", "services", True),
    ("", "serviceaccounts", True),
    ("apps", "deployments", True),
    ("batch", "jobs", True),
    ("rbac.authorization.k8s.io", "roles", True),
    ("rbac.authorization.k8s.io", "rolebindings", True),
    ("networking.k8s.io", "networkpolicies", True),
    ("ray.io", "rayservices", True),
)
VERBS: Final = ("create", "patch", "delete")


def check_cluster(plan: Plan) -> str | None:
    """What the run will do to the live Ray cluster, if it builds another.

    Raises `SetupError` with everything that would stop the run: no answer, no rights, no nodes, another operator.
    """
    settings = plan.config.kubernetes
    where = "modelfleet:kubernetes.kubeconfig" if settings.kubeconfig else "$KUBECONFIG"
    api = None
    try:
        api = Api.from_kubeconfig(settings.kubeconfig or default_kubeconfig(), settings.context)
        api.version()
        # Without rights the rest cannot be asked.
        problems = missing_rights(api, plan) or [*missing_nodes(api, plan), *other_operators(api, plan)]
        notice = None if problems else rollout_notice(api, plan)
    except Unreachable as error:
        raise SetupError(f"{error}; start the cluster or correct {where}") from error
    except ApiError as error:
        raise SetupError(f"the cluster refused to be looked at: {error.message}; {where} needs another user") from error
    finally:
        if api is not None:
            api.close()
    if problems:
        raise SetupError("; ".join(problems))
    return notice


def missing_rights(api: Api, plan: Plan) -> list[str]:
    """One sentence with every right that the kubeconfig's user lacks."""
    lacking = []
    for group, resource, namespaced in NEEDED:
        verbs = [
            verb for verb in VERBS if not _allowed(api, group, resource, verb, plan.namespace if namespaced else None)
        ]
        if verbs:
            lacking.append(f"{'/'.join(verbs)} {resource}")
    return (
        [f"the kubeconfig's user may not {', '.join(lacking)}; use an administrator of the namespace"]
        if lacking
        else []
    )


def missing_nodes(api: Api, plan: Plan) -> list[str]:
    """Pools that need a node at once and have none with their labels and GPUs."""
    nodes = api.list("v1", "Node")
    return [sentence for pool in plan.pools if pool.min_nodes and (sentence := _lacks(pool, nodes))]


def other_operators(api: Api, plan: Plan) -> list[str]:
    """KubeRay operators elsewhere that watch every namespace: two operators on one RayService fight."""
    found = []
    for deployment in api.list("apps/v1", "Deployment"):
        meta, spec = deployment["metadata"], deployment["spec"]["template"]["spec"]
        texts = [text for c in spec["containers"] for text in (*(c.get("args") or []), *(c.get("command") or []))]
        operator = any("kuberay/operator" in c["image"] for c in spec["containers"])
        if operator and meta["namespace"] != plan.namespace and not any("watch-namespace" in text for text in texts):
            found.append(
                f"{OPERATOR} in namespace {meta['namespace']} watches all namespaces and would act on this stack too; "
                "give it --watch-namespace"
            )
    return found


def default_kubeconfig() -> str:
    """Where kubectl looks."""
    return os.environ.get("KUBECONFIG") or "~/.kube/config"


def _lacks(pool: PoolPlan, nodes: list[dict[str, Any]]) -> str | None:
    wanted = {key: value for key, value in pool.labels.items() if key in (STACK_LABEL, POOL_LABEL)}
    mine = [node for node in nodes if wanted.items() <= node["metadata"].get("labels", {}).items()]
    if not mine:
        words = " ".join(f"{key}={value}" for key, value in sorted(wanted.items()))
        return f"pool {pool.name} has no node; label one: kubectl label node NAME {words}"
    if any(int(node["status"]["allocatable"].get(GPU, 0)) >= pool.node.gpus for node in mine):
        return None
    names = ", ".join(node["metadata"]["name"] for node in mine[:3])
    return (
        f"no node of pool {pool.name} offers {pool.node.gpus} {GPU} ({names}); is the NVIDIA device plugin installed?"
    )


def _allowed(api: Api, group: str, resource: str, verb: str, namespace: str | None) -> bool:
    attributes = {"group": group, "resource": resource, "verb": verb, **({"namespace": namespace} if namespace else {})}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answer = api.request("POST", path, content=json.dumps(review), kind="application/json")
    return bool(answer["status"].get("allowed"))
