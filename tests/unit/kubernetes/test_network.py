"""Who can reach what: evaluates the rendered NetworkPolicies as Kubernetes defines them.

`tests/nodes/test_policies.py` proves each line by a connection; for quick runs this file applies the rules of
https://kubernetes.io/docs/concepts/services-networking/network-policies/. A connection is open if the source's egress
and the target's ingress both allow it. A pod that no policy selects is open.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.gateway import gateway_deployment, gateway_files
from modelfleet.infra.kubernetes.names import GATEWAY_QUEUES, SERVE_SERVICE
from modelfleet.infra.planning import Plan
from tests.cluster.fleet import five_models, planned

Policy = dict[str, Any]
OURS = "modelfleet-dev"
#: The label that KubeRay puts on its pods; `tests/cluster` finds them by it.
RAY = {"ray.io/is-ray-node": "yes"}
PORTS = {
    "gcs": 6379,
    "ray client": 10001,
    "dashboard": 8265,
    "serve": 8000,
    "ray metrics": 8080,
    "first replica": 30000,
    "last replica": 30255,
    "beyond": 30256,
}


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, or an address outside the cluster if the namespace is empty."""

    name: str
    namespace: str = OURS
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.1.2.3"


def _picks(selector: dict[str, Any] | None, labels: Mapping[str, str]) -> bool:
    if selector is None:
        return False
    assert set(selector) <= {"matchLabels"}, "the evaluator knows no other selectors"
    return selector.get("matchLabels", {}).items() <= labels.items()


def _is_peer(peer: dict[str, Any], end: End) -> bool:
    if block := peer.get("ipBlock"):
        address = ipaddress.ip_address(end.address)
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(e) for e in block.get("except", []))
    if not end.namespace:
        return False
    if "namespaceSelector" in peer:
        space = {"kubernetes.io/metadata.name": end.namespace}
        return _picks(peer["namespaceSelector"], space) and _picks(peer.get("podSelector", {}), end.labels)
    return end.namespace == OURS and _picks(peer["podSelector"], end.labels)


