"""Auto Scaling groups of node groups: whose calls are judged by the group's ARN and its tags."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.aws import policies
from tests.unit.cloud.test_judge import refused, role_with
from tests.unit.cloud.test_rules import Cluster
from tools.cloud.server import Listening

ACCOUNT = "123456789012"


@pytest.fixture
def cluster(account: Listening) -> Cluster:
    made = Cluster(account)
    made.eks.create_nodegroup(**made.group("g", 0, 0, 2))
    return made


def group_of(cluster: Cluster, name: str = "g") -> str:
    """The Auto Scaling group of a node group."""
    live = cluster.eks.describe_nodegroup(clusterName="c", nodegroupName=name)["nodegroup"]
    found: str = live["resources"]["autoScalingGroups"][0]["name"]
    return found


def test_a_node_groups_auto_scaling_group_has_its_limits_and_ends_with_it(cluster: Cluster) -> None:
    autoscaling = cluster.cloud.client("autoscaling")
    (group,) = autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    assert (group["AutoScalingGroupName"], group["MaxSize"]) == (group_of(cluster), 2)
    tags = {tag["Key"]: tag["Value"] for tag in group["Tags"]}
    assert (tags["eks:cluster-name"], tags["eks:nodegroup-name"]) == ("c", "g")
    config = {"minSize": 0, "desiredSize": 0, "maxSize": 5}
    cluster.eks.update_nodegroup_config(clusterName="c", nodegroupName="g", scalingConfig=config)
    assert autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"][0]["MaxSize"] == 5
    cluster.eks.delete_nodegroup(clusterName="c", nodegroupName="g")
    assert autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"] == []


def as_autoscaler(cluster: Cluster, of: str) -> Any:
    """A client with the policy of the autoscaler of a cluster."""
    may = policies.cluster_autoscaler(cluster_name=of, partition="aws", region="us-west-2", account=ACCOUNT)
    return cluster.cloud.client("autoscaling", role_with(cluster.cloud, *may, name=f"autoscaler-{of}"))


def group_named(cluster: Cluster, name: str) -> str:
    """A group that is nobody's node group, but has EKS's tag; returns the id of its one instance."""
    autoscaling = cluster.cloud.client("autoscaling")
    launch = {"LaunchConfigurationName": name, "ImageId": "ami-12c6146b", "InstanceType": "t3.medium"}
    autoscaling.create_launch_configuration(**launch)
    where = {"AvailabilityZones": ["us-west-2a"], "MinSize": 0, "MaxSize": 2, "DesiredCapacity": 1}
    tags = [{"Key": "eks:cluster-name", "Value": "c", "PropagateAtLaunch": False}]
    autoscaling.create_auto_scaling_group(AutoScalingGroupName=name, LaunchConfigurationName=name, Tags=tags, **where)
    (live,) = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    found: str = live["Instances"][0]["InstanceId"]
    return found


def test_the_autoscaler_scales_the_groups_of_its_own_cluster_and_no_others(cluster: Cluster) -> None:
    """The policy names the tag that EKS sets; without it one cluster's autoscaler would scale another's."""
    group = group_of(cluster)
    as_autoscaler(cluster, "c").set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=1)
    scale = as_autoscaler(cluster, "d").set_desired_capacity
    status, code, message = refused(scale, AutoScalingGroupName=group, DesiredCapacity=2)
    assert (status, code) == (403, "AccessDenied")
    assert f":autoScalingGroupName/{group} because no identity-based policy allows" in message


def test_the_autoscaler_ends_instances_of_its_own_clusters_groups_only(cluster: Cluster) -> None:
    """The call names an instance; its group decides."""
    end = {"InstanceId": group_named(cluster, "eks-g"), "ShouldDecrementDesiredCapacity": True}
    theirs = as_autoscaler(cluster, "d")
    assert refused(theirs.terminate_instance_in_auto_scaling_group, **end)[:2] == (403, "AccessDenied")
    as_autoscaler(cluster, "c").terminate_instance_in_auto_scaling_group(**end)


def test_a_group_that_eks_did_not_name_is_out_of_the_autoscalers_reach(cluster: Cluster) -> None:
    """Whoever can tag a group could otherwise hand it to the autoscaler."""
    end = {"InstanceId": group_named(cluster, "own"), "ShouldDecrementDesiredCapacity": True}
    mine = as_autoscaler(cluster, "c")
    assert refused(mine.terminate_instance_in_auto_scaling_group, **end)[0] == 403
    assert refused(mine.set_desired_capacity, AutoScalingGroupName="own", DesiredCapacity=2)[0] == 403


def test_ec2_judges_tags_by_what_gets_them(account: Listening) -> None:
    """AmazonEKS_CNI_Policy may tag network interfaces, and nothing else."""
    vpc = account.client("ec2").create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    where = f"arn:aws:ec2:us-west-2:{ACCOUNT}:"
    only = {"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": f"{where}subnet/*"}
    make = {"Effect": "Allow", "Action": ["ec2:CreateSubnet", "ec2:CreateVpc"], "Resource": "*"}
    mine = account.client("ec2", role_with(account, only, make))
    tags = [{"Key": "a", "Value": "b"}]
    status, code, message = refused(mine.create_tags, Resources=[vpc], Tags=tags)
    assert (status, code) == (403, "UnauthorizedOperation")
    assert f"ec2:CreateTags on resource: {where}vpc/{vpc} " in message
    specified = {"TagSpecifications": [{"ResourceType": "vpc", "Tags": tags}]}
    assert f"{where}vpc/*" in refused(mine.create_vpc, CidrBlock="10.1.0.0/16", **specified)[2]
    specified = {"TagSpecifications": [{"ResourceType": "subnet", "Tags": tags}]}
    subnet = mine.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24", **specified)["Subnet"]["SubnetId"]
    mine.create_tags(Resources=[subnet], Tags=tags)
    assert refused(mine.create_tags, Resources=[subnet, vpc], Tags=tags)[0] == 403, "each of them is judged"


def test_ec2_knows_the_tags_of_what_a_call_changes_the_tags_of(account: Listening) -> None:
    ec2 = account.client("ec2")
    vpcs = [ec2.create_vpc(CidrBlock=f"10.{index}.0.0/16")["Vpc"]["VpcId"] for index in range(2)]
    ec2.create_tags(Resources=vpcs[:1], Tags=[{"Key": "team", "Value": "a"}])
    condition = {"StringEquals": {"aws:ResourceTag/team": "a"}}
    mine = account.client(
        "ec2", role_with(account, {"Effect": "Allow", "Action": "ec2:*", "Resource": "*", "Condition": condition})
    )
    mine.delete_tags(Resources=vpcs[:1], Tags=[{"Key": "x"}])
    assert refused(mine.delete_tags, Resources=vpcs[1:], Tags=[{"Key": "x"}])[0] == 403
