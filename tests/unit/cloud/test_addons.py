"""EKS judges an add-on's configuration by its schema; what our add-ons get passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.addons import AFTER_NODES, BEFORE_NODES
from tests.unit.cloud.test_judge import refused, role_with
from tests.unit.cloud.test_rules import Cluster
from tools.cloud.answers import Error
from tools.cloud.backends.addons import refuse_configuration
from tools.cloud.server import Listening


@pytest.fixture
def cluster(account: Listening) -> Cluster:
    return Cluster(account)


@pytest.mark.parametrize("spec", (*BEFORE_NODES, *AFTER_NODES), ids=lambda spec: spec.name)
def test_our_configurations_are_taken(spec: Any) -> None:
    if spec.configuration:
        refuse_configuration(spec.name, json.dumps(spec.configuration))


UNKNOWN = "is not defined in the schema and the schema does not allow additional properties"


@pytest.mark.parametrize(
    ("addon", "configuration", "said"),
    [
        ("vpc-cni", {"enableNetworkPolicy": True}, "$.enableNetworkPolicy: boolean found, string expected"),
        ("vpc-cni", {"enableNetworkPolicy": "yes"}, "$.enableNetworkPolicy"),
        ("vpc-cni", {"env": {"WARM_IP_TARGET": 5}}, "$.env.WARM_IP_TARGET: integer found, string expected"),
        ("vpc-cni", {"env": {"WARM_IPS": "5"}}, f"$.env.WARM_IPS: {UNKNOWN}"),
        ("coredns", {"replicas": 3}, f"$.replicas: {UNKNOWN}"),
        ("eks-node-monitoring-agent", {"dcgmAgent": {"tolerations": {}}}, "object found, array expected"),
        ("eks-node-monitoring-agent", {"dcgmAgent": {"hostNetwork": True}}, f"$.dcgmAgent.hostNetwork: {UNKNOWN}"),
        ("metrics-server", {"replicas": 1}, "has no configuration schema of metrics-server"),
    ],
)
def test_what_the_schema_does_not_take_is_refused(addon: str, configuration: dict[str, Any], said: str) -> None:
    with pytest.raises(Error) as refusal:
        refuse_configuration(addon, json.dumps(configuration))
    assert said in refusal.value.message


def test_wrong_configuration_values_are_refused_over_http(cluster: Cluster) -> None:
    wrong = {"clusterName": "c", "addonName": "vpc-cni", "configurationValues": '{"enableNetworkPolicy": true}'}
    status, code, message = refused(cluster.eks.create_addon, **wrong)
    assert (status, code) == (400, "InvalidParameterException")
    assert message == (
        "ConfigurationValue provided in request is not supported: Json schema validation failed with error: "
        "[$.enableNetworkPolicy: boolean found, string expected]"
    )


def test_the_default_version_follows_the_newest_one(cluster: Cluster) -> None:
    describe = cluster.eks.describe_addon_versions
    (addon,) = describe(addonName="kube-proxy", kubernetesVersion="1.35")["addons"]
    versions = [(one["addonVersion"], one["compatibilities"][0]["defaultVersion"]) for one in addon["addonVersions"]]
    assert versions == [("v1.35.0-eksbuild.3", False), ("v1.35.0-eksbuild.2", True)]
    assert refused(describe, addonName="none", kubernetesVersion="1.35")[0] == 404


def test_an_addons_role_is_an_association_that_ends_with_it(cluster: Cluster) -> None:
    eks, role, other = cluster.eks, pod_role(cluster, "cni"), pod_role(cluster, "other")
    addon = {"clusterName": "c", "addonName": "vpc-cni"}

    def roles() -> list[str]:
        found = eks.list_pod_identity_associations(clusterName="c")["associations"]
        ids = [one["associationId"] for one in found]
        described = (eks.describe_pod_identity_association(clusterName="c", associationId=id) for id in ids)
        return [one["association"]["roleArn"] for one in described]

    made = eks.create_addon(**addon, podIdentityAssociations=[{"serviceAccount": "aws-node", "roleArn": role}])
    (listed,) = eks.list_pod_identity_associations(clusterName="c")["associations"]
    assert (listed["namespace"], listed["ownerArn"]) == ("kube-system", made["addon"]["addonArn"])
    eks.update_addon(**addon, configurationValues="{}")
    assert roles() == [role], "an update without associations leaves them as they are"
    eks.update_addon(**addon, podIdentityAssociations=[{"serviceAccount": "aws-node", "roleArn": other}])
    assert roles() == [other]
    eks.delete_addon(**addon)
    assert roles() == []


def pod_role(cluster: Cluster, name: str) -> str:
    trust = policies.pod_trust(cluster_arn="arn:c", namespace="kube-system", service_account="aws-node")
    iam = cluster.cloud.client("iam")
    arn: str = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    return arn


def test_giving_a_role_to_an_addon_needs_pass_role(cluster: Cluster) -> None:
    role = pod_role(cluster, "cni")
    mine = role_with(cluster.cloud, {"Effect": "Allow", "Action": "eks:*", "Resource": "*"})
    wanted = {"clusterName": "c", "addonName": "vpc-cni"}
    create = cluster.cloud.client("eks", mine).create_addon
    status, code, message = refused(
        create, **wanted, podIdentityAssociations=[{"serviceAccount": "aws-node", "roleArn": role}]
    )
    assert (status, code) == (403, "AccessDeniedException")
    assert f"iam:PassRole on resource: {role} " in message
    create(**wanted)


def test_parts_of_a_cluster_are_tagged_by_their_arns(cluster: Cluster) -> None:
    eks = cluster.eks
    arn = eks.create_addon(clusterName="c", addonName="coredns", tags={"a": "1", "b": "2"})["addon"]["addonArn"]
    eks.tag_resource(resourceArn=arn, tags={"c": "3"})
    eks.untag_resource(resourceArn=arn, tagKeys=["a"])
    assert eks.list_tags_for_resource(resourceArn=arn)["tags"] == {"b": "2", "c": "3"}
    assert eks.describe_addon(clusterName="c", addonName="coredns")["addon"]["tags"] == {"b": "2", "c": "3"}
    absent = f"{arn.rpartition('/')[0]}/none"
    assert refused(eks.tag_resource, resourceArn=absent, tags={"a": "b"})[:2] == (404, "ResourceNotFoundException")
    cluster_arn = eks.describe_cluster(name="c")["cluster"]["arn"]
    eks.tag_resource(resourceArn=cluster_arn, tags={"a": "b"})
    assert eks.list_tags_for_resource(resourceArn=cluster_arn)["tags"] == {"a": "b"}
