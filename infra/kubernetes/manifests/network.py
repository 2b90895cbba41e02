"""NetworkPolicies: closed by default. Only the gateway reaches Serve; only Ray and its operator reach Ray.

On EKS the VPC CNI's agent enforces them, which the add-on's configuration turns on (`infra/aws/addons.py`). It wants
the port of a Service to be that of the container where a policy holds for the caller; ours are, and nothing of ours
calls the gateway.
"""

from __future__ import annotations

from typing import Any, Final

from modelfleet.infra.kubernetes.manifests.gateway import BODIES_METRICS_PORT, METRICS_PORT, PORT
from modelfleet.infra.kubernetes.manifests.load_balancer import has_balancer
from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.names import (
    DASHBOARD_PORT,
    GATEWAY,
    LADDER_RETURN,
    MIRROR_ACCOUNT,
    OPERATOR,
    RAY_METRICS_PORT,
    SERVE_PORT,
    labels,
)
from modelfleet.infra.names import LOAD_BALANCER_ACCOUNT
from modelfleet.infra.planning.plan import Plan

#: Instance metadata: a pod has its own role, never the node's.
METADATA_ADDRESS: Final = "169.254.169.254/32"
#: Where Prometheus is expected; nothing else outside may read metrics.
MONITORING_NAMESPACE: Final = "monitoring"

RAY_PODS: Final = {"matchLabels": {"ray.io/is-ray-node": "yes"}}
#: What the selector of KubeRay's Service for Serve has, and `RAY_PODS` has not. The VPC CNI judges a connection by the
#: Service's address, and opens that only to a peer that the Service's own selector satisfies
#: (amazon-network-policy-controller-k8s pkg/resolvers/endpoints.go; kuberay 1.6.2 controllers/ray/common/service.go).
SERVE_PODS: Final = {"matchLabels": {"ray.io/serve": "true"}}
GATEWAY_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": GATEWAY}}
OPERATOR_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": OPERATOR}}
CONTROLLER_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": LOAD_BALANCER_ACCOUNT}}
RETURN_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": LADDER_RETURN}}
MIRROR_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": MIRROR_ACCOUNT}}


def network_policies(plan: Plan) -> list[Manifest]:
    """All policies of the namespace."""
    dns = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    world = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": [METADATA_ADDRESS]}}]}
    metrics = _allow([_in_namespace(MONITORING_NAMESPACE)], RAY_METRICS_PORT)
    operator = {**_in_namespace(plan.operator_namespace), "podSelector": OPERATOR_PODS}
    ray_ingress = [
        {"from": [{"podSelector": RAY_PODS}]},
        _allow([{"podSelector": GATEWAY_PODS}], SERVE_PORT),
        # The operator sends the Serve config to the dashboard and queries the health of the head's proxy.
        _allow([operator], DASHBOARD_PORT, SERVE_PORT),
        metrics,
    ]
    gateway_ingress = [
        {"ports": [{"port": PORT}]},
        *_front_door(plan),
        _allow([_in_namespace(MONITORING_NAMESPACE)], METRICS_PORT, BODIES_METRICS_PORT),
    ]
    serve = [{"podSelector": RAY_PODS}, {"podSelector": SERVE_PODS}]
    to_serve = {"to": serve, "ports": [{"port": SERVE_PORT}]}
    policies = [
        _policy(plan, "closed", {}, ingress=[], egress=[]),
        _policy(plan, "ray", RAY_PODS, ingress=ray_ingress, egress=[{"to": [{"podSelector": RAY_PODS}]}, dns, world]),
        _policy(plan, GATEWAY, GATEWAY_PODS, ingress=gateway_ingress, egress=[to_serve, dns]),
        _policy(plan, MIRROR_ACCOUNT, MIRROR_PODS, ingress=[], egress=[dns, world]),
    ]
    if plan.own_operator:
        to_ray = {"to": [{"podSelector": RAY_PODS}]}
        policies.append(_policy(plan, OPERATOR, OPERATOR_PODS, ingress=[], egress=[dns, world, to_ray]))
    if plan.returning:
        policies.append(_policy(plan, LADDER_RETURN, RETURN_PODS, ingress=[], egress=[dns, world]))
    if has_balancer(plan):
        account = LOAD_BALANCER_ACCOUNT
        policies.append(_policy(plan, account, CONTROLLER_PODS, ingress=[], egress=[dns, world]))
    return policies


def _front_door(plan: Plan) -> list[Manifest]:
    """The port where clients' addresses are believed: for the load balancer's subnets, where the plan knows them.

    An Ingress controller is any pod of the cluster, and a network that exists has subnets that only AWS knows; there
    the load balancer's security group is the limit.
    """
    if plan.front_door is None:
        return []
    blocks = [{"ipBlock": {"cidr": cidr}} for cidr in plan.front_door.addresses]
    return [{"ports": [{"port": plan.front_door.port}], **({"from": blocks} if blocks else {})}]


def _in_namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _allow(sources: list[Manifest], *ports: int) -> Manifest:
    return {"from": sources, "ports": [{"port": port} for port in ports]}


def _policy(plan: Plan, name: str, pods: Manifest, *, ingress: list[Any], egress: list[Any]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": plan.namespace, "labels": labels(plan, name)},
        "spec": {"podSelector": pods, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress},
    }
