"""Add-ons, access entries and Pod Identity associations over HTTP: boto3 reaches them like any other operation."""

from __future__ import annotations

import json

import pytest

from modelfleet.infra.aws import policies
from tests.unit.cloud.test_judge import ME, refused, role_with
from tests.unit.cloud.test_rules import Cluster
from tools.cloud.server import Listening

ADMIN_POLICY = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
SCOPE = {"type": "cluster"}


@pytest.fixture
def cluster(account: Listening) -> Cluster:
    return Cluster(account)


def test_an_addon_is_made_changed_and_deleted(cluster: Cluster) -> None:
    eks, addon = cluster.eks, {"clusterName": "c", "addonName": "coredns"}
    made = eks.create_addon(**addon, addonVersion="v1.12.4-eksbuild.1", tags={"a": "b"})["addon"]
    assert made["status"] == "ACTIVE"
    assert made["addonArn"].startswith("arn:aws:eks:us-west-2:123456789012:addon/c/coredns/")
    assert refused(eks.create_addon, **addon)[:2] == (409, "ResourceInUseException")
    eks.update_addon(**addon, configurationValues='{"replicaCount": 3}')
    assert eks.describe_addon(**addon)["addon"]["configurationValues"] == '{"replicaCount": 3}'
    assert refused(eks.update_addon, **addon, configurationValues="{")[:2] == (400, "InvalidParameterException")
    assert refused(eks.update_addon, **addon, addonVersion="latest")[:2] == (400, "InvalidParameterException")
    assert eks.list_addons(clusterName="c")["addons"] == ["coredns"]
    eks.delete_addon(**addon)
    assert refused(eks.describe_addon, **addon)[:2] == (404, "ResourceNotFoundException")
    absent = refused(eks.create_addon, clusterName="none", addonName="coredns")
    assert absent == (404, "ResourceNotFoundException", "No cluster found for name: none.")


def test_an_access_entry_is_for_a_principal_that_exists(cluster: Cluster) -> None:
    eks, role = cluster.eks, cluster.role("node")
    entry = {"clusterName": "c", "principalArn": role}
    assert refused(eks.associate_access_policy, **entry, policyArn=ADMIN_POLICY, accessScope=SCOPE)[0] == 404
    eks.create_access_entry(**entry)
    assert refused(eks.create_access_entry, **entry)[:2] == (409, "ResourceInUseException")
    for principal in (cluster.role("none"), "arn:aws:sts::123456789012:assumed-role/node/session"):
        found = refused(eks.create_access_entry, clusterName="c", principalArn=principal)
        assert found[:2] == (400, "InvalidParameterException")
    eks.associate_access_policy(**entry, policyArn=ADMIN_POLICY, accessScope=SCOPE)
    wrong = "arn:aws:iam::aws:policy/AdministratorAccess"
    assert refused(eks.associate_access_policy, **entry, policyArn=wrong, accessScope=SCOPE)[0] == 400
    (policy,) = eks.list_associated_access_policies(**entry)["associatedAccessPolicies"]
    assert (policy["policyArn"], policy["accessScope"]) == (ADMIN_POLICY, {"type": "cluster"})
    eks.delete_access_entry(**entry)
    assert eks.list_access_entries(clusterName="c")["accessEntries"] == []


def test_an_access_policy_is_for_entries_of_people_not_of_nodes(cluster: Cluster) -> None:
    entry = {"clusterName": "c", "principalArn": cluster.role("node")}
    cluster.eks.create_access_entry(**entry, type="EC2_LINUX")
    found = refused(cluster.eks.associate_access_policy, **entry, policyArn=ADMIN_POLICY, accessScope=SCOPE)
    assert found[:2] == (400, "InvalidRequestException")


def test_pod_identity_needs_a_role_that_trusts_it_to_tag_sessions(cluster: Cluster) -> None:
    eks, iam = cluster.eks, cluster.cloud.client("iam")
    wanted = {"clusterName": "c", "namespace": "n", "serviceAccount": "s", "roleArn": cluster.role("node")}
    assert refused(eks.create_pod_identity_association, **wanted)[:2] == (400, "InvalidParameterException")
    trust = policies.pod_trust(cluster_arn="arn:c", namespace="n", service_account="s")
    iam.update_assume_role_policy(RoleName="node", PolicyDocument=json.dumps(trust))
    made = eks.create_pod_identity_association(**wanted)["association"]
    assert refused(eks.create_pod_identity_association, **wanted)[:2] == (409, "ResourceInUseException")
    (listed,) = eks.list_pod_identity_associations(clusterName="c", namespace="n")["associations"]
    assert listed["associationId"] == made["associationId"]
    eks.delete_pod_identity_association(clusterName="c", associationId=made["associationId"])
    assert eks.list_pod_identity_associations(clusterName="c")["associations"] == []


def test_a_creation_that_is_asked_for_again_with_its_token_is_the_same(cluster: Cluster) -> None:
    """An SDK that waited in vain for an answer asks again, and must not be told that there is one already."""
    made = cluster.group("g", 0, 0, 1, clientRequestToken="t" * 36)
    first, again = (cluster.eks.create_nodegroup(**made)["nodegroup"] for _ in range(2))
    assert first["nodegroupArn"] == again["nodegroupArn"]
    found = refused(cluster.eks.create_nodegroup, **{**made, "clientRequestToken": "u" * 36})
    assert found[:2] == (409, "ResourceInUseException")


def test_what_belongs_to_a_cluster_ends_with_it(cluster: Cluster) -> None:
    cluster.eks.create_addon(clusterName="c", addonName="coredns")
    cluster.eks.delete_cluster(name="c")
    assert refused(cluster.eks.list_addons, clusterName="c")[:2] == (404, "ResourceNotFoundException")
    cluster.create(cluster.subnets)
    assert cluster.eks.list_addons(clusterName="c")["addons"] == []


def test_giving_a_role_to_eks_needs_pass_role(cluster: Cluster) -> None:
    """The permission that is forgotten most: without it whoever makes node groups could become any role."""
    make = {"Effect": "Allow", "Action": ["eks:CreateNodegroup", "eks:TagResource"], "Resource": "*"}
    mine = role_with(cluster.cloud, make)
    create = cluster.cloud.client("eks", mine).create_nodegroup
    status, code, message = refused(create, **cluster.group("g", 0, 0, 1))
    assert (status, code) == (403, "AccessDeniedException")
    assert f"{ME}iam:PassRole on resource: {cluster.role('node')} " in message
    document = json.dumps({"Version": "2012-10-17", "Statement": [make, _pass(cluster.role("node"))]})
    cluster.cloud.client("iam").put_role_policy(RoleName="some", PolicyName="all", PolicyDocument=document)
    create(**cluster.group("g", 0, 0, 1))


def _pass(role: str) -> dict[str, str]:
    return {"Effect": "Allow", "Action": "iam:PassRole", "Resource": role}
