"""Which nodes join, what they look like to the cluster, and who reaches its API server."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import Any

import pytest

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.user_data import node_config, user_data
from tests.unit.cloud.conftest import NODE
from tests.unit.cloud.test_rules import Cluster, switched
from tools.cloud.app import HERE, NODES
from tools.cloud.joining import needs
from tools.cloud.reach import NOBODY
from tools.cloud.server import Listening

OURS = user_data(node_config(gpu=True))
JOINING = "Instances failed to join the kubernetes cluster"


@pytest.fixture
def cluster(account: Listening) -> Cluster:
    return Cluster(account)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def changed(**spec: Any) -> str:
    config = node_config(gpu=True)
    return user_data({**config, "spec": {**config["spec"], **spec}})


def test_nodes_of_our_user_data_join_and_look_as_their_group_says(cluster: Cluster) -> None:
    data = {
        "UserData": OURS,
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 500}}],
    }
    labels = {"modelfleet.dev/pool": "l4"}
    taint = {"key": "nvidia.com/gpu", "value": "true", "effect": "NO_SCHEDULE"}
    made = cluster.group("l4", 1, 1, 2, instanceTypes=["g6.2xlarge"], labels=labels, taints=[taint])
    cluster.eks.create_nodegroup(**made, launchTemplate=cluster.template("l4", data))
    assert cluster.live("l4")["status"] == "ACTIVE"
    (node,) = nodes(cluster)
    assert node["taints"] == [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}]
    assert (
        node["labels"].items()
        >= {
            "modelfleet.dev/pool": "l4",
            "eks.amazonaws.com/capacityType": "ON_DEMAND",
            "node.kubernetes.io/instance-type": "g6.2xlarge",
            "topology.kubernetes.io/zone": "us-west-2a",
        }.items()
    )
    offered = node["allocatable"]
    # 8 vCPUs less 6, 1, 0.5 twice and 0.25 % four times; 58 pods; 450 GB of NVMe less file system, 10 % and 1 GiB
    assert (offered["cpu"], offered["pods"], offered["nvidia.com/gpu"]) == (7910, 58, 1)
    assert offered["memory"] == (30310 - (11 * 58 + 255) - 100) * 2**20
    assert offered["ephemeral-storage"] == int(450e9 * 0.98 * 0.9) - 2**30


def nodes(cluster: Cluster) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{cluster.cloud.url}{NODES}?us-west-2", timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)
        return found


@pytest.mark.parametrize("need", needs(), ids=lambda need: need["action"])
def test_a_role_that_may_not_do_what_a_node_needs_keeps_nodes_away(cluster: Cluster, need: Any) -> None:
    statement = {"Effect": "Deny", "Action": need["action"], "Resource": "*"}
    document = json.dumps(policies.document([NODE, statement]))
    cluster.cloud.client("iam").put_role_policy(RoleName="node", PolicyName="join", PolicyDocument=document)
    cluster.eks.create_nodegroup(**cluster.group("g", 0, 0, 1))
    code, message = cluster.issue("g")
    assert (code, message.startswith(JOINING)) == ("NodeCreationFailure", True)
    assert f"lacks {need['action']}, needed by" in message
    assert nodes(cluster) == []


@pytest.mark.parametrize(
    ("written", "said"),
    [
        pytest.param(encoded("#!/bin/sh\ntrue\n"), "not in the MIME multipart format", id="a script"),
        pytest.param(user_data({"kind": "NodeConfig", "apiVersion": "v1"}), "found ('v1', 'NodeConfig')", id="kind"),
        pytest.param(changed(featureGate={"FastImagePull": True}), "has no featureGate", id="a wrong key"),
        pytest.param(changed(featureGates={"FastImagesPull": True}), "has no FastImagesPull", id="a wrong gate"),
        pytest.param(changed(featureGates={"InstanceIdNodeName": True}), "access entry of type EC2", id="named by id"),
    ],
)
def test_user_data_that_nodeadm_would_not_take_keeps_nodes_away(cluster: Cluster, written: str, said: str) -> None:
    template = cluster.template("t", {"UserData": written})
    cluster.eks.create_nodegroup(**cluster.group("g", 0, 0, 1, launchTemplate=template))
    assert said in cluster.issue("g")[1]


def test_a_node_reaches_the_api_server_and_aws_or_does_not_join(cluster: Cluster) -> None:
    ec2 = cluster.cloud.client("ec2")
    vpc = ec2.describe_subnets(SubnetIds=cluster.subnets)["Subnets"][0]["VpcId"]
    other = ec2.create_security_group(GroupName="own", Description="own", VpcId=vpc)["GroupId"]
    config = cluster.eks.update_cluster_config
    made = 0

    def problem(**data: Any) -> str:
        nonlocal made
        made += 1
        name = f"g{made}"
        template = {"launchTemplate": cluster.template(name, data)} if data else {}
        cluster.eks.create_nodegroup(**cluster.group(name, 0, 0, 1, **template))
        return "" if cluster.live(name)["status"] == "ACTIVE" else cluster.issue(name)[1]

    assert problem() == ""
    config(name="c", resourcesVpcConfig={"publicAccessCidrs": ["198.51.100.0/24"]})
    assert "the public endpoint takes 198.51.100.0/24 only, and nodes come from" in problem()
    config(name="c", resourcesVpcConfig={"endpointPrivateAccess": True, "endpointPublicAccess": False})
    assert problem() == "", "EKS's own group lets in who has it"
    assert f"no rule of the cluster's security group lets {other} in on 443" in problem(SecurityGroupIds=[other])
    own = cluster.eks.describe_cluster(name="c")["cluster"]["resourcesVpcConfig"]["clusterSecurityGroupId"]
    rule = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "UserIdGroupPairs": [{"GroupId": other}]}
    ec2.authorize_security_group_ingress(GroupId=own, IpPermissions=[rule])
    assert problem(SecurityGroupIds=[other]) == ""
    (table,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    ec2.delete_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0")
    assert "no way to the internet and no endpoint for ec2, ecr.api, ecr.dkr, eks-auth, s3" in problem()
    for service in ("ec2", "ecr.api", "ecr.dkr", "eks-auth"):
        where = {"ServiceName": f"com.amazonaws.us-west-2.{service}", "VpcEndpointType": "Interface"}
        ec2.create_vpc_endpoint(VpcId=vpc, SubnetIds=cluster.subnets, **where)
    assert problem().endswith("no endpoint for s3)")
    tables = {"RouteTableIds": [table["RouteTableId"]], "VpcEndpointType": "Gateway"}
    ec2.create_vpc_endpoint(VpcId=vpc, ServiceName="com.amazonaws.us-west-2.s3", **tables)
    assert problem() == ""


def test_the_api_server_answers_only_whom_its_endpoints_let_in(cluster: Cluster) -> None:
    def reached() -> bool:
        return bool(cluster.eks.describe_cluster(name="c")["cluster"]["endpoint"] != NOBODY)

    config = cluster.eks.update_cluster_config
    assert reached(), "a cluster is open to all unless it is told otherwise"
    config(name="c", resourcesVpcConfig={"publicAccessCidrs": ["198.51.100.0/24"]})
    assert not reached()
    switched(cluster.cloud, HERE, "198.51.100.9")
    assert reached()
    config(name="c", resourcesVpcConfig={"endpointPrivateAccess": True, "endpointPublicAccess": False})
    switched(cluster.cloud, HERE, "10.8.0.5")
    assert not reached()
    own = cluster.eks.describe_cluster(name="c")["cluster"]["resourcesVpcConfig"]["clusterSecurityGroupId"]
    rule = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "10.8.0.0/16"}]}
    cluster.cloud.client("ec2").authorize_security_group_ingress(GroupId=own, IpPermissions=[rule])
    assert reached()
    switched(cluster.cloud, HERE, "10.9.0.5")
    assert not reached()


def test_a_clusters_log_group_comes_again_after_it_was_deleted(cluster: Cluster) -> None:
    logs, name = cluster.cloud.client("logs"), "/aws/eks/c/cluster"
    logs.create_log_group(logGroupName=name, tags={"team": "a"})
    config = {"clusterLogging": [{"types": ["api"], "enabled": True}]}
    cluster.eks.update_cluster_config(name="c", logging=config)
    cluster.eks.delete_cluster(name="c")
    logs.delete_log_group(logGroupName=name)
    (again,) = logs.describe_log_groups()["logGroups"]
    arn = f"arn:aws:logs:us-west-2:123456789012:log-group:{name}"
    assert (again["logGroupName"], logs.list_tags_for_resource(resourceArn=arn)["tags"]) == (name, {})
    logs.delete_log_group(logGroupName=name)
    assert logs.describe_log_groups()["logGroups"] == []
