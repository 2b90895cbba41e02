"""NetworkPolicies: closed by default. Only the gateway reaches Serve; only Ray and its operator reach Ray.

What pods reach outside the stack is the plan's decision (`infra/planning/egress.py`).

On EKS the VPC CNI's agent enforces them, which the add-on's configuration turns on (`infra/aws/addons.py`). It judges a
connection to a Service by the Service's address and selector; those that our pods call have no address, so it is the
pods' own that count.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any, Final

from modelfleet.infra.kubernetes.manifests.gateway import BODIES_METRICS_PORT, PORT
from modelfleet.infra.kubernetes.manifests.load_balancer import has_balancer
from modelfleet.infra.kubernetes.manifests.own_monitoring import ALERTMANAGER_PORT, PROMETHEUS_PORT
from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.names import (
    DASHBOARD_PORT,
    GATEWAY,
    GATEWAY_METRICS_PORT,
    HEAD_ACCOUNT,
    LADDER_RETURN,
    MIRROR_ACCOUNT,
    MONITOR,
    OPERATOR,
    RAY_METRICS_PORT,
    REPLICA_PORTS,
    SERVE_PORT,
    WARM_UP_ACCOUNT,
    labels,
)
from modelfleet.infra.names import LOAD_BALANCER_ACCOUNT
from modelfleet.infra.planning.egress import PRIVATE
from modelfleet.infra.planning.plan import OwnMonitoringPlan, Plan, Way

RAY_PODS: Final = {"matchLabels": {"ray.io/is-ray-node": "yes"}}
#: What the selector of KubeRay's Service for Serve has, and `RAY_PODS` has not. The VPC CNI judges a connection by the
#: Service's address, if it has one, and opens that only to a peer that the Service's own selector satisfies
#: (amazon-network-policy-controller-k8s pkg/resolvers/endpoints.go; kuberay 1.6.2 controllers/ray/common/service.go).
#: In earlier releases it had one, and until the gateway's pods of such a release are gone they use it.
SERVE_PODS: Final = {"matchLabels": {"ray.io/serve": "true"}}
#: The head, with Serve's controller, and the pod with its labels that empties its store when the Ray cluster goes
#: (kuberay 1.6.2 controllers/ray/raycluster_controller.go, buildRedisCleanupJob).
HEAD_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": HEAD_ACCOUNT}}
GATEWAY_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": GATEWAY}}
OPERATOR_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": OPERATOR}}
CONTROLLER_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": LOAD_BALANCER_ACCOUNT}}
RETURN_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": LADDER_RETURN}}
MONITOR_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": MONITOR}}
MIRROR_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": MIRROR_ACCOUNT}}
WARM_UP_PODS: Final = {"matchLabels": {"app.kubernetes.io/name": WARM_UP_ACCOUNT}}

#: A cluster's DNS has a private address, or the link-local one of a cache on each node; a public server at port 53 is a
#: way out for anything. Cilium matches no pod by its address, so its pods are named too (cilium#9209, #14497).
#: https://kubernetes.io/docs/tasks/administer-cluster/nodelocaldns/
_RESOLVERS: Final = (*PRIVATE, "169.254.20.10/32", "fc00::/7")
_DNS_PODS: Final = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
}
DNS: Final[Manifest] = {
    "to": [*({"ipBlock": {"cidr": network}} for network in _RESOLVERS), _DNS_PODS],
    "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
}


#: Where Ray's pods take requests: the replicas' own ports, and Serve's proxy.
_SERVING: Final[list[Manifest]] = [{"port": SERVE_PORT}, {"port": REPLICA_PORTS[0], "endPort": REPLICA_PORTS[1]}]


def network_policies(plan: Plan) -> list[Manifest]:
    """All policies of the stack's namespace, and those of the mirror Jobs in theirs."""
    ways, mirrors = plan.egress, plan.mirror_namespace
    operator = {**_in_namespace(plan.operator_namespace), "podSelector": OPERATOR_PODS}
    ray_ingress = [
        {"from": [{"podSelector": RAY_PODS}]},
        {"from": [{"podSelector": GATEWAY_PODS}], "ports": _SERVING},
        # The operator sends the Serve config to the dashboard and queries the health of the head's proxy.
        _allow([operator], DASHBOARD_PORT, SERVE_PORT),
        *_metrics(plan, RAY_METRICS_PORT),
        *_monitor(plan, RAY_METRICS_PORT),
        *_scraper(plan, RAY_METRICS_PORT),
    ]
    gateway_ingress = [
        {"ports": [{"port": PORT}]},
        *_front_door(plan),
        *_metrics(plan, GATEWAY_METRICS_PORT, BODIES_METRICS_PORT),
        *_monitor(plan, GATEWAY_METRICS_PORT, BODIES_METRICS_PORT),
        *_scraper(plan, GATEWAY_METRICS_PORT, BODIES_METRICS_PORT),
        _allow([{"podSelector": RAY_PODS if plan.gateway.settles else HEAD_PODS}], GATEWAY_METRICS_PORT),
    ]
    # At the gateway's metrics port Serve's controller, on the head, asks how many requests wait, and replicas tell what
    # requests took.
    to_gateway = {"to": [{"podSelector": GATEWAY_PODS}], "ports": [{"port": GATEWAY_METRICS_PORT}]}
    settles = [to_gateway] if plan.gateway.settles else []
    to_serve = {"to": [{"podSelector": RAY_PODS}, {"podSelector": SERVE_PODS}], "ports": _SERVING}
    to_ray = {"to": [{"podSelector": RAY_PODS}]}
    copying = _policy(plan, MIRROR_ACCOUNT, MIRROR_PODS, ingress=[], egress=[DNS, *_out(ways.mirror)], where=mirrors)
    replicas = [to_ray, DNS, *settles, *_out(ways.replicas), *([_to_service(ways.collector)] if ways.collector else [])]
    policies = [
        _policy(plan, "closed", {}, ingress=[], egress=[]),
        _policy(plan, "ray", RAY_PODS, ingress=ray_ingress, egress=replicas),
        # What only the head needs; policies add up.
        _policy(plan, HEAD_ACCOUNT, HEAD_PODS, ingress=[], egress=[to_gateway, *_out(ways.head)]),
        _policy(plan, GATEWAY, GATEWAY_PODS, ingress=gateway_ingress, egress=[to_serve, DNS, *_out(ways.issuer)]),
        copying,
    ]
    if plan.sealed_pools:
        out = [DNS, *_out(ways.replicas)]  # it loads what a replica loads
        policies.append(_policy(plan, WARM_UP_ACCOUNT, WARM_UP_PODS, ingress=[], egress=out, where=mirrors))
    if plan.own_mirror_namespace:
        policies.append(_policy(plan, "mirror-closed", {}, ingress=[], egress=[], where=mirrors))
    if plan.own_operator:
        policies.append(_policy(plan, OPERATOR, OPERATOR_PODS, ingress=[], egress=[DNS, *_out(ways.api), to_ray]))
    if plan.returning:
        policies.append(_policy(plan, LADDER_RETURN, RETURN_PODS, ingress=[], egress=[DNS, *_out(ways.api)]))
    if plan.own_monitoring:
        policies.append(_own_monitoring(plan, plan.own_monitoring))
    if has_balancer(plan):
        account = LOAD_BALANCER_ACCOUNT
        out = [DNS, *_out([*ways.api, *ways.aws])]
        policies.append(_policy(plan, account, CONTROLLER_PODS, ingress=[], egress=out))
    if plan.front_door and plan.front_door.gateway_class:
        # Some implementations (Istio) run the proxy beside the Gateway: who reaches it, and where its control plane is,
        # only they know. https://gateway-api.sigs.k8s.io/geps/gep-1762/
        proxy = {"matchLabels": {"gateway.networking.k8s.io/gateway-name": plan.front_door.parent}}
        policies.append(_policy(plan, "front-door", proxy, ingress=[{}], egress=[{}]))
    return policies


