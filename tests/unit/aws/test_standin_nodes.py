"""The stand-in is as strict as EKS about nodes: who may join, which sizes fit together, which zones a cluster has."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from moto import mock_aws

from modelfleet.infra.aws.node_groups import NODE_POLICIES
from modelfleet.infra.aws.user_data import node_config, user_data
from modelfleet.infra.provider import Call, PartlyMade, Refused
from tools.standin.aws.node_join import needs, why_nodes_cannot_join
from tools.standin.aws.resources import eks_cluster, eks_nodegroup
from tools.standin.aws.session import Aws

REGION = "us-west-2"
OURS = user_data(node_config(gpu=True))
(CLUSTER,), (GROUP,) = eks_cluster.RESOURCES, eks_nodegroup.RESOURCES
SIZES = {"minSize": 0, "desiredSize": 0, "maxSize": 2}


class Account(Aws):
    """A session whose calls moto takes in this process, without a server."""

    def endpoint(self, service: str) -> Any:
        return None


@pytest.fixture(scope="module")
def session() -> Iterator[Aws]:
    """One account for the whole file: moto takes seconds to load AWS's own policies."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
        with mock_aws():
            yield Account(REGION, {}, {}, keys)


@pytest.fixture(scope="module")
def iam(session: Aws) -> Any:
    return session.client("iam", "us-east-1")


@pytest.fixture(scope="module")
def role(iam: Any) -> str:
    """A node role as our program makes it."""
    return make_role(iam, "node", *NODE_POLICIES)


def make_role(iam: Any, name: str, *managed: str) -> str:
    arn: str = iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    for policy in managed:
        iam.attach_role_policy(RoleName=name, PolicyArn=f"arn:aws:iam::aws:policy/{policy}")
    return arn


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def changed(**spec: Any) -> str:
    config = node_config(gpu=True)
    return user_data({**config, "spec": {**config["spec"], **spec}})


def test_nodes_of_our_role_and_user_data_join(iam: Any, role: str) -> None:
    assert role
    assert why_nodes_cannot_join(iam, "node", OURS) == ""
    assert why_nodes_cannot_join(iam, "node", None) == "", "EKS writes all of the user data itself"


@pytest.mark.parametrize("need", needs(), ids=lambda need: need["action"])
def test_a_role_that_may_not_do_what_a_node_needs_keeps_nodes_away(iam: Any, need: Any) -> None:
    name = need["action"].replace(":", "-")
    make_role(iam, name, *NODE_POLICIES)
    statement = {"Effect": "Deny", "Action": need["action"], "Resource": "*"}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    iam.put_role_policy(RoleName=name, PolicyName="deny", PolicyDocument=json.dumps(document))
    problem = why_nodes_cannot_join(iam, name, OURS)
    assert problem.startswith("NodeCreationFailure: Instances failed to join the kubernetes cluster")
    assert f"lacks {need['action']}, needed by" in problem


def test_the_minimal_policy_is_not_enough_for_nodeadm(iam: Any) -> None:
    make_role(iam, "minimal", "AmazonEKSWorkerNodeMinimalPolicy", "AmazonEC2ContainerRegistryPullOnly")
    assert "lacks ec2:DescribeInstances" in why_nodes_cannot_join(iam, "minimal", OURS)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        pytest.param(encoded("#!/bin/sh\ntrue\n"), "not in the MIME multipart format", id="a script"),
        pytest.param("not base64!", "not in the MIME multipart format", id="plain text"),
        pytest.param(user_data({"kind": "NodeConfig", "apiVersion": "v1"}), "found ('v1', 'NodeConfig')", id="kind"),
        pytest.param(changed(featureGate={"FastImagePull": True}), "has no featureGate", id="a wrong key"),
        pytest.param(changed(featureGates={"FastImagesPull": True}), "has no FastImagesPull", id="a wrong gate"),
        pytest.param(changed(featureGates={"InstanceIdNodeName": True}), "access entry of type EC2", id="named by id"),
    ],
)
def test_user_data_that_nodeadm_would_not_take_keeps_nodes_away(iam: Any, role: str, written: str, said: str) -> None:
    assert said in why_nodes_cannot_join(iam, role.rpartition("/")[2], written)


# --- the resource types ------------------------------------------------------------------------------------


def call(session: Aws) -> Call[Aws]:
    return Call(session, "urn::x", "x", "x", 0.0, lambda line: None)


