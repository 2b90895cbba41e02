"""The AWS Load Balancer Controller, for one duty: it keeps the gateway's pods registered with a target group.

The load balancer itself is the program's (`infra/aws/front_door.py`), so a preview shows it, `destroy` deletes it, and
the controller may change nothing in AWS but the targets. No webhook of it is installed. What they would do stands here:
the readiness gate in the gateway's pods, and the full specification of the TargetGroupBinding.
https://github.com/kubernetes-sigs/aws-load-balancer-controller/blob/v3.5.0/docs/guide/targetgroupbinding/targetgroupbinding.md
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Final

from modelfleet.infra.catalog.images import reference
from modelfleet.infra.kubernetes.manifests.pods import (
    CAUSE_IN_STATUS,
    Manifest,
    container_security,
    resources,
    single,
)
from modelfleet.infra.kubernetes.names import GATEWAY, labels
from modelfleet.infra.kubernetes.versions import (
    LOAD_BALANCER_CONTROLLER,
)
from modelfleet.infra.names import LOAD_BALANCER_ACCOUNT, STACK_LABEL
from modelfleet.infra.planning.plan import Plan

CRDS_FILE = Path(__file__).parent.parent / "crds" / f"aws-load-balancer-controller-{LOAD_BALANCER_CONTROLLER}.json.gz"
#: The user of the controller's image (its chart's `securityContext`: not root, read-only), a distroless nonroot base.
USER: Final = 65532
CERTIFICATES: Final = "/certificates"
_READ = ["get", "list", "watch"]
#: The rules of the controller's config/rbac/role.yaml v3.5.0 for what it watches and changes here.
_RULES: Final[list[tuple[str, list[str], list[str]]]] = [
    ("", ["endpoints", "pods", "services"], _READ),
    ("", ["events"], ["create", "patch"]),
    ("", ["pods/status"], ["patch", "update"]),
    ("discovery.k8s.io", ["endpointslices"], _READ),
    ("elbv2.k8s.aws", ["targetgroupbindings"], [*_READ, "patch", "update"]),
    ("elbv2.k8s.aws", ["targetgroupbindings/status"], ["patch", "update"]),
    ("networking.k8s.io", ["ingresses"], _READ),
]
#: Belongs to the cluster, not to a namespace. The Ingress part of the controller cannot be switched off (main.go), so
#: it looks for IngressClasses; there is none.
_CLUSTER_RULES: Final[list[tuple[str, list[str], list[str]]]] = [
    ("", ["namespaces", "nodes"], _READ),
    ("elbv2.k8s.aws", ["ingressclassparams"], _READ),
    ("networking.k8s.io", ["ingressclasses"], _READ),
]
#: What the controller would do beside target groups.
_OFF: Final = ("EnableServiceController", "NLBGatewayAPI", "ALBGatewayAPI", "GatewayListenerSet")


def has_balancer(plan: Plan) -> bool:
    """Whether the stack's front door is a load balancer of AWS."""
    return plan.front_door is not None and plan.front_door.load_balancer


def readiness_gate(plan: Plan) -> Manifest:
    """Of the gateway's pods: not ready before the load balancer sends requests, so a roll ends no pod too early.

    https://github.com/kubernetes-sigs/aws-load-balancer-controller/blob/v3.5.0/pkg/targetgroupbinding/utils.go
    """
    if not has_balancer(plan):
        return {}
    return {"readinessGates": [{"conditionType": f"target-health.elbv2.k8s.aws/{GATEWAY}"}]}


def custom_resource_definitions(plan: Plan) -> list[Manifest]:
    """The controller's CRDs, from its config/crd/bases."""
    if not has_balancer(plan):
        return []
    with gzip.open(CRDS_FILE, "rt") as file:
        found: list[Any] = json.load(file)
    return found


def target_group_binding(plan: Plan, target_group_arn: Any, port: str) -> list[Manifest]:
    """Ties the gateway's Service to the target group, whose ARN is text or an output."""
    if not has_balancer(plan):
        return []
    return [
        {
            "apiVersion": "elbv2.k8s.aws/v1beta1",
            "kind": "TargetGroupBinding",
            "metadata": {"name": GATEWAY, "namespace": plan.namespace, "labels": labels(plan, GATEWAY)},
            "spec": {
                "targetGroupARN": target_group_arn,
                "targetType": "ip",
                "ipAddressType": "ipv4",
                "serviceRef": {"name": GATEWAY, "port": port},
            },
        }
    ]


