"""What a stack file chooses: an existing network or bucket, no NAT, an open endpoint; and what is refused in advance.

The program runs against the stand-in's resource types in this process (mocked_engine.py), without the engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pulumi_aws as aws
import pytest

from modelfleet.infra.aws.facts_boto3 import run_preflight
from modelfleet.infra.aws.fleet import AwsFleet
from modelfleet.infra.kubernetes.manifests.autoscaler import priority_expander
from modelfleet.infra.observability.amp import alert_manager_definition, rules_file, scraper_config
from modelfleet.infra.planning import Plan
from modelfleet.serving.config.errors import InputErrors
from tests.engine.aws_account import Account
from tests.engine.aws_fleet import REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tests.engine.mocked_engine import MockedEngine
from tools.cloud.app import HERE as HERE_IS
from tools.cloud.app import QUOTAS
from tools.cloud.reach import HERE
from tools.kubernetes.autoscaler import PriorityExpander

UUID = "9ac5a5c4-4b1c-2f52-9d0e-1c0f0c1f8a11"
#: pulumi_aws warns about its own old names when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*has been deprecated in favor of.*:DeprecationWarning")

POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]}
CLUSTER = "modelfleet-test"
#: Where alerts go, and how the stack file has it.
WEBHOOK, HOOK = "https://pager.example.org/t0ken", {"secure": "v1:AAAA:AAAA"}
LADDER = {
    **POOL,
    "instanceTypes": ["g6.xlarge", "g6.2xlarge"],
    "minNodes": 1,
    "purchase": ["reservation", "spot", "on-demand"],
    "capacityReservationId": "cr-0123456789abcdef0",
    "capacityReservationZone": "us-west-2b",
    "fallback": [{"accelerator": "A10G", "instanceTypes": ["g5.xlarge"]}],
}


@pytest.fixture
def account(emulator: Emulator) -> Account:
    return Account(emulator, REGION)


class Maker:
    """Makes fleets in the emulated account, and deletes them at the end."""

    def __init__(self, project: FleetProject) -> None:
        self._project = project
        self.engine = MockedEngine(REGION)
        self.fleets: list[AwsFleet] = []
        self.plan: Plan

    def make(self, *, with_code: bool = False, **stack: Any) -> list[str]:
        """The types of what was made, without the package."""
        self._project.files(stack_of(**{"pools": [POOL], **stack}), {"org--m": model("org/m", "L4")})
        plan, code = self._project.plan(), self._project.folder / "serving.zip"
        self.plan = plan
        code.write_bytes(b"the serving package")
        asset = pulumi.FileAsset(str(code)) if with_code else None

        def program() -> None:
            webhook = pulumi.Output.secret(WEBHOOK) if plan.amp and plan.amp.sends else None
            self.fleets.append(AwsFleet("aws", plan, code=asset, alert_webhook=webhook))

        self.engine.run(program)
        return [kind.rpartition(":")[2] for kind, _, _ in self.engine.made]


@pytest.fixture
def fleet(tmp_path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    project = FleetProject(tmp_path, emulator)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PATH"):
        monkeypatch.setenv(name, project.environ[name])
    maker = Maker(project)
    yield maker
    maker.engine.destroy()


@pytest.fixture
def network(account: Account) -> Iterator[tuple[str, list[str]]]:
    """A VPC with a subnet in each of two zones, made by someone else."""
    vpc = account.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    account.ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
    gateway = account.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    account.ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    (table,) = account.ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    account.ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    subnets = [
        account.ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{n * 16}.0/20", AvailabilityZone=zone)["Subnet"][
            "SubnetId"
        ]
        for n, zone in enumerate(("us-west-2a", "us-west-2b"))
    ]
    for subnet in subnets:
        account.ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
    yield vpc, subnets
    for subnet in subnets:
        account.ec2.delete_subnet(SubnetId=subnet)
    account.ec2.delete_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0")
    account.ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    account.ec2.delete_internet_gateway(InternetGatewayId=gateway)
    account.ec2.delete_vpc(VpcId=vpc)


@pytest.fixture
def bucket(account: Account) -> Iterator[str]:
    """Someone else's bucket."""
    account.s3.create_bucket(Bucket="ours", CreateBucketConfiguration={"LocationConstraint": REGION})
    yield "ours"
    account.s3.delete_bucket(Bucket="ours")


