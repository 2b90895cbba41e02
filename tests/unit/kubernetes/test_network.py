"""Who can reach what: evaluates the rendered NetworkPolicies as Kubernetes defines them.

`tests/nodes/test_policies.py` proves each line by a connection; for quick runs this file applies the rules of
https://kubernetes.io/docs/concepts/services-networking/network-policies/. A connection is open if the source's egress
and the target's ingress both allow it. A pod that no policy selects is open.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.network import network_policies
from modelfleet.infra.planning import Plan
from tests.cluster.fleet import five_models, planned

Policy = dict[str, Any]
OURS = "modelfleet-dev"
#: The label that KubeRay puts on its pods; `tests/cluster` finds them by it.
RAY = {"ray.io/is-ray-node": "yes"}
PORTS = {"gcs": 6379, "ray client": 10001, "dashboard": 8265, "serve": 8000, "ray metrics": 8080, "any other": 30123}


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
    if ports is not None and not any(p["port"] == port and p.get("protocol", "TCP") == protocol for p in ports):
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
            name = labels["app.kubernetes.io/name"]
            yield End(name, labels=labels)
        elif manifest["kind"] == "RayService":
            config = manifest["spec"]["rayClusterConfig"]
            for kind, group in (("head", config["headGroupSpec"]), ("worker", config["workerGroupSpecs"][0])):
                yield End(kind, labels={**group["template"]["metadata"]["labels"], **RAY})
    yield End("intruder")
    yield End("stranger", namespace="default", labels=RAY)
    yield End("prometheus", namespace="monitoring")
    yield End("dns", namespace="kube-system")
    yield End("internet", namespace="", address="203.0.113.9")
    yield End("metadata", namespace="", address="169.254.169.254")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planned(tmp_path, five_models())


def reachable(policies: list[Policy], plan: Plan) -> set[tuple[str, str, int]]:
    """Every open connection to a pod of the stack, on every port that the stack listens on, and on one more."""
    found = {end.name: end for end in ends(plan)}
    targets = [end for end in found.values() if end.namespace == OURS and end.name != "intruder"]
    ports = {*PORTS.values(), 8405, 8406}
    return {
        (source.name, target.name, port)
        for source in found.values()
        for target in targets
        for port in ports
        if source.name != target.name and may_reach(policies, source, target, port)
    }


def policies_of(plan: Plan) -> list[Policy]:
    return [manifest for manifest in everything(plan) if manifest["kind"] == "NetworkPolicy"]


def test_exactly_these_connections_into_the_stack_are_open(plan: Plan) -> None:
    """The Ray dashboard runs any code that it receives, and the control store is not protected either."""
    among_ray = {
        (source, target, port)
        for source, target in (("head", "worker"), ("worker", "head"))
        for port in (*PORTS.values(), 8405, 8406)
    }
    to_ray = {
        (source, target, port)
        for target in ("head", "worker")
        for source, port in (
            ("gateway", 8000),
            ("kuberay-operator", 8000),
            ("kuberay-operator", 8265),
            ("prometheus", 8080),
        )
    }
    # The Ingress controller decides where clients come from, and every request needs a key. Mirror Jobs and Ray reach
    # the internet, and so the gateway; the operator reaches the internet because of the API server.
    anybody = ("head", "worker", "mirror", "kuberay-operator", "stranger", "prometheus", "dns", "internet", "metadata")
    to_gateway = {(source, "gateway", 8080) for source in anybody}
    metrics = {("prometheus", "gateway", port) for port in (8405, 8406)}
    assert reachable(policies_of(plan), plan) == among_ray | to_ray | to_gateway | metrics


@pytest.mark.parametrize(
    ("source", "target", "port", "protocol", "expected"),
    [
        ("gateway", "dns", 53, "UDP", True),
        ("gateway", "internet", 443, "TCP", False),
        ("worker", "dns", 53, "UDP", True),
        ("worker", "internet", 443, "TCP", True),
        ("worker", "metadata", 80, "TCP", False),
        ("mirror", "internet", 443, "TCP", True),
        ("mirror", "metadata", 80, "TCP", False),
        ("kuberay-operator", "metadata", 80, "TCP", False),
        ("intruder", "internet", 443, "TCP", False),
        ("intruder", "dns", 53, "UDP", False),
    ],
)
def test_connections_out_of_the_stack(
    plan: Plan, source: str, target: str, port: int, protocol: str, expected: bool
) -> None:
    """A pod has the rights of its own role. No pod gets those of the node, from the instance metadata."""
    found = {end.name: end for end in ends(plan)}
    assert may_reach(policies_of(plan), found[source], found[target], port, protocol) is expected


@pytest.mark.parametrize("dropped", ["closed", "ray", "gateway", "kuberay-operator", "mirror"])
def test_each_policy_matters(plan: Plan, dropped: str) -> None:
    """Shows that the tests above can fail."""
    rest = [policy for policy in policies_of(plan) if policy["metadata"]["name"] != dropped]
    assert len(rest) == len(policies_of(plan)) - 1
    found = {end.name: end for end in ends(plan)}
    outside = [(a, b) for a in found.values() for b in found.values() if not b.namespace]
    ways = [
        (
            reachable(some, plan),
            {(a.name, b.name) for a, b in outside if may_reach(some, a, b, 443)},
        )
        for some in (policies_of(plan), rest)
    ]
    assert ways[0] != ways[1]


def test_the_vpc_cni_opens_the_address_of_the_service_that_the_gateway_calls(plan: Plan) -> None:
    """It judges the Service's address and looks at the Service's selector, not at the labels of its pods.

    With the label of Ray's pods alone, no request on EKS would have reached a model.
    """
    selector = {"ray.io/cluster": "fleet-x", "ray.io/serve": "true"}  # kuberay 1.6.2, BuildServeService
    (policy,) = (one for one in network_policies(plan) if one["metadata"]["name"] == "gateway")
    to_serve = policy["spec"]["egress"][0]
    assert any(_picks(peer["podSelector"], selector) for peer in to_serve["to"])
