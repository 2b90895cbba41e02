"""cluster-autoscaler for EKS node groups: it buys a node when a Ray worker finds none, and removes it when idle.

Its minor version is the cluster's; its AWS rights come with the ServiceAccount (`infra/aws`).
"""

from __future__ import annotations

import json
from typing import Final

from modelfleet.infra.catalog.images import reference
from modelfleet.infra.kubernetes.manifests.pods import (
    CAUSE_IN_STATUS,
    Manifest,
    container_security,
    environment,
    pod_security,
    resources,
    system_placement,
)
from modelfleet.infra.kubernetes.names import labels, selector
from modelfleet.infra.names import AUTOSCALER, AUTOSCALER_NAMESPACE
from modelfleet.infra.planning.ladder import NODE_START_S, priorities
from modelfleet.infra.planning.plan import Plan

USER: Final = 65534
PRIORITIES: Final = "cluster-autoscaler-priority-expander"
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
]
#: What it writes of its own: in its namespace alone, and by name where there is one.
_OWN: Final[list[Manifest]] = [
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "list", "watch"]},
    {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": ["cluster-autoscaler-status", PRIORITIES],
        "verbs": ["get", "watch", "update", "delete"],
    },
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": [AUTOSCALER],
        "verbs": ["get", "update"],
    },
]


def cluster_autoscaler(plan: Plan, cluster_name: str) -> list[Manifest]:
    """ServiceAccount, rights in the cluster and in its own namespace, the order of node groups, and Deployment."""
    rules = [{"apiGroups": [group], "resources": kinds, "verbs": verbs} for group, kinds, verbs in _RULES]
    cluster_wide = {"name": AUTOSCALER, "labels": labels(plan, AUTOSCALER)}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(plan)},
        *_rights("ClusterRole", cluster_wide, rules),
        *_rights("Role", _metadata(plan), _OWN),
        priority_expander(plan),
        _deployment(plan, cluster_name),
    ]


def priority_expander(plan: Plan) -> Manifest:
    """In which order node groups are tried. The autoscaler reads it before each purchase, so a change restarts nothing.

    Name, key and format: kubernetes/autoscaler 1.35.0, cluster-autoscaler/expander/priority/priority.go.
    """
    ordered = sorted(priorities(plan.pools).items(), reverse=True)
    # JSON is YAML, and quotes a pattern so that nothing in it is YAML's. Numbers are not keys in JSON.
    lines = [f"{priority}: {json.dumps(patterns)}" for priority, patterns in ordered]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**_metadata(plan), "name": PRIORITIES},
        "data": {"priorities": "\n".join(lines) + "\n"},
    }


def _rights(kind: str, metadata: Manifest, rules: list[Manifest]) -> list[Manifest]:
    """A role and its binding to the ServiceAccount."""
    rbac = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": AUTOSCALER, "namespace": AUTOSCALER_NAMESPACE}
    return [
        {"apiVersion": f"{rbac}/v1", "kind": kind, "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": kind, "name": AUTOSCALER},
            "subjects": [subject],
        },
    ]


def _deployment(plan: Plan, cluster_name: str) -> Manifest:
    tags = f"k8s.io/cluster-autoscaler/enabled,k8s.io/cluster-autoscaler/{cluster_name}"
    container = {
        "name": AUTOSCALER,
        "image": _image(plan),
        "command": [
            "./cluster-autoscaler",
            "--cloud-provider=aws",
            f"--node-group-auto-discovery=asg:tag={tags}",
            # The ladder first (`priority_expander`), then the type that leaves least unused.
            "--expander=priority,least-waste",
            f"--max-node-provision-time={NODE_START_S}s",
            "--balance-similar-node-groups",
            # Labels that alone differ between the groups of a pool, and that its AWS part does not know.
            "--balancing-ignore-label=nodegroup-name",
            "--balancing-ignore-label=topology.k8s.aws/zone-id",
            "--skip-nodes-with-local-storage=false",  # weights on the node's disk can be fetched again
            "--skip-nodes-with-system-pods=true",
            "--scale-down-unneeded-time=10m",
        ],
        "env": environment({"AWS_REGION": plan.region}),
        "ports": [{"name": "http", "containerPort": 8085}],
        # It answers 500 when it has hung for 10 minutes or failed for 15 (its metrics/liveness.go); nobody else asks.
        "livenessProbe": {
            "httpGet": {"path": "/health-check", "port": "http"},
            "periodSeconds": 30,
            "timeoutSeconds": 10,
        },
        "resources": resources("100m", "600Mi"),
        **CAUSE_IN_STATUS,
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


def _image(plan: Plan) -> str:
    """It follows the cluster's minor version, each at its first release."""
    tag = f"v{plan.config.cluster.version}.0"
    return reference("cluster-autoscaler", registry=plan.config.image_registry, tag=tag)
