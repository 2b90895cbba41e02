"""Rules of EKS, EC2 and S3 in `tools/cloud/rules.csv`: a violation is refused as AWS refuses it."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import pytest

from modelfleet.infra.aws import policies
from tests.unit.cloud.conftest import NODE, subnets_in
from tests.unit.cloud.test_judge import refused
from tools.cloud.app import SHORTAGE, SLOW
from tools.cloud.server import Listening
from tools.schema import cloud_rules


def test_every_rule_has_a_source_and_a_test() -> None:
    for row in (*cloud_rules.rows("rules.csv"), *cloud_rules.rows("behaviours.csv")):
        assert row["source"], row["rule"]
    for rule, file, name in cloud_rules.tests():
        assert f"\ndef {name}(" in file.read_text(encoding="utf-8"), f"{rule}: {file.name} has no test {name}"


def test_an_object_has_at_most_ten_tags(account: Listening) -> None:
    s3 = account.client("s3")
    s3.create_bucket(Bucket="bkt", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})

    def tags(count: int) -> str:
        return "&".join(f"t{index}=v" for index in range(count))

    s3.put_object(Bucket="bkt", Key="k", Body=b"1", Tagging=tags(10))
    wanted = (400, "BadRequest", "Object tags cannot be greater than 10")
    assert refused(s3.put_object, Bucket="bkt", Key="k", Body=b"1", Tagging=tags(11)) == wanted
    assert refused(s3.create_multipart_upload, Bucket="bkt", Key="k", Tagging=tags(11)) == wanted
    more = {"TagSet": [{"Key": f"t{index}", "Value": "v"} for index in range(11)]}
    assert refused(s3.put_object_tagging, Bucket="bkt", Key="k", Tagging=more) == wanted


def test_a_region_has_five_elastic_ips(account: Listening) -> None:
    ec2 = account.client("ec2")
    made = [ec2.allocate_address(Domain="vpc")["AllocationId"] for _ in range(5)]
    wanted = (400, "AddressLimitExceeded", "The maximum number of addresses has been reached.")
    assert refused(ec2.allocate_address, Domain="vpc") == wanted
    account.client("ec2", region="us-east-1").allocate_address(Domain="vpc")
    ec2.release_address(AllocationId=made[0])
    ec2.allocate_address(Domain="vpc")


def test_a_type_without_capacity_in_a_zone_is_not_started_there(account: Listening) -> None:
    first, second = subnets_in(account, "us-west-2a", "us-west-2b")
    account.cloud.rules.short_of(("g5.xlarge", "us-west-2a"))
    ec2 = account.client("ec2")
    run = {"ImageId": "ami-12c6146b", "MinCount": 1, "MaxCount": 1, "InstanceType": "g5.xlarge"}
    status, code, message = refused(ec2.run_instances, SubnetId=first, **run)
    assert (status, code) == (500, "InsufficientInstanceCapacity")
    assert "sufficient g5.xlarge capacity in the Availability Zone you requested (us-west-2a)" in message
    ec2.run_instances(SubnetId=second, **run)
    switched(account, SHORTAGE, [["g5.xlarge", "*"]])
    assert refused(ec2.run_instances, SubnetId=second, **run)[:2] == (500, "InsufficientInstanceCapacity")


def switched(cloud: Listening, path: str, value: Any) -> None:
    """Switches a fault on over HTTP, as a test does whose cloud is a process of its own."""
    switch = urllib.request.Request(f"{cloud.url}{path}", data=json.dumps(value).encode(), method="PUT")
    urllib.request.urlopen(switch, timeout=60).read()


def test_calls_can_be_made_slow(account: Listening) -> None:
    ec2 = account.client("ec2")

    def seconds(call: Any) -> float:
        start = time.monotonic()
        call()
        return time.monotonic() - start

    switched(account, SLOW, {"ec2:DescribeVpcs": 1.5})
    assert seconds(ec2.describe_vpcs) >= 1.5
    switched(account, SLOW, {"*": 1.5})
    assert seconds(ec2.describe_subnets) >= 1.5
    switched(account, SLOW, {"ec2:DescribeVpcs": 3600})
    ec2.describe_subnets()  # other calls answer at once
    switched(account, SLOW, {})
    ec2.describe_vpcs()


class Cluster:
    """A cluster in two zones and a role for nodes."""

    def __init__(self, cloud: Listening) -> None:
        self.cloud, self.eks = cloud, cloud.client("eks")
        iam = cloud.client("iam")
        for name, service in (("cluster", "eks"), ("node", "ec2")):
            trust = json.dumps(policies.service_trust(f"{service}.amazonaws.com"))
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)
        iam.put_role_policy(RoleName="node", PolicyName="join", PolicyDocument=json.dumps(policies.document([NODE])))
        self.role = "arn:aws:iam::123456789012:role/{}".format
        self.subnets = subnets_in(cloud, "us-west-2a", "us-west-2b")
        self.create(self.subnets)

    def create(self, subnets: list[str], name: str = "c") -> None:
        """Makes a cluster."""
        config = {"subnetIds": subnets}
        self.eks.create_cluster(name=name, roleArn=self.role("cluster"), resourcesVpcConfig=config)

    def group(self, name: str, least: int, desired: int, most: int, **more: Any) -> dict[str, Any]:
        """The arguments of a node group."""
        sizes = {"minSize": least, "desiredSize": desired, "maxSize": most}
        where = {"clusterName": "c", "nodegroupName": name, "subnets": self.subnets}
        return {**where, "nodeRole": self.role("node"), "scalingConfig": sizes, **more}


@pytest.fixture
def cluster(account: Listening) -> Cluster:
    return Cluster(account)


def test_a_cluster_has_subnets_in_two_zones(cluster: Cluster) -> None:
    wanted = (400, "InvalidParameterException", "Subnets specified must be in at least two different AZs")
    assert refused(cluster.create, subnets=cluster.subnets[:1], name="d") == wanted


def test_a_cluster_keeps_the_zones_that_it_was_made_in(cluster: Cluster) -> None:
    others = subnets_in(cluster.cloud, "us-west-2a", "us-west-2b", "us-west-2c")
    update = cluster.eks.update_cluster_config
    update(name="c", resourcesVpcConfig={"subnetIds": others[:2]})
    for subnets in (others, others[:1]):
        found = refused(update, name="c", resourcesVpcConfig={"subnetIds": subnets})
        assert found[:2] == (400, "InvalidParameterException")


def test_sizes_of_a_node_group_are_in_order(cluster: Cluster) -> None:
    create = cluster.eks.create_nodegroup
    wrong = (400, "InvalidParameterException")
    assert refused(create, **cluster.group("g", 2, 1, 3)) == (*wrong, "minSize can't be greater than desiredSize")
    assert refused(create, **cluster.group("g", 0, 4, 3)) == (*wrong, "desiredSize can't be greater than maxSize")
    create(**cluster.group("g", 0, 0, 3))


def test_an_update_is_judged_with_the_live_desired_size(cluster: Cluster) -> None:
    """A program that leaves the desired size to the autoscaler cannot raise the minimum above what is live."""
    cluster.eks.create_nodegroup(**cluster.group("g", 0, 1, 4))
    update = cluster.eks.update_nodegroup_config
    group = {"clusterName": "c", "nodegroupName": "g"}
    wanted = (400, "InvalidParameterException", "Minimum capacity 2 can't be greater than desired size 1")
    assert refused(update, **group, scalingConfig={"minSize": 2, "maxSize": 4}) == wanted
    update(**group, scalingConfig={"minSize": 2, "desiredSize": 3, "maxSize": 4})
    assert refused(update, **group, scalingConfig={"minSize": 0, "maxSize": 2})[1] == "InvalidParameterException"


def test_a_launch_template_of_a_node_group_leaves_to_eks_what_eks_sets(cluster: Cluster) -> None:
    ec2 = cluster.cloud.client("ec2")

    def create(name: str, data: dict[str, Any], **more: Any) -> None:
        template = ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)["LaunchTemplate"]
        chosen = {"id": template["LaunchTemplateId"], "version": "1"}
        cluster.eks.create_nodegroup(**cluster.group(name, 0, 0, 1, launchTemplate=chosen, **more))

    for name, data in {
        "profile": {"IamInstanceProfile": {"Name": "p"}},
        "spot": {"InstanceMarketOptions": {"MarketType": "spot"}},
        "hibernation": {"HibernationOptions": {"Configured": True}},
        "shutdown": {"InstanceInitiatedShutdownBehavior": "stop"},
        "subnet": {"NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": cluster.subnets[0]}]},
    }.items():
        status, code, message = refused(create, name=name, data=data)
        assert (status, code) == (400, "InvalidRequestException"), name
        assert "launch template can't include" in message
    typed = {"InstanceType": "g5.xlarge"}
    twice = refused(create, name="twice", data=typed, instanceTypes=["g6.xlarge"])
    assert twice == (400, "InvalidRequestException", "Cannot specify instance types in launch template and API request")
    create("once", typed)
    create("block", {"InstanceMarketOptions": {"MarketType": "capacity-block"}})


def test_a_node_group_that_gets_no_capacity_fails(cluster: Cluster) -> None:
    types = {"instanceTypes": ["g5.xlarge", "g6.xlarge"]}
    cluster.cloud.cloud.rules.short_of(("g5.xlarge", "*"), ("g6.xlarge", "us-west-2a"))
    eks = cluster.eks
    eks.create_nodegroup(**cluster.group("some", 0, 1, 2, **types))
    assert eks.describe_nodegroup(clusterName="c", nodegroupName="some")["nodegroup"]["status"] == "ACTIVE"
    cluster.cloud.cloud.rules.short_of(("g5.xlarge", "*"), ("g6.xlarge", "*"))
    eks.create_nodegroup(**cluster.group("none", 0, 1, 2, **types))
    failed = eks.describe_nodegroup(clusterName="c", nodegroupName="none")["nodegroup"]
    assert failed["status"] == "CREATE_FAILED"
    (issue,) = failed["health"]["issues"]
    assert issue["code"] == "AsgInstanceLaunchFailures"
    assert "InsufficientInstanceCapacity - We currently do not have sufficient g5.xlarge capacity" in issue["message"]
    eks.create_nodegroup(**cluster.group("empty", 0, 0, 2, **types))
    assert eks.describe_nodegroup(clusterName="c", nodegroupName="empty")["nodegroup"]["status"] == "ACTIVE"


def test_a_group_that_is_not_there_is_neither_tagged_nor_scaled(account: Listening) -> None:
    autoscaling = account.client("autoscaling")
    wanted = (400, "ValidationError", "AutoScalingGroup not found - AutoScaling Group none not found")
    tag = {"ResourceId": "none", "ResourceType": "auto-scaling-group", "Key": "a", "Value": "b"}
    tag_call = {"Tags": [{**tag, "PropagateAtLaunch": False}]}
    assert refused(autoscaling.create_or_update_tags, **tag_call) == wanted
    assert refused(autoscaling.delete_tags, **tag_call) == wanted
    assert refused(autoscaling.set_desired_capacity, AutoScalingGroupName="none", DesiredCapacity=1) == wanted


def test_a_group_is_never_larger_than_its_maximum(cluster: Cluster) -> None:
    name, scaling = scaled(cluster), cluster.cloud.client("autoscaling")
    wanted = (400, "ValidationError", "New SetDesiredCapacity value 3 is above max value 2 for the AutoScalingGroup.")
    assert refused(scaling.set_desired_capacity, AutoScalingGroupName=name, DesiredCapacity=3) == wanted
    scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=2)
    (found,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    assert (found["DesiredCapacity"], len(found["Instances"])) == (2, 2)


def test_a_group_without_capacity_fails_in_its_activities_and_tries_again(cluster: Cluster) -> None:
    """cluster-autoscaler looks there, and so gives a rung up long before its node is late."""
    name, scaling = scaled(cluster, capacityType="SPOT"), cluster.cloud.client("autoscaling")
    cluster.cloud.cloud.rules.short_of(("g5.xlarge", "*", "spot"))
    scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=1)
    newest = scaling.describe_scaling_activities(AutoScalingGroupName=name)["Activities"][0]
    assert newest["StatusCode"] == "Failed"
    assert "Could not launch Spot Instances. InsufficientInstanceCapacity" in newest["StatusMessage"]
    cluster.cloud.cloud.rules.short_of(("g5.xlarge", "*", "on-demand"))
    (found,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    assert [one["InstanceType"] for one in found["Instances"]] == ["g5.xlarge"]
    assert scaling.describe_scaling_activities(AutoScalingGroupName=name)["Activities"][0]["StatusCode"] == "Successful"


def scaled(cluster: Cluster, **more: Any) -> str:
    """The Auto Scaling group of a new node group of at most two g5.xlarge."""
    group = cluster.group("l4_spot-a-0123", 0, 0, 2, instanceTypes=["g5.xlarge"], **more)
    made = cluster.eks.create_nodegroup(**group)["nodegroup"]
    found = cluster.eks.describe_nodegroup(clusterName="c", nodegroupName=made["nodegroupName"])["nodegroup"]
    name = str(found["resources"]["autoScalingGroups"][0]["name"])
    assert name.startswith("eks-l4_spot-a-0123-"), "the autoscaler's priorities know a group by its node group's name"
    return name
