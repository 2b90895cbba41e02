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
from tools.cloud.app import DRAINS, QUOTAS, SHORTAGE, SLOW
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

    def create(self, subnets: list[str], name: str = "c", version: str = "1.34") -> None:
        """Makes a cluster."""
        config = {"subnetIds": subnets}
        role = self.role("cluster")
        self.eks.create_cluster(name=name, roleArn=role, resourcesVpcConfig=config, version=version)

    def group(self, name: str, least: int, desired: int, most: int, **more: Any) -> dict[str, Any]:
        """The arguments of a node group."""
        sizes = {"minSize": least, "desiredSize": desired, "maxSize": most}
        where = {"clusterName": "c", "nodegroupName": name, "subnets": self.subnets}
        return {**where, "nodeRole": self.role("node"), "scalingConfig": sizes, **more}

    def live(self, name: str) -> dict[str, Any]:
        """A node group, as EKS shows it."""
        return dict(self.eks.describe_nodegroup(clusterName="c", nodegroupName=name)["nodegroup"])

    def issue(self, name: str) -> tuple[str, str]:
        """Code and message of what a failed group lacks."""
        assert self.live(name)["status"] == "CREATE_FAILED"
        (issue,) = self.live(name)["health"]["issues"]
        return issue["code"], issue["message"]

    def template(self, name: str, data: dict[str, Any]) -> dict[str, str]:
        """A new launch template, as node groups name it."""
        ec2 = self.cloud.client("ec2")
        made = ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)["LaunchTemplate"]
        return {"id": made["LaunchTemplateId"], "version": "1"}


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