@pytest.fixture(scope="module")
def subnets(session: Aws) -> dict[str, str]:
    """A subnet per zone."""
    ec2 = session.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    made = {}
    for number, zone in enumerate("abc"):
        where = {"CidrBlock": f"10.0.{number}.0/24", "AvailabilityZone": f"{REGION}{zone}"}
        made[zone] = ec2.create_subnet(VpcId=vpc, **where)["Subnet"]["SubnetId"]
    return made


@pytest.fixture(scope="module")
def cluster(session: Aws, iam: Any, subnets: dict[str, str]) -> dict[str, Any]:
    """A cluster over zones a and b: its state."""
    inputs = {
        "name": "c",
        "roleArn": make_role(iam, "cluster"),
        "vpcConfig": {"subnetIds": [subnets["a"], subnets["b"]]},
    }
    return {**inputs, **CLUSTER.create(call(session), inputs).outputs}


def group_inputs(role: str, subnets: dict[str, str], **more: Any) -> dict[str, Any]:
    usual = {"clusterName": "c", "nodeGroupNamePrefix": "l4-", "nodeRoleArn": role, "subnetIds": [subnets["a"]]}
    return {**usual, "scalingConfig": SIZES, "instanceTypes": ["g6.xlarge"], **more}


@pytest.mark.usefixtures("cluster")
def test_a_group_whose_nodes_cannot_join_is_made_and_fails_until_it_is_replaced(
    session: Aws, iam: Any, subnets: dict[str, str]
) -> None:
    inputs = group_inputs(make_role(iam, "bare"), subnets)
    with pytest.raises(PartlyMade) as failed:
        GROUP.create(call(session), inputs)
    assert "unexpected state 'CREATE_FAILED'" in failed.value.reasons[0]
    assert failed.value.outputs["status"] == "CREATE_FAILED"
    with pytest.raises(Refused, match="mend the cause, then replace it"):
        GROUP.update(call(session), failed.value.id, {**inputs, **failed.value.outputs}, inputs)  # type: ignore[misc]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((3, 2, 4), "Minimum capacity 3 can't be greater than desired size 2"),
        ((0, 3, 2), "desired capacity 3 can't be greater than max size 2"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_as_eks_refuses_them(
    session: Aws, role: str, subnets: dict[str, str], sizes: tuple[int, int, int], said: str
) -> None:
    inputs = group_inputs(role, subnets)
    made = GROUP.create(call(session), inputs)
    wrong = {**inputs, "scalingConfig": dict(zip(("minSize", "desiredSize", "maxSize"), sizes, strict=True))}
    with pytest.raises(Refused, match=f"CreateNodegroup: InvalidParameterException: {said}"):
        GROUP.create(call(session), wrong)
    with pytest.raises(Refused, match=f"UpdateNodegroupConfig: InvalidParameterException: {said}"):
        GROUP.update(call(session), made.id, {**inputs, **made.outputs}, wrong)  # type: ignore[misc]


@pytest.mark.usefixtures("cluster")
def test_the_live_size_of_a_group_can_be_read(session: Aws, role: str, subnets: dict[str, str]) -> None:
    functions = {one.token.rpartition(":")[2]: one.call for one in (*eks_cluster.INVOKES, *eks_nodegroup.INVOKES)}
    assert functions["getClusters"](session, {})["names"] == ["c"]
    name = GROUP.create(call(session), group_inputs(role, subnets, tags={"Name": "here"})).outputs["nodeGroupName"]
    assert name in functions["getNodeGroups"](session, {"clusterName": "c"})["names"]
    read = functions["getNodeGroup"](session, {"clusterName": "c", "nodeGroupName": name})
    assert (read["scalingConfigs"], read["tags"]) == ([SIZES], {"Name": "here"})


def test_a_cluster_keeps_the_zones_that_it_was_made_with(
    session: Aws, cluster: dict[str, Any], subnets: dict[str, str]
) -> None:
    more = {**cluster, "vpcConfig": {"subnetIds": list(subnets.values())}}
    with pytest.raises(Refused, match="exact set of AZs 'us-west-2a,us-west-2b' in which subnets were provided"):
        CLUSTER.update(call(session), "c", cluster, more)  # type: ignore[misc]
    other = {**cluster, "vpcConfig": {"subnetIds": [subnets["b"], subnets["a"]]}}
    assert CLUSTER.update(call(session), "c", cluster, other)  # type: ignore[misc]