@pytest.fixture
def admins(account: Account) -> Iterator[str]:
    """A role of administrators."""
    yield account.iam.create_role(RoleName="admins", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    account.iam.delete_role(RoleName="admins")


@pytest.fixture
def four_vcpus(emulator: Emulator) -> Iterator[None]:
    """A quota of four vCPUs for G and VT instances."""
    emulator.switch(QUOTAS, {"L-DB2E81BA": 4})
    yield
    emulator.switch(QUOTAS, {})


def test_an_existing_network_is_used_and_left_alone(
    network: tuple[str, list[str]], fleet: Maker, account: Account
) -> None:
    vpc, subnets = network
    made = fleet.make(network={"vpcId": vpc, "privateSubnetIds": subnets})
    assert not {"Vpc", "Subnet", "NatGateway", "RouteTable", "VpcEndpoint"} & set(made)
    groups = account.zone_groups(CLUSTER)["l4"].values()
    assert {subnet for group in groups for subnet in group["subnets"]} == set(subnets)
    fleet.engine.destroy()
    assert set(account.everything()) >= {vpc, *subnets}, "what existed before must stay"


def test_an_existing_network_whose_nodes_would_not_find_the_cluster_is_refused(
    network: tuple[str, list[str]], fleet: Maker, account: Account
) -> None:
    vpc, subnets = network
    account.ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": False})
    with pytest.raises(InputErrors, match="has enableDnsHostnames switched off"):
        fleet.make(network={"vpcId": vpc, "privateSubnetIds": subnets})
    assert fleet.engine.made == []


def test_nodes_reach_aws_through_interface_endpoints(fleet: Maker, account: Account) -> None:
    fleet.make(network={"zones": 2, "interfaceEndpoints": True})
    services = {
        e["ServiceName"].partition(f"{REGION}.")[2] for e in account.ec2.describe_vpc_endpoints()["VpcEndpoints"]
    }
    assert services == {"s3", "ecr.api", "ecr.dkr", "sts", "ec2", "eks", "eks-auth", "logs", "autoscaling"}
    for endpoint in account.ec2.describe_vpc_endpoints()["VpcEndpoints"]:
        if endpoint["VpcEndpointType"] == "Interface":
            assert endpoint["PrivateDnsEnabled"] is True, "nodes would use the public address, which they cannot reach"
    rules = [state for kind, _, state in fleet.engine.made if kind.endswith("SecurityGroupIngressRule")]
    assert [(r["cidrIpv4"], r["fromPort"], r["toPort"]) for r in rules] == [("10.0.0.0/16", 443, 443)]


def test_an_existing_bucket_is_read_and_neither_made_nor_changed(bucket: str, fleet: Maker) -> None:
    made = fleet.make(mirror={"create": False, "bucket": bucket})
    assert not [kind for kind in made if kind.startswith("Bucket")]
    policies = [state["policy"] for kind, _, state in fleet.engine.made if kind == "aws:iam/policy:Policy"]
    assert any("arn:aws:s3:::ours/code/*" in json.dumps(json.loads(policy)) for policy in policies)


def test_the_code_bears_its_own_tags_alone_because_s3_allows_ten(fleet: Maker, account: Account) -> None:
    fleet.make(with_code=True, tags={f"cost-centre-{number}": "ml" for number in range(12)})
    (bucket,) = [state["bucket"] for kind, _, state in fleet.engine.made if kind == "aws:s3/bucket:Bucket"]
    (key,) = [item["Key"] for item in account.s3.list_objects_v2(Bucket=bucket)["Contents"]]
    tags = account.s3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
    assert {tag["Key"] for tag in tags} == {"modelfleet.dev/stack", "modelfleet.dev/managed-by"}
    assert len(account.s3.get_bucket_tagging(Bucket=bucket)["TagSet"]) > 12, "the bucket's go on the bill"


def test_a_quota_of_addresses_that_is_used_up_makes_nothing(fleet: Maker, account: Account) -> None:
    taken = [account.ec2.allocate_address(Domain="vpc")["AllocationId"] for _ in range(5)]
    try:
        with pytest.raises(InputErrors, match="needs 1 Elastic IP addresses, and others have 5 of the 5"):
            fleet.make()
        assert fleet.engine.made == []
    finally:
        for allocation in taken:
            account.ec2.release_address(AllocationId=allocation)


def test_an_image_that_ecr_lacks_makes_nothing(fleet: Maker) -> None:
    image = "123456789012.dkr.ecr.us-west-2.amazonaws.com/nobody:1"
    with pytest.raises(InputErrors, match="which ECR does not have"):
        fleet.make(kubernetes={"image": image})
    assert fleet.engine.made == []


def test_a_public_endpoint_is_for_the_named_networks(fleet: Maker, account: Account) -> None:
    fleet.make(cluster={"publicAccessCidrs": ["203.0.113.0/24"]})
    vpc = account.cluster(CLUSTER)["resourcesVpcConfig"]
    assert (vpc["endpointPublicAccess"], vpc["publicAccessCidrs"]) == (True, ["203.0.113.0/24"])
    assert vpc["endpointPrivateAccess"] is True, "nodes must not leave the VPC to reach the cluster"


def test_a_vpn_and_a_bastion_reach_the_private_endpoint_through_the_clusters_own_group(
    network: tuple[str, list[str]], fleet: Maker, account: Account, emulator: Emulator
) -> None:
    vpc, subnets = network
    bastion = account.ec2.create_security_group(GroupName="bastion", Description="bastion", VpcId=vpc)["GroupId"]
    fleet.make(
        network={"vpcId": vpc, "privateSubnetIds": subnets},
        cluster={
            "publicAccessCidrs": [],
            "privateAccessCidrs": ["10.8.0.0/16"],
            "privateAccessSecurityGroupIds": [bastion],
        },
    )
    assert account.cluster(CLUSTER)["resourcesVpcConfig"]["endpointPublicAccess"] is False
    group = account.cluster(CLUSTER)["resourcesVpcConfig"]["clusterSecurityGroupId"]
    rules = account.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    opened = [one for one in rules if one["IpProtocol"] != "-1"]  # EKS's own lets in who has the group
    assert {(one["FromPort"], one["ToPort"], one["IpProtocol"]) for one in opened} == {(443, 443, "tcp")}
    assert [r["CidrIp"] for one in opened for r in one["IpRanges"]] == ["10.8.0.0/16"]
    assert [g["GroupId"] for one in opened for g in one["UserIdGroupPairs"]] == [bastion]
    (said,) = (one.message for one in run_preflight(fleet.plan) if "cannot be reached" in one.message)
    assert "run this where privateAccessCidrs or publicAccessCidrs allow it" in said
    emulator.switch(HERE_IS, "10.8.0.5")
    assert not [one for one in run_preflight(fleet.plan) if "cannot be reached" in one.message], "the VPN is let in"
    emulator.switch(HERE_IS, HERE)
    fleet.engine.destroy()
    account.ec2.delete_security_group(GroupId=bastion)


def test_administrators_are_those_of_the_stack_file_and_pinned_versions_are_taken(
    admins: str, fleet: Maker, account: Account
) -> None:
    caller = account.client("sts").get_caller_identity()["Arn"]
    fleet.make(
        cluster={
            "adminRoleArns": [admins, caller],
            "addonVersions": {"coredns": "v1.0.0-eksbuild.7"},
            "nodeRelease": "1.35.0-20261101",
        }
    )
    assert set(account.entries(CLUSTER)) == {admins, caller}
    assert account.addons(CLUSTER)["coredns"]["addonVersion"] == "v1.0.0-eksbuild.7"
    assert account.node_groups(CLUSTER)["l4"]["releaseVersion"] == "1.35.0-20261101"


def test_a_prometheus_of_the_stacks_own_brings_the_driver_of_its_volume_with_a_role(
    fleet: Maker, account: Account
) -> None:
    fleet.make(observability={"metrics": "own"})
    addons = account.addons(CLUSTER)
    assert "kube-state-metrics" in addons
    (identity,) = addons["aws-ebs-csi-driver"]["podIdentityAssociations"]
    assert identity["serviceAccount"] == "ebs-csi-controller-sa"
    role = identity["roleArn"].rpartition("/")[2]
    attached = account.iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    assert [one["PolicyName"] for one in attached] == ["AmazonEBSCSIDriverPolicyV2"]


def test_amazons_prometheus_scrapes_the_cluster_and_sends_alerts_to_who_is_named(
    fleet: Maker, account: Account
) -> None:
    fleet.make(observability={"metrics": "amp", "alertEmails": ["pager@example.org"]}, alertWebhook=HOOK)
    amp, sns = account.client("amp"), account.client("sns")
    (workspace,) = amp.list_workspaces()["workspaces"]
    (ours,) = [state for kind, _, state in fleet.engine.made if kind == "aws:amp/workspace:Workspace"]
    assert ours["tags"] == workspace["tags"], "AWS adds a tag of its own; each run would take it away"
    (one,) = amp.list_scrapers()["scrapers"]
    scraper = amp.describe_scraper(scraperId=one["scraperId"])["scraper"]
    assert scraper["destination"]["ampConfiguration"]["workspaceArn"] == workspace["arn"]
    network, source = account.cluster(CLUSTER)["resourcesVpcConfig"], scraper["source"]["eksConfiguration"]
    assert source["securityGroupIds"] == [network["clusterSecurityGroupId"]]
    assert scraper["scrapeConfiguration"]["configurationBlob"].decode() == scraper_config(fleet.plan)
    assert scraper["roleArn"] in account.entries(CLUSTER), "AWS lets it in; the program makes no entry for it"
    rules = amp.describe_rule_groups_namespace(workspaceId=workspace["workspaceId"], name="modelfleet")
    assert rules["ruleGroupsNamespace"]["data"].decode() == rules_file(fleet.plan)
    found = amp.describe_alert_manager_definition(workspaceId=workspace["workspaceId"])["alertManagerDefinition"]
    (topic,) = [one["TopicArn"] for one in sns.list_topics()["Topics"]]
    assert found["data"].decode() == alert_manager_definition(fleet.plan, topic)
    told_now = {(one["Protocol"], one["Endpoint"]) for one in sns.list_subscriptions()["Subscriptions"]}
    assert told_now == {("email", "pager@example.org"), ("https", WEBHOOK)}
    addons = account.addons(CLUSTER)
    assert "kube-state-metrics" in addons and "aws-ebs-csi-driver" not in addons
    fleet.engine.destroy()
    assert account.everything() == []


def test_logs_in_cloudwatch_have_a_group_with_days_and_a_key_and_go_with_the_stack(
    fleet: Maker, account: Account
) -> None:
    fleet.make(observability={"logs": "cloudwatch", "logRetentionDays": 90})
    logs, name = account.client("logs"), f"/aws/eks/{CLUSTER}/pods"
    groups = {one["logGroupName"]: one for one in logs.describe_log_groups()["logGroups"]}
    assert groups[name]["retentionInDays"] == 90
    assert groups[name]["kmsKeyId"] == groups[f"/aws/eks/{CLUSTER}/cluster"]["kmsKeyId"], "its policy lets both in"
    assert "kube-system/log-collector" in account.parts(CLUSTER)
    fleet.engine.destroy()
    assert name not in {one["logGroupName"] for one in logs.describe_log_groups()["logGroups"]}


def test_each_rung_of_a_ladder_is_a_node_group_per_zone(fleet: Maker, account: Account) -> None:
    fleet.make(pools=[LADDER])
    groups = {name.rpartition("-")[0]: group for name, group in _groups_of(account, "l4").items()}
    bought = {name: (group["capacityType"], tuple(group["instanceTypes"])) for name, group in groups.items()}
    both = ("g6.xlarge", "g6.2xlarge")
    assert bought == {
        "l4_odcr-b": ("ON_DEMAND", ("g6.xlarge",)),
        "l4_spot-a": ("SPOT", both),
        "l4_spot-b": ("SPOT", both),
        "l4-a": ("ON_DEMAND", both),
        "l4-b": ("ON_DEMAND", both),
        "l4_a10g-a": ("ON_DEMAND", ("g5.xlarge",)),
        "l4_a10g-b": ("ON_DEMAND", ("g5.xlarge",)),
    }
    cards = {group["labels"]["k8s.amazonaws.com/accelerator"] for name, group in groups.items() if "a10g" in name}
    assert cards == {"a10g"}, "the autoscaler looks there for what a new node is"
    assert {group["scalingConfig"]["minSize"] for group in groups.values()} == {0}, "no rung insists on minNodes"
    reserved = {
        name: (account.template(group).get("CapacityReservationSpecification") or {}).get("CapacityReservationTarget")
        for name, group in groups.items()
    }
    assert reserved.pop("l4_odcr-b") == {"CapacityReservationId": "cr-0123456789abcdef0"}
    assert set(reserved.values()) == {None}, "only the first rung may use it"
    assert "InstanceType" not in account.template(groups["l4_odcr-b"]), "EKS takes types from one place"
    for name, group in groups.items():
        assert len(account.scaling_tags(group)) == 3, f"{name}: the autoscaler does not see that its node has a GPU"


def test_the_autoscalers_priorities_know_the_groups_by_their_names(fleet: Maker, account: Account) -> None:
    """A pattern that matches none would leave the choice to the least waste, and nobody would notice."""
    fleet.make(pools=[LADDER])
    expander = PriorityExpander(priority_expander(fleet.plan))
    found = {name: expander.priority(f"eks-{name}-{UUID}") for name in _groups_of(account, "l4")}
    assert {name.rpartition("-")[0]: priority for name, priority in found.items()} == {
        "l4_odcr-b": 100,
        "l4_spot-a": 99,
        "l4_spot-b": 99,
        "l4-a": 98,
        "l4-b": 98,
        "l4_a10g-a": 97,
        "l4_a10g-b": 97,
    }


def _groups_of(account: Account, pool: str) -> dict[str, dict[str, Any]]:
    """The node groups of one pool by name."""
    found = {}
    for name in account.eks.list_nodegroups(clusterName=CLUSTER, maxResults=100)["nodegroups"]:
        group = account.eks.describe_nodegroup(clusterName=CLUSTER, nodegroupName=name)["nodegroup"]
        if group["labels"]["modelfleet.dev/pool"] == pool:
            found[name] = group
    return found


def test_the_workloads_wait_for_the_system_pool_and_for_no_other(fleet: Maker) -> None:
    """One pool without free machines would keep all models from serving."""
    fleet.make()
    awaited = {one._name for one in fleet.fleets[0].ready if isinstance(one, aws.eks.NodeGroup)}
    assert awaited == {f"aws-system-{REGION}{zone}" for zone in "ab"}


@pytest.mark.usefixtures("four_vcpus")
def test_a_refused_plan_makes_nothing_and_says_everything(fleet: Maker, account: Account) -> None:
    before = account.everything()
    with pytest.raises(InputErrors) as refused:
        fleet.make(
            accountId="999999999999",
            pools=[POOL, {**POOL, "name": "far", "zones": ["us-west-2d"]}],
        )
    said = str(refused.value)
    assert "the credentials belong to account 123456789012" in said
    assert "found us-west-2d, outside the network's zones" in said
    assert "quota L-DB2E81BA in us-west-2 is 4" in said
    assert fleet.engine.made == []
    assert account.everything() == before


KEYED: dict[str, Any] = {"auth": "keys", "apiKeys": {"one": {"secure": "v1:AAAA:AAAA"}}}


@pytest.fixture
def zone(account: Account) -> str:
    """A public zone, whose id this is."""
    route53 = account.client("route53")
    made = route53.create_hosted_zone(Name="example.org", CallerReference="choices")
    return str(made["HostedZone"]["Id"]).rpartition("/")[2]


def test_a_front_door_is_a_load_balancer_with_a_certificate_and_a_name_in_dns(
    fleet: Maker, account: Account, zone: str
) -> None:
    wall = _web_acl(account, "wall")
    door = {"expose": "internet", "hostname": "models.example.org", "zone": "example.org", "timeoutS": 1800}
    fleet.make(gateway={**door, "webAcl": wall}, **KEYED)
    elb = account.client("elbv2")
    (balancer,) = elb.describe_load_balancers()["LoadBalancers"]
    assert (balancer["Type"], balancer["Scheme"]) == ("application", "internet-facing")
    arn = balancer["LoadBalancerArn"]
    attributes = elb.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]
    assert {"Key": "idle_timeout.timeout_seconds", "Value": "1800"} in attributes
    assert account.client("wafv2").get_web_acl_for_resource(ResourceArn=arn)["WebACL"]["Name"] == "wall"
    (listener,) = elb.describe_listeners(LoadBalancerArn=arn)["Listeners"]
    assert (listener["Protocol"], listener["Port"]) == ("HTTPS", 443)
    (certificate,) = listener["Certificates"]
    known = account.client("acm").describe_certificate(CertificateArn=certificate["CertificateArn"])["Certificate"]
    assert (known["DomainName"], known["Status"]) == ("models.example.org", "ISSUED")
    records = account.client("route53").list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
    (record,) = (one for one in records if one["Type"] == "A")
    assert record["Name"] == "models.example.org."
    assert record["AliasTarget"]["DNSName"].rstrip(".") == balancer["DNSName"]