def _metrics(plan: Plan, *ports: int) -> list[Manifest]:
    """Whoever the stack file names reads metrics. Without a peer there is no rule: `from: []` would be everybody."""
    peers = [
        {
            **_in_namespace(scraper.namespace),
            **({"podSelector": {"matchLabels": dict(scraper.pod_labels)}} if scraper.pod_labels else {}),
        }
        for scraper in plan.config.kubernetes.scrapers
    ]
    return [_allow(peers, *ports)] if peers else []


def _monitor(plan: Plan, *ports: int) -> list[Manifest]:
    """The Prometheus that the stack runs itself."""
    return [_allow([{"podSelector": MONITOR_PODS}], *ports)] if plan.own_monitoring else []


def _scraper(plan: Plan, *ports: int) -> list[Manifest]:
    """Amazon's scraper is no pod: it stands in the subnets of the nodes, so their pods read metrics too."""
    if plan.amp is None:
        return []
    return [_allow([{"ipBlock": {"cidr": network}} for network in plan.amp.networks], *ports)]


def _own_monitoring(plan: Plan, own: OwnMonitoringPlan) -> Manifest:
    """Who may read metrics may ask it; it reads Ray's pods and the gateway's, and tells where alerts go."""
    scraped = {RAY_METRICS_PORT: RAY_PODS, GATEWAY_METRICS_PORT: GATEWAY_PODS, BODIES_METRICS_PORT: GATEWAY_PODS}
    to_pods = [{"to": [{"podSelector": pods}], "ports": [{"port": port}]} for port, pods in scraped.items()]
    out = [DNS, *_out([*plan.egress.api, *own.out]), *to_pods, *(_to_service(one) for one in own.services)]
    asked = _metrics(plan, PROMETHEUS_PORT, ALERTMANAGER_PORT)
    return _policy(plan, MONITOR, MONITOR_PODS, ingress=asked, egress=out)


def _to_service(named: tuple[str, int]) -> Manifest:
    """A Service of the cluster, by its namespace and port: whoever takes the replicas' traces, or alerts."""
    namespace, port = named
    return {"to": [_in_namespace(namespace)], "ports": [{"port": port}]}


def _out(ways: Iterable[Way]) -> list[Manifest]:
    """A rule for each way, and none twice."""
    rules = [
        {
            "to": [_block(network, way.without) for network in way.networks],
            **({"ports": [{"port": port} for port in way.ports]} if way.ports else {}),
        }
        for way in ways
    ]
    return [rule for index, rule in enumerate(rules) if rule not in rules[:index]]


def _block(network: str, without: Iterable[str]) -> Manifest:
    inside = [one for one in without if _is_part(one, network)]
    return {"ipBlock": {"cidr": network, **({"except": inside} if inside else {})}}


def _is_part(part: str, whole: str) -> bool:
    """An exception has to be inside its range."""
    inner, outer = ip_network(part), ip_network(whole)
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


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


def _policy(
    plan: Plan, name: str, pods: Manifest, *, ingress: list[Any], egress: list[Any], where: str | None = None
) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": where or plan.namespace, "labels": labels(plan, name)},
        "spec": {"podSelector": pods, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress},
    }
