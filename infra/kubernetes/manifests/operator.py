"""The KubeRay operator of one namespace: its rights end at the namespace, so several stacks can share a cluster."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from modelfleet.infra.catalog.images import reference
from modelfleet.infra.kubernetes.manifests.pods import (
    CAUSE_IN_STATUS,
    Manifest,
    container_security,
    environment,
    resources,
    single,
)
from modelfleet.infra.kubernetes.names import OPERATOR, labels
from modelfleet.infra.kubernetes.versions import KUBERAY
from modelfleet.infra.planning.plan import Plan

CRDS_FILE = Path(__file__).parent.parent / "crds" / f"kuberay-{KUBERAY}.json.gz"
#: The user of the operator's image, gcr.io/distroless/base-debian12:nonroot.
OPERATOR_USER = 65532

_KINDS = ("rayclusters", "rayjobs", "rayservices", "raycronjobs")
_ALL = ["create", "delete", "get", "list", "patch", "update", "watch"]
#: The rules of KubeRay's own `config/rbac/role.yaml` v1.6.2, without those for features that a stack does not use
#: (OpenShift routes, batch schedulers) and for anything outside the namespace.
_RULES: list[tuple[str, list[str], list[str]]] = [
    ("", ["events", "services"], _ALL),
    ("events.k8s.io", ["events"], ["create", "patch"]),
    ("", ["pods"], [*_ALL, "deletecollection"]),
    ("", ["pods/status", "services/status"], ["get", "patch", "update"]),
    ("", ["pods/proxy"], ["get", "patch", "update"]),
    ("", ["services/proxy"], ["create", "get", "patch", "update"]),
    ("", ["pods/resize"], ["patch"]),
    ("", ["secrets"], ["create", "get", "list", "watch"]),
    ("", ["serviceaccounts"], ["create", "delete", "get", "list", "watch"]),
    ("batch", ["jobs"], _ALL),
    ("coordination.k8s.io", ["leases"], ["create", "get", "list", "update"]),
    ("discovery.k8s.io", ["endpointslices"], ["get", "list", "watch"]),
    ("networking.k8s.io", ["ingresses"], _ALL),
    ("gateway.networking.k8s.io", ["gateways", "httproutes"], ["create", "get", "list", "update", "watch"]),
    ("ray.io", [*_KINDS], _ALL),
    ("ray.io", [f"{kind}/finalizers" for kind in _KINDS], ["update"]),
    (
        "ray.io",
        [f"{kind}/status" for kind in _KINDS],
        ["get", "patch", "update"],
    ),
    ("rbac.authorization.k8s.io", ["roles", "rolebindings"], ["create", "delete", "get", "list", "update", "watch"]),
]


def custom_resource_definitions() -> list[Manifest]:
    """KubeRay's CRDs, as `python -m tools.kubernetes crds` packed them from the operator's Go module."""
    with gzip.open(CRDS_FILE, "rt") as file:
        found: list[Any] = json.load(file)
    return found


def operator_role(plan: Plan) -> Manifest:
    """What the operator may do, in its namespace only."""
    rules = [{"apiGroups": [group], "resources": kinds, "verbs": verbs} for group, kinds, verbs in _RULES]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": _metadata(plan),
        "rules": rules,
    }


def operator_binding(plan: Plan) -> Manifest:
    """Binds the role to the account."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": _metadata(plan),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": OPERATOR},
        "subjects": [{"kind": "ServiceAccount", "name": OPERATOR, "namespace": plan.namespace}],
    }


def operator_account(plan: Plan) -> Manifest:
    """The operator's identity."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(plan)}


def operator_deployment(plan: Plan) -> Manifest:
    """One operator. An update ends it before it starts the next: without leader election two would race."""
    gates = ["RayClusterStatusConditions=true"]
    container = {
        "name": OPERATOR,
        "image": reference("kuberay-operator", registry=plan.config.image_registry),
        "imagePullPolicy": "IfNotPresent",
        "command": ["/manager"],
        "args": [f"--watch-namespace={plan.namespace}", f"--feature-gates={','.join(gates)}", "--enable-metrics"],
        "env": environment({"ENABLE_INIT_CONTAINER_INJECTION": "true"}),
        "ports": [{"name": "http", "containerPort": 8080}],
        "livenessProbe": _probe(failures=5),
        "readinessProbe": _probe(failures=3),
        "resources": resources("100m", "512Mi"),
        **CAUSE_IN_STATUS,
        "securityContext": container_security(read_only=True),
    }
    return single(plan, OPERATOR, OPERATOR_USER, containers=[container])


def _probe(*, failures: int) -> Manifest:
    return {"httpGet": {"path": "/metrics", "port": "http"}, "periodSeconds": 5, "failureThreshold": failures}


def _metadata(plan: Plan) -> Manifest:
    return {"name": OPERATOR, "namespace": plan.namespace, "labels": labels(plan, OPERATOR)}