@pytest.mark.parametrize(("zones", "ended"), [(2, True), (1, False)])
def test_a_group_over_two_zones_ends_a_loaded_node_to_balance_them(cluster: Cluster, zones: int, ended: bool) -> None:
    """AZRebalance heeds no disruption budget, so each of our groups is in one zone."""
    cluster.cloud.cloud.rules.short_of(("g5.xlarge", "us-west-2b"))
    name, scaling = scaled(cluster, subnets=cluster.subnets[:zones]), cluster.cloud.client("autoscaling")
    scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=2)

    def places() -> list[str]:
        (found,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
        return [one["AvailabilityZone"] for one in found["Instances"]]

    assert places() == ["us-west-2a", "us-west-2a"]
    cluster.cloud.cloud.rules.short_of()
    assert places() == (["us-west-2a", "us-west-2b"] if ended else ["us-west-2a", "us-west-2a"])
    newest = scaling.describe_scaling_activities(AutoScalingGroupName=name)["Activities"][0]
    assert (newest["Description"] == "Terminating EC2 instance") is ended


def scaled(cluster: Cluster, **more: Any) -> str:
    """The Auto Scaling group of a new node group of at most two g5.xlarge."""
    group = {**cluster.group("l4_spot-a-0123", 0, 0, 2, instanceTypes=["g5.xlarge"]), **more}
    made = cluster.eks.create_nodegroup(**group)["nodegroup"]
    found = cluster.eks.describe_nodegroup(clusterName="c", nodegroupName=made["nodegroupName"])["nodegroup"]
    name = str(found["resources"]["autoScalingGroups"][0]["name"])
    assert name.startswith("eks-l4_spot-a-0123-"), "the autoscaler's priorities know a group by its node group's name"
    return name


def test_a_group_does_not_grow_above_the_accounts_vcpus(cluster: Cluster) -> None:
    """The quota is of a family and a way to buy: six g5.xlarge have 24 vCPUs."""
    switched(cluster.cloud, QUOTAS, {"L-DB2E81BA": 24})
    cluster.eks.create_nodegroup(**cluster.group("l4", 0, 0, 9, instanceTypes=["g5.xlarge"]))
    found = cluster.live("l4")
    name, scaling = found["resources"]["autoScalingGroups"][0]["name"], cluster.cloud.client("autoscaling")
    scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=7)
    (group,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    assert (group["DesiredCapacity"], len(group["Instances"])) == (7, 6)
    newest = scaling.describe_scaling_activities(AutoScalingGroupName=name)["Activities"][0]
    assert "more vCPU capacity than your current vCPU limit of 24 allows" in newest["StatusMessage"]
    cluster.eks.create_nodegroup(**cluster.group("more", 1, 1, 2, instanceTypes=["g6.xlarge"]))
    assert cluster.issue("more")[0] == "AsgInstanceLaunchFailures", "the families G and VT share a quota"
    cluster.eks.create_nodegroup(**cluster.group("spot", 1, 1, 2, instanceTypes=["g6.xlarge"], capacityType="SPOT"))
    assert cluster.live("spot")["status"] == "ACTIVE"


def test_a_cluster_has_at_most_thirty_node_groups(cluster: Cluster) -> None:
    quotas = cluster.cloud.client("service-quotas")
    asked = {"ServiceCode": "eks", "QuotaCode": "L-6D54EA21"}
    assert quotas.get_service_quota(**asked)["Quota"]["Value"] == 30
    switched(cluster.cloud, QUOTAS, {"L-6D54EA21": 1})
    assert quotas.get_service_quota(**asked)["Quota"]["Value"] == 1
    assert quotas.get_aws_default_service_quota(**asked)["Quota"]["Value"] == 30
    cluster.eks.create_nodegroup(**cluster.group("one", 0, 0, 1))
    found = refused(cluster.eks.create_nodegroup, **cluster.group("two", 0, 0, 1))
    assert found[:2] == (400, "ResourceLimitExceededException")


def test_a_node_group_is_of_a_type_that_its_zones_have(cluster: Cluster) -> None:
    found = refused(cluster.eks.create_nodegroup, **cluster.group("g", 0, 0, 1, instanceTypes=["u-6tb1.metal"]))
    assert found[:2] == (400, "InvalidParameterException")


def test_a_capacity_block_is_named_in_the_launch_template(cluster: Cluster) -> None:
    block = cluster.group("g", 0, 0, 1, capacityType="CAPACITY_BLOCK", instanceTypes=["p4d.24xlarge"])
    assert refused(cluster.eks.create_nodegroup, **block)[:2] == (400, "InvalidParameterException")
    target = {"CapacityReservationTarget": {"CapacityReservationId": "cr-0123456789abcdef0"}}
    data = {
        "InstanceType": "p4d.24xlarge",
        "InstanceMarketOptions": {"MarketType": "capacity-block"},
        "CapacityReservationSpecification": target,
    }
    del block["instanceTypes"]
    cluster.eks.create_nodegroup(**block, launchTemplate=cluster.template("block", data))


WRONG = (400, "InvalidParameterException")


def test_nodes_have_their_clusters_version_or_the_one_before(cluster: Cluster) -> None:
    create, update = cluster.eks.create_nodegroup, cluster.eks.update_nodegroup_version
    group = {"clusterName": "c", "nodegroupName": "g"}
    assert refused(create, **cluster.group("g", 0, 0, 1, version="1.35"))[:2] == WRONG
    found = refused(create, **cluster.group("g", 0, 0, 1, version="1.34", releaseVersion="1.35.1-20261101"))
    assert found == (*WRONG, "Requested release version 1.35.1-20261101 is not valid for kubernetes version 1.34.")
    create(**cluster.group("g", 0, 0, 1))
    assert cluster.live("g")["version"] == "1.34"
    assert refused(update, **group, version="1.35")[:2] == WRONG, "the control plane comes first"
    cluster.eks.update_cluster_version(name="c", version="1.35")
    update(**group, version="1.35")
    assert (cluster.live("g")["version"], cluster.live("g")["releaseVersion"][:5]) == ("1.35", "1.35.")
    assert refused(update, **group, version="1.34")[:2] == WRONG


def test_a_cluster_goes_up_one_minor_version_at_a_time(cluster: Cluster) -> None:
    update = cluster.eks.update_cluster_version
    assert refused(cluster.create, subnets=cluster.subnets, name="d", version="1.19") == (
        *WRONG,
        "unsupported Kubernetes version",
    )
    assert refused(update, name="c", version="1.99") == (*WRONG, "unsupported Kubernetes version")
    for wanted in ("1.36", "1.34", "1.33"):
        said = f"Unsupported Kubernetes minor version update from 1.34 to {wanted}"
        assert refused(update, name="c", version=wanted) == (*WRONG, said)
    cluster.eks.create_nodegroup(**cluster.group("g", 0, 0, 1))
    done = update(name="c", version="1.35")["update"]
    assert cluster.eks.describe_update(name="c", updateId=done["id"])["update"]["status"] == "Successful"
    said = "Nodegroups g must be updated to match cluster version 1.35 before updating cluster version"
    assert refused(update, name="c", version="1.36") == (*WRONG, said)
    assert cluster.eks.describe_cluster(name="c")["cluster"]["version"] == "1.35"


def test_a_cluster_takes_one_kind_of_change_a_call(cluster: Cluster) -> None:
    update = cluster.eks.update_cluster_config
    logs = {"clusterLogging": [{"types": ["api"], "enabled": True}]}
    one = (*WRONG, "Only one type of update can be allowed.")
    access = {"endpointPrivateAccess": True}
    assert refused(update, name="c", logging=logs, resourcesVpcConfig=access) == one
    assert refused(update, name="c", resourcesVpcConfig={**access, "subnetIds": cluster.subnets}) == one
    update(name="c", logging=logs)
    update(name="c", resourcesVpcConfig=access)
    live = cluster.eks.describe_cluster(name="c")["cluster"]
    assert (live["logging"], live["resourcesVpcConfig"]["endpointPrivateAccess"]) == (logs, True)
    assert live["resourcesVpcConfig"]["subnetIds"] == cluster.subnets, "what a call does not name stays"
    found = refused(update, name="c", resourcesVpcConfig=access)
    assert found[2].startswith("Cluster is already at the desired configuration with endpointPrivateAccess: true ,")


def test_a_protected_cluster_is_not_deleted(cluster: Cluster) -> None:
    cluster.eks.update_cluster_config(name="c", deletionProtection=True)
    assert refused(cluster.eks.delete_cluster, name="c")[:2] == (400, "InvalidRequestException")
    cluster.eks.update_cluster_config(name="c", deletionProtection=False)
    cluster.eks.delete_cluster(name="c")
    groups = cluster.cloud.client("ec2").describe_security_groups()["SecurityGroups"]
    assert not [one for one in groups if one["GroupName"].startswith("eks-cluster-sg-")], "EKS's own group goes too"


def test_a_node_group_keeps_its_launch_template(cluster: Cluster) -> None:
    first, second = (cluster.template(name, {"EbsOptimized": True}) for name in ("first", "second"))
    cluster.eks.create_nodegroup(**cluster.group("g", 0, 0, 1, launchTemplate=first))
    update = cluster.eks.update_nodegroup_version
    assert refused(update, clusterName="c", nodegroupName="g", launchTemplate=second)[:2] == WRONG
    update(clusterName="c", nodegroupName="g", launchTemplate=first)


def test_an_update_fails_when_a_pod_needs_more_than_fifteen_minutes(cluster: Cluster) -> None:
    cluster.eks.create_nodegroup(**cluster.group("l4-a", 1, 1, 2))
    cluster.eks.create_nodegroup(**cluster.group("l4-b", 0, 0, 2))
    cluster.eks.update_cluster_version(name="c", version="1.35")

    def ends(name: str, **more: Any) -> tuple[str, list[str]]:
        made = cluster.eks.update_nodegroup_version(clusterName="c", nodegroupName=name, **more)["update"]
        update = cluster.eks.describe_update(name="c", nodegroupName=name, updateId=made["id"])["update"]
        return update["status"], [one["errorCode"] for one in update["errors"]]

    switched(cluster.cloud, DRAINS, {"l4-": 901})
    assert ends("l4-a", version="1.35") == ("Failed", ["PodEvictionFailure"])
    assert cluster.live("l4-a")["version"] == "1.34", "a failed update leaves the group as it was"
    assert ends("l4-b", version="1.35") == ("Successful", []), "no node, no pod"
    assert ends("l4-a", version="1.35", force=True) == ("Successful", [])
    switched(cluster.cloud, DRAINS, {"l4-": 900})
    assert ends("l4-a", releaseVersion="1.35.9-20261130") == ("Successful", [])


def test_a_failed_node_group_is_deleted_never_updated(cluster: Cluster) -> None:
    cluster.cloud.cloud.rules.short_of(("g5.xlarge", "*"))
    cluster.eks.create_nodegroup(**cluster.group("g", 1, 1, 2, instanceTypes=["g5.xlarge"]))
    cluster.cloud.cloud.rules.short_of()
    wanted = (409, "ResourceInUseException", "Nodegroup cannot be updated as it is currently not in Active State")
    group = {"clusterName": "c", "nodegroupName": "g"}
    assert refused(cluster.eks.update_nodegroup_config, **group, scalingConfig={"maxSize": 3}) == wanted
    assert refused(cluster.eks.update_nodegroup_version, **group) == wanted
    cluster.eks.delete_nodegroup(**group)
    cluster.eks.create_nodegroup(**cluster.group("g", 1, 1, 2, instanceTypes=["g5.xlarge"]))
    assert cluster.live("g")["status"] == "ACTIVE"
