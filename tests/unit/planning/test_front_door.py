"""The front door in the plan: what it is, what it costs, and what is refused before anything is made."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import FixedCost
from modelfleet.serving.config.errors import InputErrors
from tests.unit.planning.builders import model, planned, pool, stack

ZONE = {"expose": "internet", "hostname": "models.example.org", "zone": "example.org"}
INGRESS = {"expose": "internal", "hostname": "models.example.org", "ingressClass": "nginx", "tlsSecret": "tls"}
PARENT = {"expose": "internal", "hostname": "models.example.org", "parentGateway": "infra/public/https"}
WALL = "arn:aws:wafv2:{}:123456789012:regional/webacl/wall/0a1b"
ELSEWHERE = "arn:aws:acm:eu-west-1:123456789012:certificate/one"


def plan_of(gateway: dict[str, Any], *, target: str = "eks", **more: Any) -> Plan:
    settings = {"region": "us-east-1", "secrets": ("apiKeys",), "auth": "keys", **more}
    return planned(
        [model("org/small", "L4")],
        stack(pool("l4", instanceTypes=["g6.xlarge"]), target=target, gateway=gateway, **settings),
    )


def test_without_expose_nobody_outside_the_cluster_reaches_the_gateway() -> None:
    plan = plan_of({})
    assert plan.front_door is None
    assert all("load balancer" not in part.name for part in plan.fixed)


def test_a_zone_means_tls_a_name_and_a_load_balancer_for_everybody() -> None:
    door = plan_of(ZONE).front_door
    assert door is not None
    assert (door.internet, door.load_balancer, door.tls) == (True, True, True)
    assert door.base_url == "https://models.example.org/v1"
    assert door.allow_cidrs == ("0.0.0.0/0",)


def test_an_internal_door_without_a_name_is_for_private_networks_in_plain_text() -> None:
    door = plan_of({"expose": "internal"}).front_door
    assert door is not None
    assert (door.internet, door.tls, door.base_url) == (False, False, None)
    assert "0.0.0.0/0" not in door.allow_cidrs
    assert "10.0.0.0/8" in door.allow_cidrs


@pytest.mark.parametrize(("timeout_s", "idle_s"), [(60, 60), (3600, 3600), (4000, 4000), (7200, 4000)])
def test_the_load_balancer_waits_as_long_as_the_gateway_and_at_most_4000_s(timeout_s: int, idle_s: int) -> None:
    plan = plan_of({**ZONE, "timeoutS": timeout_s})
    assert plan.front_door is not None
    assert plan.front_door.idle_s == idle_s
    warned = [notice.sentence() for notice in plan.notices if "timeoutS" in notice.sentence()]
    assert bool(warned) is (timeout_s > idle_s), warned


def test_the_load_balancer_stands_in_the_plan_with_its_price() -> None:
    """0.0225 USD per hour in us-east-1 (prices.csv); a budget counts it."""
    without, with_door = plan_of({}), plan_of(ZONE)
    (line,) = (part for part in with_door.fixed if "load balancer" in part.name)
    assert line.usd_per_hour == 0.0225
    assert without.cost.max_usd_per_hour is not None
    assert with_door.cost.max_usd_per_hour == pytest.approx(without.cost.max_usd_per_hour + 0.0225 + 3 * 0.005)


def test_only_subnets_of_the_load_balancer_reach_the_port_where_addresses_are_believed() -> None:
    network = {"cidr": "10.0.0.0/16", "zones": 2}
    internet, internal = plan_of(ZONE, network=network), plan_of({"expose": "internal"}, network=network)
    assert internet.front_door is not None
    assert internal.front_door is not None
    assert internet.front_door.addresses == ("10.0.224.0/24", "10.0.225.0/24")
    assert internal.front_door.addresses == ("10.0.0.0/19", "10.0.32.0/19")


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "internet without keys": (ZONE, {"auth": "none"}, "modelfleet:auth: found none, but gateway.expose is internet"),
    "internet without TLS": ({"expose": "internet"}, {}, "gateway.expose: found 'internet' without TLS"),
    "a name that no certificate takes": (
        {**ZONE, "hostname": f"{'a' * 60}.example.org"},
        {},
        "gateway.hostname: found a name of 72 characters",
    ),
    "a name without a certificate": (
        {"expose": "internal", "hostname": "models.example.org"},
        {},
        "gateway.hostname: found 'models.example.org' without a certificate for it; name certificate or zone too",
    ),
    "a zone without a name": ({"expose": "internal", "zone": "example.org"}, {}, "gateway.zone: is for a name"),
    "a name outside its zone": (
        {**ZONE, "hostname": "models.badexample.org"},
        {},
        "gateway.hostname: found 'models.badexample.org', which is not in zone example.org",
    ),
    "a certificate of another region": (
        {"expose": "internal", "hostname": "models.example.org", "certificate": ELSEWHERE},
        {},
        "gateway.certificate: is in eu-west-1",
    ),
    "a name without a door": ({"hostname": "models.example.org"}, {}, "gateway.hostname: has no effect without"),
    "a network that never gets there": ({**ZONE, "allowCidrs": ["2001:db8::/32"]}, {}, "an IPv6 network, which never"),
    "a network that is none": ({**ZONE, "allowCidrs": ["office"]}, {}, "gateway.allowCidrs[0]: found 'office'"),
    "an Ingress on eks": ({**ZONE, "ingressClass": "nginx"}, {}, "gateway.ingressClass: is for an existing cluster's"),
    "internet in a network without public subnets": (
        ZONE,
        {"network": {"vpcId": "vpc-0123456789abcdef0", "privateSubnetIds": ["subnet-1", "subnet-2"]}},
        "network.publicSubnetIds: are missing",
    ),
    "on this machine": (
        {"expose": "internal"},
        {"target": "local"},
        "gateway.expose: found 'internal', but target local",
    ),
    "an Ingress of no class": (
        {**INGRESS, "ingressClass": None},
        {"target": "kubernetes"},
        "gateway.ingressClass: is missing",
    ),
    "an Ingress on the internet without TLS": (
        {**INGRESS, "expose": "internet", "tlsSecret": None},
        {"target": "kubernetes"},
        "gateway.expose: found 'internet' without TLS",
    ),
    "two ways in": (
        {**INGRESS, "gatewayClass": "envoy"},
        {"target": "kubernetes"},
        "gateway.gatewayClass: is one way in, and ingressClass another",
    ),
    "a secret for somebody else's Gateway": (
        {**PARENT, "tlsSecret": "tls"},
        {"target": "kubernetes"},
        "gateway.tlsSecret: is for a Gateway or an Ingress of the stack",
    ),
    "a Gateway on the internet without TLS": (
        {"expose": "internet", "hostname": "models.example.org", "gatewayClass": "envoy"},
        {"target": "kubernetes"},
        "gateway.expose: found 'internet' without TLS",
    ),
    "a web ACL of another region": (
        {**ZONE, "webAcl": WALL.format("eu-west-1")},
        {},
        "gateway.webAcl: is in eu-west-1",
    ),
    "a web ACL on another cluster": (
        {**INGRESS, "webAcl": WALL.format("us-east-1")},
        {"target": "kubernetes"},
        "gateway.webAcl: is for the load balancer that target eks makes",
    ),
    "a zone of AWS elsewhere": (
        {**INGRESS, "zone": "example.org"},
        {"target": "kubernetes"},
        "gateway.zone: is for the load balancer that target eks makes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_door_that_is_open_to_strangers_or_leads_nowhere_is_refused(case: str) -> None:
    gateway, more, said = REFUSED[case]
    with pytest.raises(InputErrors) as refused:
        plan_of(gateway, **more)
    assert said in str(refused.value)


def test_addresses_on_the_internet_stand_in_the_plan_with_their_price() -> None:
    """0.005 USD per hour for each (prices.csv): of the NAT gateway, and of the load balancer in three zones."""
    without, with_door = ((p.count, p.usd_each) for plan in (plan_of({}), plan_of(ZONE)) for p in addresses(plan))
    assert (without, with_door) == ((1, 0.005), (4, 0.005))


def addresses(plan: Plan) -> list[FixedCost]:
    return [part for part in plan.fixed if "IPv4" in part.name]


@pytest.mark.parametrize(
    ("named", "parent"),
    [
        ({"parentGateway": "infra/public/https"}, ("infra", "public", "https", None)),
        ({"gatewayClass": "envoy", "tlsSecret": "tls"}, ("modelfleet-test", "gateway", "https", "envoy")),
    ],
    ids=["one that exists", "of a class"],
)
def test_a_gateway_of_the_gateway_api_is_a_door_too(
    named: dict[str, Any], parent: tuple[str, str, str, str | None]
) -> None:
    door = plan_of({"expose": "internal", "hostname": "models.example.org", **named}, target="kubernetes").front_door
    assert door is not None
    assert (door.parent_namespace, door.parent, door.listener, door.gateway_class) == parent
    assert door.base_url == "https://models.example.org/v1"


def test_an_ingress_with_a_class_and_a_secret_is_a_door_on_another_cluster() -> None:
    door = plan_of(INGRESS, target="kubernetes").front_door
    assert door is not None
    assert (door.load_balancer, door.base_url) == (False, "https://models.example.org/v1")