def test_another_web_acl_judges_what_comes_after_a_second_run(fleet: Maker, account: Account) -> None:
    """Dissociating names the load balancer alone: after the new association it would leave none (pulumi-aws#4782)."""
    door = {"expose": "internal"}
    for name in ("before", "after"):
        fleet.make(gateway={**door, "webAcl": _web_acl(account, name)}, **KEYED)
        (balancer,) = account.client("elbv2").describe_load_balancers()["LoadBalancers"]
        judge = account.client("wafv2").get_web_acl_for_resource(ResourceArn=balancer["LoadBalancerArn"])
        assert judge.get("WebACL", {}).get("Name") == name


def _web_acl(account: Account, name: str) -> str:
    """The ARN of a web ACL that somebody else made."""
    looks = {"SampledRequestsEnabled": False, "CloudWatchMetricsEnabled": False, "MetricName": name}
    made = account.client("wafv2").create_web_acl(
        Name=name, Scope="REGIONAL", DefaultAction={"Allow": {}}, VisibilityConfig=looks
    )
    return str(made["Summary"]["ARN"])


def test_pods_are_reached_from_the_load_balancer_alone_and_it_by_named_networks_alone(
    fleet: Maker, account: Account
) -> None:
    fleet.make(gateway={"expose": "internal", "allowCidrs": ["10.0.0.0/8"]})
    elb = account.client("elbv2")
    (balancer,) = elb.describe_load_balancers()["LoadBalancers"]
    assert balancer["Scheme"] == "internal"
    (group,) = balancer["SecurityGroups"]
    rules = account.ec2.describe_security_group_rules()["SecurityGroupRules"]
    own = [rule for rule in rules if rule["GroupId"] == group]
    (come,) = (rule for rule in own if not rule["IsEgress"])
    assert (come["CidrIpv4"], come["FromPort"], come["ToPort"]) == ("10.0.0.0/8", 80, 80)
    (go,) = (rule for rule in own if rule["IsEgress"])
    (into,) = (rule for rule in rules if rule.get("ReferencedGroupInfo", {}).get("GroupId") == group)
    assert (into["IsEgress"], into["FromPort"], into["ToPort"]) == (False, 8081, 8081)
    assert (go["ReferencedGroupInfo"]["GroupId"], go["FromPort"], go["ToPort"]) == (into["GroupId"], 8081, 8081)
    assert into["GroupId"] != group, "the nodes' group"
    (targets,) = elb.describe_target_groups()["TargetGroups"]
    assert (targets["TargetType"], targets["Port"], targets["HealthCheckPath"]) == ("ip", 8081, "/health")
    attributes = elb.describe_target_group_attributes(TargetGroupArn=targets["TargetGroupArn"])["Attributes"]
    assert {"Key": "deregistration_delay.timeout_seconds", "Value": "540"} in attributes, "a node's drain on EKS"


def test_a_zone_that_the_account_does_not_have_stops_the_run_before_anything_is_made(
    fleet: Maker, account: Account
) -> None:
    door = {"expose": "internet", "hostname": "models.example.net", "zone": "example.net"}
    with pytest.raises(
        InputErrors, match=r"gateway\.zone: found 'example\.net', and account \d+ has no public Route 53"
    ):
        fleet.make(gateway=door, **KEYED)
    assert account.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
