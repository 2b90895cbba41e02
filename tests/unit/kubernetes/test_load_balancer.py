"""The cluster's half of a load balancer on EKS: its controller, what binds the gateway's pods to it, who gets in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.gateway import base_url
from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.load_balancer import custom_resource_definitions, target_group_binding
from modelfleet.infra.names import LOAD_BALANCER_ACCOUNT
from modelfleet.infra.planning import Plan
from tests.cluster.fleet import model, planned

DOOR = {"expose": "internet", "hostname": "models.example.org", "zone": "example.org"}
NETWORK = {"cidr": "10.0.0.0/16", "zones": 2}
ARN = "arn:aws:elasticloadbalancing:us-west-2:123456789012:targetgroup/any/0123456789abcdef"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_of(tmp_path_factory.mktemp("door"), DOOR)


def plan_of(root: Path, gateway: dict[str, Any]) -> Plan:
    keys: dict[str, Any] = {"auth": "keys", "apiKeys": {"one": {"secure": "v1:AAAA:AAAA"}}}
    return planned(root, [model("org/chat", "L4")], target="eks", gateway=gateway, network=NETWORK, **keys)


def one(plan: Plan, kind: str, name: str) -> dict[str, Any]:
    (found,) = (
        manifest
        for manifest in everything(plan, cluster_name="modelfleet-dev")
        if manifest["kind"] == kind and manifest["metadata"]["name"] == name
    )
    return found


def test_without_a_front_door_nothing_of_it_is_in_the_cluster(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {})
    text = str(everything(plan, cluster_name="modelfleet-dev"))
    assert not [word for word in ("elbv2", LOAD_BALANCER_ACCOUNT, "readinessGates", ":8081") if word in text]
    assert custom_resource_definitions(plan) == []


def test_a_gateway_pod_is_ready_only_when_the_load_balancer_sends_it_requests(plan: Plan) -> None:
    """Otherwise a roll ends the old pods while the load balancer does not know the new ones yet."""
    (binding,) = target_group_binding(plan, ARN, "door")
    pod = one(plan, "Deployment", "gateway")["spec"]["template"]["spec"]
    condition = f"target-health.elbv2.k8s.aws/{binding['metadata']['name']}"
    assert pod["readinessGates"] == [{"conditionType": condition}]
    service = one(plan, "Service", "gateway")["spec"]
    assert binding["spec"]["serviceRef"]["name"] == "gateway"
    assert binding["spec"]["serviceRef"]["port"] in {port["name"] for port in service["ports"]}
    assert {"name": "door", "containerPort": 8081} in pod["containers"][0]["ports"]


def test_the_binding_says_all_that_the_controllers_webhook_would_add(plan: Plan) -> None:
    """No webhook of the controller is installed: without a target type it refuses the binding."""
    (binding,) = target_group_binding(plan, ARN, "door")
    (crd,) = (c for c in custom_resource_definitions(plan) if c["spec"]["names"]["kind"] == "TargetGroupBinding")
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert set(schema["required"]) <= set(binding["spec"]) <= set(schema["properties"])
    for key in ("targetGroupARN", "targetType", "ipAddressType"):
        assert binding["spec"][key], key
    assert not [m for m in everything(plan, cluster_name="c") if "Webhook" in m["kind"]]


def test_the_controller_only_reads_in_the_cluster_but_for_pods_readiness_and_its_own_objects(plan: Plan) -> None:
    name = LOAD_BALANCER_ACCOUNT
    roles = [one(plan, "Role", name), one(plan, "ClusterRole", f"{plan.namespace}-{name}")]
    writes = {
        kind
        for role in roles
        for rule in role["rules"]
        for kind in rule["resources"]
        if not set(rule["verbs"]) <= {"get", "list", "watch"}
    }
    assert writes == {"events", "pods/status", "targetgroupbindings", "targetgroupbindings/status"}
    assert "secrets" not in str(roles)


def test_the_controller_is_told_what_it_would_ask_instance_metadata_for(plan: Plan) -> None:
    """Pods do not reach instance metadata, and the controller ends without region and VPC (its issues 2231, 4307)."""
    pod = one(plan, "Deployment", LOAD_BALANCER_ACCOUNT)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    assert arguments["aws-region"] == plan.region
    assert arguments["aws-vpc-tags"] == "modelfleet.dev/stack=dev"
    assert arguments["cluster-name"] == "modelfleet-dev"
    assert arguments["watch-namespace"] == plan.namespace
    (certificate,) = pod["initContainers"]
    assert all(f"{arguments['webhook-cert-dir']}/{file}" in certificate["command"] for file in ("tls.key", "tls.crt"))


@pytest.mark.parametrize(
    ("gateway", "networks"),
    [
        (DOOR, {"10.0.224.0/24", "10.0.225.0/24"}),
        ({"expose": "internal"}, {"10.0.0.0/19", "10.0.32.0/19"}),
    ],
    ids=["internet", "internal"],
)
def test_only_the_load_balancers_subnets_reach_the_port_where_addresses_are_believed(
    tmp_path: Path, gateway: dict[str, Any], networks: set[str]
) -> None:
    rules = one(plan_of(tmp_path, gateway), "NetworkPolicy", "gateway")["spec"]["ingress"]
    (door,) = (rule for rule in rules if {"port": 8081} in rule["ports"])
    assert {peer["ipBlock"]["cidr"] for peer in door["from"]} == networks


def test_a_pod_that_ends_keeps_its_port_open_until_the_load_balancer_knows(plan: Plan, tmp_path: Path) -> None:
    def leave_s(plan: Plan) -> int:
        pod = one(plan, "Deployment", "gateway")["spec"]["template"]["spec"]
        return int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])

    assert leave_s(plan) == leave_s(plan_of(tmp_path, {})) + 15


@pytest.mark.parametrize(
    ("gateway", "expected"),
    [
        (DOOR, "https://models.example.org/v1"),
        ({"expose": "internal"}, "http://internal-any.elb.amazonaws.com/v1"),
        ({}, "http://gateway.modelfleet-dev.svc.cluster.local/v1"),
    ],
    ids=["host name", "load balancer", "none"],
)
def test_the_base_url_is_what_a_client_uses(tmp_path: Path, gateway: dict[str, Any], expected: str) -> None:
    assert base_url(plan_of(tmp_path, gateway), "internal-any.elb.amazonaws.com") == expected
