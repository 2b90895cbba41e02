"""cluster-autoscaler for EKS node groups: it buys a node when a Ray worker finds none, and removes it when idle.

Its minor version is the cluster's; its AWS rights come with the ServiceAccount (`infra/aws`).
"""

from __future__ import annotations

from typing import Final

from modelfleet.infra.kubernetes.manifests.pods import (
    Manifest,
    container_security,
    environment,
    pod_security,
    resources,
    system_placement,
)
from modelfleet.infra.kubernetes.names import labels, selector
from modelfleet.infra.kubernetes.versions import AUTOSCALER_IMAGE
from modelfleet.infra.names import AUTOSCALER, AUTOSCALER_NAMESPACE
from modelfleet.infra.planning.plan import Plan

USER: Final = 65534
_READ = ["get", "list", "watch"]
#: The rules of autoscaler's cluster-autoscaler/cloudprovider/aws/examples/cluster-autoscaler-autodiscover.yaml.
_RULES: Final[list[tuple[str, list[str], list[str]]]] = [
    ("", ["events", "endpoints"], ["create", "patch"]),
    ("", ["pods/eviction"], ["create"]),
    ("", ["pods/status"], ["update"]),
    ("", ["nodes"], [*_READ, "update"]),
    ("", ["namespaces", "pods", "services", "replicationcontrollers", "persistentvolumeclaims"], _READ),
    ("", ["persistentvolumes"], _READ),
    ("apps", ["statefulsets", "replicasets", "daemonsets", "deployments"], _READ),
    ("batch", ["jobs", "cronjobs"], [*_READ, "patch"]),
    ("policy", ["poddisruptionbudgets"], _READ),
    (
        "storage.k8s.io",
        ["storageclasses", "csinodes", "csidrivers", "csistoragecapacities", "volumeattachments"],
        _READ,
    ),
    ("resource.k8s.io", ["deviceclasses", "resourceclaims", "resourceslices", "resourceclaimtemplates"], _READ),
    ("coordination.k8s.io", ["leases"], [*_READ, "create", "update"]),
    ("", ["configmaps"], [*_READ, "create", "update", "delete"]),
]


def cluster_autoscaler(plan: Plan, cluster_name: str) -> list[Manifest]:
    """ServiceAccount, ClusterRole, binding and Deployment."""
    subject = {"kind": "ServiceAccount", "name": AUTOSCALER, "namespace": AUTOSCALER_NAMESPACE}
    rules = [{"apiGroups": [group], "resources": kinds, "verbs": verbs} for group, kinds, verbs in _RULES]
    rbac, cluster_wide = "rbac.authorization.k8s.io", {"name": AUTOSCALER, "labels": labels(plan, AUTOSCALER)}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(plan)},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": cluster_wide, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": cluster_wide,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": AUTOSCALER},
            "subjects": [subject],
        },
        _deployment(plan, cluster_name),
    ]


def _deployment(plan: Plan, cluster_name: str) -> Manifest:
    tags = f"k8s.io/cluster-autoscaler/enabled,k8s.io/cluster-autoscaler/{cluster_name}"
    container = {
        "name": AUTOSCALER,
        "image": AUTOSCALER_IMAGE.format(minor=plan.config.cluster.version),
        "command": [
            "./cluster-autoscaler",
            "--cloud-provider=aws",
            f"--node-group-auto-discovery=asg:tag={tags}",
            "--expander=least-waste",
            "--balance-similar-node-groups",
            "--skip-nodes-with-local-storage=false",  # weights on the node's disk can be fetched again
            "--skip-nodes-with-system-pods=true",
            "--scale-down-unneeded-time=10m",
        ],
        "env": environment({"AWS_REGION": plan.region}),
        "resources": resources("100m", "600Mi"),
        "securityContext": container_security(read_only=True),
    }
    pod = {
        "serviceAccountName": AUTOSCALER,
        "priorityClassName": "system-cluster-critical",
        "securityContext": pod_security(USER),
        "affinity": system_placement(plan),
        "containers": [container],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(plan),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": selector(AUTOSCALER)},
            "template": {"metadata": {"labels": labels(plan, AUTOSCALER)}, "spec": pod},
        },
    }


def _metadata(plan: Plan) -> Manifest:
    return {"name": AUTOSCALER, "namespace": AUTOSCALER_NAMESPACE, "labels": labels(plan, AUTOSCALER)}
