"""The policy pack's rules: each catches violations and passes what modelfleet itself makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelfleet.infra.aws.addons import CNI
from modelfleet.infra.policy.rules import LIMITED, RULES, Limits, within_budget

TEMPLATE, CLUSTER = "aws:ec2/launchTemplate:LaunchTemplate", "aws:eks/cluster:Cluster"
GROUP, POLICY = "aws:eks/nodeGroup:NodeGroup", "aws:s3/bucketPolicy:BucketPolicy"
BLOCK = "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock"
ADDON = "aws:eks/addon:Addon"
RULE = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
CLOSED = dict.fromkeys(("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"), True)
EVERYBODY = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "*"}
DISK = {"deviceName": "/dev/xvda", "ebs": {"encrypted": "true"}}


def _policy(*statements: Any) -> dict[str, Any]:
    return {"policy": json.dumps({"Statement": list(statements)})}


@pytest.mark.parametrize(
    ("rule", "kind", "props"),
    [
        pytest.param("no-public-bucket", BLOCK, {**CLOSED, "blockPublicPolicy": False}, id="access-block-half-off"),
        pytest.param("no-public-bucket", "aws:s3/bucketAcl:BucketAcl", {"acl": "public-read"}, id="acl"),
        pytest.param("no-public-bucket", POLICY, _policy(EVERYBODY), id="policy-for-everybody"),
        pytest.param(
            "no-public-bucket", POLICY, _policy({**EVERYBODY, "Principal": {"AWS": "*"}}), id="policy-for-aws"
        ),
        pytest.param("no-unencrypted-volume", TEMPLATE, {"blockDeviceMappings": [{"ebs": {}}]}, id="plain-volume"),
        pytest.param("no-unencrypted-volume", TEMPLATE, {}, id="volume-left-to-the-account"),
        pytest.param("no-unencrypted-volume", "aws:ebs/volume:Volume", {}, id="own-volume"),
        pytest.param("no-unencrypted-volume", CLUSTER, {}, id="plain-kubernetes-secrets"),
        pytest.param("no-open-endpoint", CLUSTER, {"vpcConfig": {"endpointPublicAccess": True}}, id="no-cidrs"),
        pytest.param("no-open-endpoint", CLUSTER, {"vpcConfig": {}}, id="aws-default-is-public"),
        pytest.param(
            "no-open-endpoint",
            CLUSTER,
            {"vpcConfig": {"endpointPublicAccess": True, "publicAccessCidrs": ["0.0.0.0/0"]}},
            id="all-cidrs",
        ),
        pytest.param("no-open-endpoint", RULE, {"cidrIpv4": "0.0.0.0/0", "fromPort": 22, "toPort": 22}, id="ssh"),
        pytest.param("no-open-endpoint", RULE, {"cidrIpv6": "::/0", "ipProtocol": "-1"}, id="all-ports-v6"),
        pytest.param(
            "no-open-endpoint",
            "aws:ec2/securityGroup:SecurityGroup",
            {"ingress": [{"cidrBlocks": ["0.0.0.0/0"], "fromPort": 6379, "toPort": 6380}]},
            id="inline-rule",
        ),
        pytest.param("imdsv2-only", TEMPLATE, {}, id="aws-default-is-imdsv1"),
        pytest.param(
            "imdsv2-only",
            TEMPLATE,
            {"metadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 2}},
            id="metadata-for-pods",
        ),
        pytest.param("policies-enforced", ADDON, {"addonName": "vpc-cni"}, id="eks-default-enforces-nothing"),
        pytest.param(
            "policies-enforced",
            ADDON,
            {"addonName": "vpc-cni", "configurationValues": '{"enableNetworkPolicy": "false"}'},
            id="policies-off",
        ),
        pytest.param("tagged", GROUP, {"tags": {"team": "ml"}}, id="no-stack-tag"),
    ],
)
def test_a_rule_catches_a_violation(rule: str, kind: str, props: dict[str, Any]) -> None:
    assert list(RULES[rule](kind, props)), "the rule let it pass"


@pytest.mark.parametrize(
    ("kind", "props"),
    [
        pytest.param(BLOCK, CLOSED, id="access-block"),
        pytest.param(POLICY, _policy({**EVERYBODY, "Effect": "Deny"}), id="deny-for-everybody"),
        pytest.param(ADDON, {"addonName": "vpc-cni", "configurationValues": json.dumps(CNI)}, id="our-network-add-on"),
        pytest.param(ADDON, {"addonName": "coredns"}, id="another-add-on"),
        pytest.param(
            TEMPLATE,
            {
                "blockDeviceMappings": [DISK],
                "metadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 1},
                "tags": {"modelfleet.dev/stack": "dev"},
            },
            id="template",
        ),
        pytest.param(
            CLUSTER,
            {
                "encryptionConfig": {"resources": ["secrets"]},
                "vpcConfig": {"endpointPublicAccess": False},
                "tags": {"modelfleet.dev/stack": "dev"},
            },
            id="cluster",
        ),
        pytest.param(RULE, {"cidrIpv4": "10.0.0.0/16", "fromPort": 443, "toPort": 443}, id="from-inside"),
        pytest.param(RULE, {"cidrIpv4": "0.0.0.0/0", "fromPort": 443, "toPort": 443}, id="web"),
        pytest.param(POLICY, {"policy": "04da6b54-80e4-46f7-96ec-b56ff0331ba9"}, id="unknown-at-preview"),
    ],
)
def test_correct_resources_pass_all_rules(kind: str, props: dict[str, Any]) -> None:
    assert {name: list(rule(kind, props)) for name, rule in RULES.items() if list(rule(kind, props))} == {}


def test_only_allowed_regions_and_instance_types_pass() -> None:
    limits = Limits(regions=("us-west-2",), instance_types=("g6.xlarge",))
    assert list(LIMITED["allowed-region"](GROUP, {"region": "eu-west-1"}, limits))
    assert not list(LIMITED["allowed-region"](GROUP, {"region": "us-west-2"}, limits))
    assert list(LIMITED["allowed-instance-types"](GROUP, {"instanceTypes": ["g6.xlarge", "p4d.24xlarge"]}, limits))
    assert not list(LIMITED["allowed-instance-types"](GROUP, {"instanceTypes": ["g6.xlarge"]}, limits))
    block = {"instanceType": "p4de.24xlarge"}
    assert list(LIMITED["allowed-instance-types"](TEMPLATE, block, limits)), (
        "a Capacity Block's type is only in the template"
    )
    assert not list(LIMITED["allowed-instance-types"](TEMPLATE, {}, limits))
    nothing = Limits()
    assert not list(LIMITED["allowed-region"](GROUP, {"region": "eu-west-1"}, nothing))


@pytest.mark.parametrize(("limit", "said"), [(9.0, True), (10.0, False), (None, False)])
def test_the_budget_is_compared_with_all_groups_at_their_largest(limit: float | None, said: bool) -> None:
    groups = [
        ({"instanceTypes": ["a"], "scalingConfig": {"maxSize": 2}}, {}),
        ({"instanceTypes": ["a", "b"], "scalingConfig": {"maxSize": 1}}, {}),
        ({"scalingConfig": {"maxSize": 1}}, {"instanceType": "b"}),
    ]
    limits = Limits(max_usd_per_hour=limit, prices={"a": 1.0, "b": 4.0})
    assert bool(list(within_budget(groups, limits))) is said, (
        "2 x 1 USD, the dearer of 1 and 4, and a Capacity Block's 4"
    )


def test_the_groups_of_a_pools_zones_count_once() -> None:
    """Each of them may hold all nodes of the pool, and never all of them at once."""
    group: dict[str, Any] = {
        "instanceTypes": ["a"],
        "scalingConfig": {"maxSize": 2},
        "tags": {"modelfleet.dev/pool": "l4"},
    }
    other = {**group, "tags": {"modelfleet.dev/pool": "t4"}}
    groups: list[Any] = [(group, {}), (group, {}), (other, {})]
    assert not list(within_budget(groups, Limits(max_usd_per_hour=4.0, prices={"a": 1.0})))
    assert list(within_budget(groups, Limits(max_usd_per_hour=3.9, prices={"a": 1.0})))


def test_a_group_without_a_known_price_is_reported() -> None:
    group = {"instanceTypes": ["new"], "scalingConfig": {"maxSize": 2}}
    (sentence,) = within_budget([(group, {})], Limits(max_usd_per_hour=1.0))
    assert "no price is known for new" in sentence


def test_a_group_without_any_instance_type_is_reported() -> None:
    (sentence,) = within_budget([({"scalingConfig": {"maxSize": 2}}, {})], Limits(max_usd_per_hour=1.0))
    assert "names no instance type" in sentence, "EKS would use a t3.medium, and the budget would count nothing"