def controller(plan: Plan, cluster_name: str) -> list[Manifest]:
    """The controller with its rights, in the stack's namespace; nothing without a load balancer."""
    if not has_balancer(plan):
        return []
    wide = {"name": f"{plan.namespace}-{LOAD_BALANCER_ACCOUNT}", "labels": labels(plan, LOAD_BALANCER_ACCOUNT)}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(plan)},
        *_rights(plan, "Role", _metadata(plan), _RULES),
        *_rights(plan, "ClusterRole", wide, _CLUSTER_RULES),
        _deployment(plan, cluster_name),
    ]


def _rights(plan: Plan, kind: str, metadata: Manifest, rules: list[tuple[str, list[str], list[str]]]) -> list[Manifest]:
    rbac = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": LOAD_BALANCER_ACCOUNT, "namespace": plan.namespace}
    return [
        {
            "apiVersion": f"{rbac}/v1",
            "kind": kind,
            "metadata": metadata,
            "rules": [{"apiGroups": [group], "resources": kinds, "verbs": verbs} for group, kinds, verbs in rules],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": kind, "name": metadata["name"]},
            "subjects": [subject],
        },
    ]


def _deployment(plan: Plan, cluster_name: str) -> Manifest:
    """One controller without leader election: an update ends it before it starts the next."""
    network = plan.config.network
    where = f"--aws-vpc-id={network.vpc_id}" if network.vpc_id else f"--aws-vpc-tags={STACK_LABEL}={plan.stack}"
    mount = {"name": "certificates", "mountPath": CERTIFICATES}
    container = {
        "name": LOAD_BALANCER_ACCOUNT,
        "image": reference("load-balancer-controller", registry=plan.config.image_registry),
        "imagePullPolicy": "IfNotPresent",
        "args": [
            f"--cluster-name={cluster_name}",
            # Instance metadata, its other source, is out of reach of pods.
            f"--aws-region={plan.region}",
            where,
            f"--watch-namespace={plan.namespace}",
            "--enable-leader-election=false",
            "--enable-shield=false",
            "--enable-waf=false",
            "--enable-wafv2=false",
            f"--feature-gates={','.join(f'{gate}=false' for gate in _OFF)}",
            f"--webhook-cert-dir={CERTIFICATES}",
        ],
        "ports": [{"name": "health", "containerPort": 61779}],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "health"}, "failureThreshold": 6},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "health"}},
        "resources": resources("100m", "256Mi"),
        **CAUSE_IN_STATUS,
        "securityContext": container_security(read_only=True),
        "volumeMounts": [{**mount, "readOnly": True}],
    }
    return single(
        plan,
        LOAD_BALANCER_ACCOUNT,
        USER,
        initContainers=[_certificate(plan, mount)],
        containers=[container],
        volumes=[{"name": "certificates", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
    )


def _certificate(plan: Plan, mount: Manifest) -> Manifest:
    """The controller ends without a certificate for its webhooks' port, which nothing calls: one for this pod alone.

    The gateway's image has openssl, with Debian's ca-certificates (docker-library/haproxy 2.8/Dockerfile).
    """
    files = ["-keyout", f"{CERTIFICATES}/tls.key", "-out", f"{CERTIFICATES}/tls.crt"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    return {
        "name": "certificate",
        "image": reference("haproxy", registry=plan.config.image_registry),
        "imagePullPolicy": "IfNotPresent",
        "command": ["openssl", "req", "-x509", *kind, "-days", "3650", "-subj", "/CN=nobody-calls-this", *files],
        "resources": resources("10m", "64Mi"),
        **CAUSE_IN_STATUS,
        "securityContext": container_security(read_only=True),
        "volumeMounts": [mount],
    }


def _metadata(plan: Plan) -> Manifest:
    name = LOAD_BALANCER_ACCOUNT
    return {"name": name, "namespace": plan.namespace, "labels": labels(plan, name)}