def _allows(rule: dict[str, Any], peers: str, other: End, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if ports is not None and not any(
        p["port"] <= port <= p.get("endPort", p["port"]) and p.get("protocol", "TCP") == protocol for p in ports
    ):
        return False
    return peers not in rule or any(_is_peer(peer, other) for peer in rule[peers])


def _open(policies: list[Policy], direction: str, pod: End, other: End, port: int, protocol: str) -> bool:
    mine = [
        policy["spec"]
        for policy in policies
        if pod.namespace == policy["metadata"]["namespace"]
        and direction.title() in policy["spec"]["policyTypes"]
        and _picks(policy["spec"]["podSelector"], pod.labels)
    ]
    peers = "from" if direction == "ingress" else "to"
    rules = [rule for spec in mine for rule in spec.get(direction, [])]
    return not mine or any(_allows(rule, peers, other, port, protocol) for rule in rules)


def may_reach(policies: list[Policy], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether the rules of both directions open the connection."""
    leaves = _open(policies, "egress", source, target, port, protocol)
    return leaves and _open(policies, "ingress", target, source, port, protocol)


def ends(plan: Plan) -> Iterator[End]:
    """A pod of each kind, with the labels of its own manifest; strangers; and addresses outside."""
    for manifest in everything(plan):
        if manifest["kind"] in ("Deployment", "Job"):
            labels = manifest["spec"]["template"]["metadata"]["labels"]
            yield End(labels["app.kubernetes.io/name"], manifest["metadata"]["namespace"], labels)
        elif manifest["kind"] == "RayService":
            config = manifest["spec"]["rayClusterConfig"]
            for kind, group in (("head", config["headGroupSpec"]), ("worker", config["workerGroupSpecs"][0])):
                yield End(kind, labels={**group["template"]["metadata"]["labels"], **RAY})
    yield End("intruder")
    # A pod of the stack's namespace that calls itself a mirror Job's.
    yield End("impostor", labels={"app.kubernetes.io/name": "mirror"})
    yield End("stranger", namespace="default", labels=RAY)
    yield End("prometheus", namespace="monitoring", labels=PROMETHEUS)
    yield End("grafana", namespace="monitoring")
    yield End("dns", namespace="kube-system")
    if plan.front_door and plan.front_door.gateway_class:  # as Istio runs it
        yield End("proxy", labels={"gateway.networking.k8s.io/gateway-name": "gateway"})
    for name, address in OUTSIDE.items():
        yield End(name, namespace="", address=address)


#: Servers outside the cluster. `store` is the object store's private address where the stack names it, `api` the API
#: server's.
OUTSIDE = {
    "internet": "203.0.113.9",
    "metadata": "169.254.169.254",
    "credentials": "169.254.170.23",
    "store": "198.51.100.7",
    "neighbour": "10.200.0.9",
    "api": "10.96.0.1",
    "resolver": "203.0.113.53",
}
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
STORE = {"create": True, "bucket": "fleet-mirror", "storageCidrs": ["198.51.100.0/24"]}
FROM_BUCKET = {"sources": {one["engine_config"]["model_id"]: "s3://theirs/weights" for one in five_models()}}


def tight(root: Path) -> Plan:
    """A stack that says where its object store is and who reads its metrics; all weights come from that store.

    Its keys have a budget, and the issuer of its tokens listens at port 9000.
    """
    kubernetes = {"scrapers": [{"namespace": "monitoring", "podLabels": PROMETHEUS}]}
    who = {"auth": "keys", "apiKeys": {"a": {"secure": "v1:x"}}, "keys": {"a": {"budget": {"tokens": 1000}}}}
    jwt = {"issuer": "https://login.example.org/", "audience": "models", "jwks": "https://login.example.org:9000/keys"}
    return planned(root, five_models(), mirror={**STORE, **FROM_BUCKET}, kubernetes=kubernetes, jwt=jwt, **who)


def with_own_store(root: Path) -> Plan:
    """A stack on EKS whose Ray head keeps its state in a store that exists."""
    return planned(root, five_models(), target="eks", kubernetes={"redisAddress": "redis.data:6379"})


PLANS: dict[str, Callable[[Path], Plan]] = {
    "kubernetes": lambda root: planned(root, five_models()),
    "eks": lambda root: planned(root, five_models(), target="eks"),
    "eks with a store": with_own_store,
    "tight": tight,
}


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Plan:
    return PLANS[request.param](tmp_path)


def reachable(policies: list[Policy], plan: Plan) -> set[tuple[str, str, int]]:
    """Every open connection to a pod of the stack, on every port that the stack listens on, and on one more."""
    found, ports = list(ends(plan)), {*PORTS.values(), 8405, 8406}
    ours = (plan.namespace, plan.mirror_namespace)
    targets = [end for end in found if end.namespace in ours and end.name not in ("intruder", "impostor")]
    return {
        (source.name, target.name, port)
        for source in found
        for target in targets
        for port in ports
        if source.name != target.name and may_reach(policies, source, target, port)
    }


def leaving(policies: list[Policy], plan: Plan) -> dict[str, set[tuple[str, int]]]:
    """What each pod of the stack reaches outside the cluster, on every port that a rule could mean."""
    found = list(ends(plan))
    outside = [end for end in found if not end.namespace]
    inside = [end for end in found if end.namespace in (plan.namespace, plan.mirror_namespace)]
    return {
        source.name: {
            (target.name, port) for target in outside for port in OUT_PORTS if may_reach(policies, source, target, port)
        }
        for source in inside
    }


OUT_PORTS = (53, 80, 443, 6379, 6443, 9000)


def policies_of(plan: Plan) -> list[Policy]:
    return [manifest for manifest in everything(plan) if manifest["kind"] == "NetworkPolicy"]


def test_exactly_these_connections_into_the_stack_are_open(plan: Plan, request: pytest.FixtureRequest) -> None:
    """The Ray dashboard runs any code that it receives, and the control store is not protected either."""
    kind = request.node.callspec.params["plan"]
    among_ray = {
        (source, target, port)
        for source, target in (("head", "worker"), ("worker", "head"))
        for port in (*PORTS.values(), 8405, 8406)
    }
    readers = ("prometheus",) if kind == "tight" else ("prometheus", "grafana")
    to_ray = {
        (source, target, port)
        for target in ("head", "worker")
        for source, port in (
            ("gateway", 8000),
            ("gateway", 30000),
            ("gateway", 30255),
            ("kuberay-operator", 8000),
            ("kuberay-operator", 8265),
            *((reader, 8080) for reader in readers),
        )
    }
    # The Ingress controller decides where clients come from, and every request needs a key. Of the stack's own pods
    # those reach the gateway that reach private addresses: for the API, or because the object store may have one.
    private = {"kubernetes": ("head", "worker", "mirror", "kuberay-operator"), "eks": (), "eks with a store": ()}
    own = private.get(kind, ("head", "kuberay-operator"))
    others = [end.name for end in ends(plan) if end.namespace not in (plan.namespace, plan.mirror_namespace)]
    to_gateway = {(source, "gateway", 8080) for source in (*own, *others)}
    metrics = {(reader, "gateway", port) for reader in readers for port in (8405, 8406)}
    asked = {("head", "gateway", 8405)}
    settled = {("worker", "gateway", 8405)} if kind == "tight" else set()
    assert reachable(policies_of(plan), plan) == among_ray | to_ray | to_gateway | metrics | asked | settled


#: Ways out by what they are for.
PRIVATE_DNS = {("neighbour", 53), ("api", 53)}
WEB = {("internet", 443), ("store", 443), ("resolver", 443)}
PUBLIC_API = WEB | {(host, 6443) for host, _ in WEB}
ANY_PRIVATE = {(host, port) for host in ("neighbour", "api") for port in OUT_PORTS}
PRIVATE_443 = {("neighbour", 443), ("api", 443)}
CREDENTIALS = {("credentials", 80)}
STATE = {(host, 6379) for host in ("neighbour", "api", "internet", "store", "resolver")}
ISSUER = {(host, 9000) for host in ("internet", "store", "resolver", "neighbour", "api")}
NAMED = {("store", port) for port in OUT_PORTS}
EXPECTED: dict[str, dict[str, set[tuple[str, int]]]] = {
    # Nobody knows here where the object store is, and private addresses are open.
    "kubernetes": {
        "worker": WEB | CREDENTIALS | ANY_PRIVATE,
        "head": PUBLIC_API | CREDENTIALS | ANY_PRIVATE,
        "mirror": WEB | CREDENTIALS | ANY_PRIVATE,
        "kuberay-operator": PUBLIC_API | ANY_PRIVATE,
    },
    # S3 has public addresses, and replicas have no way to the API.
    "eks": {
        "worker": WEB | CREDENTIALS | PRIVATE_DNS,
        "head": WEB | CREDENTIALS | PRIVATE_DNS | PRIVATE_443,
        "mirror": WEB | CREDENTIALS | PRIVATE_DNS,
        "kuberay-operator": PRIVATE_DNS | PRIVATE_443,
    },
    "eks with a store": {
        "worker": WEB | CREDENTIALS | PRIVATE_DNS,
        "head": WEB | CREDENTIALS | PRIVATE_DNS | PRIVATE_443 | STATE,
        "mirror": WEB | CREDENTIALS | PRIVATE_DNS,
        "kuberay-operator": PRIVATE_DNS | PRIVATE_443,
    },
    # No model needs the internet, so replicas reach the store and nothing else.
    "tight": {
        "worker": NAMED | CREDENTIALS | PRIVATE_DNS,
        "head": NAMED | CREDENTIALS | PUBLIC_API | ANY_PRIVATE,
        "mirror": NAMED | CREDENTIALS | PRIVATE_DNS,
        "kuberay-operator": PUBLIC_API | ANY_PRIVATE,
    },
}


def test_exactly_these_connections_out_of_the_stack_are_open(plan: Plan, request: pytest.FixtureRequest) -> None:
    """A pod has the rights of its own role: none gets those of the node, from the instance metadata."""
    expected = EXPECTED[request.node.callspec.params["plan"]]
    nothing = {"intruder": set[tuple[str, int]](), "impostor": set[tuple[str, int]]()}
    issuer = ISSUER if request.node.callspec.params["plan"] == "tight" else set()
    assert leaving(policies_of(plan), plan) == expected | nothing | {"gateway": PRIVATE_DNS | issuer}


def _opened_by_the_agent(policies: list[Policy], pod: End, address: str, port: int) -> bool:
    """What the VPC CNI makes of a pod's rules for addresses: one entry for a network, with the exceptions of each rule.

    aws-network-policy-agent v1.3.0, pkg/fwruleprocessor/fw_rule_processor.go, ComputeMapEntriesFromEndpointRules.
    """
    mine = [p for p in policies if p["metadata"]["namespace"] == pod.namespace]
    rules = [r for p in mine if _picks(p["spec"]["podSelector"], pod.labels) for r in p["spec"]["egress"]]
    blocks = [(peer["ipBlock"], rule) for rule in rules for peer in rule["to"] if "ipBlock" in peer]
    ports: dict[Any, set[int | None]] = {}
    excepted: dict[Any, set[Any]] = {}
    for block, rule in sorted(blocks, key=lambda one: ipaddress.ip_network(one[0]["cidr"]).prefixlen):
        network = ipaddress.ip_network(block["cidr"])
        if network.version == 6:
            continue  # in a cluster of IPv4
        if network not in ports:  # it inherits what wider ones open, unless they except it
            wider = [one for one in ports if network.subnet_of(one)]
            within = [one for one in wider if not any(network.subnet_of(less) for less in excepted[one])]
            ports[network], excepted[network] = {port for one in within for port in ports[one]}, set()
        ports[network] |= {one["port"] for one in rule.get("ports", []) if one.get("protocol", "TCP") == "TCP"}
        ports[network] |= set() if "ports" in rule else {None}
        excepted[network] |= {ipaddress.ip_network(one) for one in block.get("except", [])}
    for network in {less for ones in excepted.values() for less in ones} - set(ports):
        ports[network] = set()
    found = [one for one in ports if ipaddress.ip_address(address) in one]
    longest = max(found, key=lambda one: one.prefixlen, default=None)
    return longest is not None and bool({port, None} & ports[longest])


def test_the_vpc_cni_opens_the_addresses_that_kubernetes_opens(plan: Plan) -> None:
    """Its agent merges the rules of a pod: one way's exceptions shut what another opens for the same network."""
    policies = policies_of(plan)
    by_agent = {
        end.name: {
            (name, port)
            for name, address in OUTSIDE.items()
            for port in OUT_PORTS
            if _opened_by_the_agent(policies, end, address, port)
        }
        for end in ends(plan)
        if end.namespace in (plan.namespace, plan.mirror_namespace)
    }
    assert by_agent == leaving(policies, plan)


def test_dns_answers_where_no_address_matches_a_pod(plan: Plan) -> None:
    """With Cilium a block of addresses is for what is outside the cluster (cilium#9209); this address is in none."""
    policies = policies_of(plan)
    dns = End("dns", namespace="kube-system", labels={"k8s-app": "kube-dns"}, address=OUTSIDE["resolver"])
    asking = {end.name: end for end in ends(plan)}
    for end in (asking[name] for name in ("worker", "head", "gateway", "mirror", "kuberay-operator")):
        assert may_reach(policies, end, dns, 53, "UDP") and may_reach(policies, end, dns, 53)
        assert not may_reach(policies, end, replace(dns, labels={}), 53)


def test_a_gateway_class_may_run_its_proxy_in_the_stacks_namespace(tmp_path: Path) -> None:
    """Istio does, and `closed` would shut it out."""
    gateway = {"expose": "internal", "hostname": "m.example.com", "tlsSecret": "tls", "gatewayClass": "istio"}
    plan = planned(tmp_path, five_models(), gateway=gateway)
    policies, found = policies_of(plan), {end.name: end for end in ends(plan)}
    assert plan.front_door is not None
    assert may_reach(policies, found["internet"], found["proxy"], 443)
    assert may_reach(policies, found["proxy"], found["stranger"], 15012), "its control plane"
    assert may_reach(policies, found["proxy"], found["gateway"], plan.front_door.port)
    assert not may_reach(policies, found["proxy"], found["head"], 8265)
    assert not may_reach(policies, found["internet"], found["intruder"], 443)


def test_each_policy_matters(plan: Plan) -> None:
    """Shows that the tests above can fail."""
    policies = policies_of(plan)
    names = [policy["metadata"]["name"] for policy in policies]
    assert len(set(names)) == len(names), "Pulumi's resources are named by them"
    whole = reachable(policies, plan), leaving(policies, plan)
    for dropped in policies:
        rest = [policy for policy in policies if policy is not dropped]
        if dropped["metadata"]["name"] == "mirror-closed":
            continue  # for pods that are not there
        assert (reachable(rest, plan), leaving(rest, plan)) != whole, dropped["metadata"]["name"]


def test_a_pod_beside_the_mirror_jobs_reaches_nothing(plan: Plan) -> None:
    beside = End("beside", namespace=plan.mirror_namespace)
    policies = policies_of(plan)
    assert not [one for one in ends(plan) for port in OUT_PORTS if may_reach(policies, beside, one, port)]


def test_metrics_are_closed_where_nobody_is_named(tmp_path: Path) -> None:
    """`from: []` would mean everybody."""
    closed = planned(tmp_path, five_models(), kubernetes={"scrapers": []})
    found = {(source, port) for source, _, port in reachable(policies_of(closed), closed)}
    assert not found & {("prometheus", port) for port in (8405, 8406)}
    ray = {target for source, target, port in reachable(policies_of(closed), closed) if source == "prometheus"}
    assert ray == {"gateway"}, "with a key, as everybody"


def test_where_requests_settle_replicas_reach_the_gateway_by_its_pods_own_address(tmp_path: Path) -> None:
    """A Service would lead to another gateway than the one that asked."""
    plan, settling = (
        planned(tmp_path, five_models(), auth="keys", apiKeys={"a": {"secure": "v1:x"}}, gateway=limits)
        for limits in ({}, {"tokensPerMinute": 1000})
    )
    opened = reachable(policies_of(settling), settling) - reachable(policies_of(plan), plan)
    assert {(target, port) for _, target, port in opened} == {("gateway", 8405)}
    assert {source for source, _, _ in opened} == {"worker"}, "the head asks for queues anyway"
    assert "%[env(POD_IP)]:8405 " in gateway_files(settling).texts["haproxy.cfg"]
    pod = gateway_deployment(settling, "")["spec"]["template"]["spec"]
    (first,) = (one for one in pod["containers"] if one["name"] == "gateway")
    assert first["env"] == [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]


def test_what_our_pods_call_has_no_address_but_its_pods(plan: Plan) -> None:
    """The VPC CNI judges a Service's address by the Service's selector, not by the labels of its pods.

    amazon-network-policy-controller-k8s pkg/resolvers/endpoints.go
    """
    services = {one["metadata"]["name"]: one["spec"] for one in everything(plan) if one["kind"] == "Service"}
    called = {name: spec for name, spec in services.items() if name != "gateway"}
    assert set(called) == {SERVE_SERVICE, GATEWAY_QUEUES}
    assert {spec["clusterIP"] for spec in called.values()} == {"None"}
    (service,) = (one["spec"]["serveService"] for one in everything(plan) if one["kind"] == "RayService")
    assert service["metadata"]["name"] == SERVE_SERVICE
    assert service["spec"].items() <= called[SERVE_SERVICE].items(), "or KubeRay would have to change it"


def test_gateway_pods_of_an_earlier_release_reach_its_service_until_they_are_gone(plan: Plan) -> None:
    """It had an address, which the VPC CNI opens to a peer that the Service's own selector satisfies."""
    selector = {"ray.io/cluster": "fleet-x", "ray.io/serve": "true"}  # kuberay 1.6.2, BuildServeService
    (policy,) = (one for one in policies_of(plan) if one["metadata"]["name"] == "gateway")
    peers = [peer["podSelector"] for peer in policy["spec"]["egress"][0]["to"]]
    assert any(_picks(peer, selector) for peer in peers)


def test_before_the_operator_has_chosen_only_pods_of_an_earlier_release_serve(plan: Plan) -> None:
    """Of a new stack none, or the operator would call it ready with its first pod; of a live one those that it has."""
    (service,) = (one for one in everything(plan) if one["metadata"]["name"] == SERVE_SERVICE)
    picks = {"matchLabels": service["spec"]["selector"]}
    ray = [end for end in ends(plan) if end.name in ("head", "worker")]
    serves = [{**end.labels, "ray.io/serve": "true"} for end in ray]
    assert len(ray) == 2 and not any(_picks(picks, labels) for labels in serves)
    before = [{**one, "app.kubernetes.io/managed-by": "pulumi"} for one in serves]
    assert all(_picks(picks, labels) for labels in before)
