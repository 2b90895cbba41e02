"""One fleet with all five accelerators on the emulated AWS, from its first preview to its end.

One stack for the whole file, because a fleet of 120 resources takes seconds to make. `account` and `live` bring it to
where a test begins, whatever the test before left. In the order of the file they have nothing to do.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from modelfleet.infra.aws import policies
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.names import AUTOSCALER, AUTOSCALER_NAMESPACE, READERS, WRITER
from modelfleet.infra.planning.plan import Plan
from tests.engine.aws_account import Account
from tests.engine.aws_fleet import ACCOUNT, FIVE, POOLS, REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tests.engine.engine import Run
from tools.cloud.app import DRAINS
from tools.cloud.backends.addons import default_version
from tools.cloud.evaluator import allowed

CLUSTER = "modelfleet-test"
NAMESPACE = "modelfleet-test"
#: Of the service accounts with a role.
NAMESPACES = {**dict.fromkeys(READERS, NAMESPACE), WRITER: f"{NAMESPACE}-mirror"}
BUCKET = f"modelfleet-test-{ACCOUNT}"
STACK = stack_of(pools=POOLS, network={"cidr": "10.0.0.0/16", "zones": 3, "nat": "single"}, tags={"team": "ml"})


@dataclass(frozen=True)
class FirstRuns:
    """The first preview, what existed after it, and the first `up`."""

    preview: Run
    after_preview: list[object]
    up: Run


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, emulator: Emulator) -> Iterator[FleetProject]:
    project = FleetProject(tmp_path_factory.mktemp("fleet"), emulator)
    project.files(STACK, FIVE)
    yield project
    assert not project.living_processes(), "processes outlive their test"


@pytest.fixture(scope="module")
def first(fleet: FleetProject, emulator: Emulator) -> FirstRuns:
    preview = fleet.preview()
    there = [*emulator.client("eks", REGION).list_clusters()["clusters"], *emulator.buckets()]
    return FirstRuns(preview, there, fleet.up())


@pytest.fixture
def live(fleet: FleetProject, first: FirstRuns, emulator: Emulator) -> FleetProject:
    """The fleet is there, with whatever pools, models and tags."""
    if not emulator.buckets():
        fleet.up()
    return fleet


@pytest.fixture
def account(live: FleetProject, emulator: Emulator) -> Account:
    """The account with the fleet of `STACK` and `FIVE`."""
    if live.written != (STACK, FIVE):
        live.files(STACK, FIVE)
        live.up("--refresh")
    return Account(emulator, REGION)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, emulator: Emulator) -> Plan:
    project = FleetProject(tmp_path_factory.mktemp("plan"), emulator)
    project.files(STACK, FIVE)
    return project.plan()


def test_a_preview_before_the_first_up_shows_creates_only_and_makes_nothing(first: FirstRuns) -> None:
    assert set(first.preview.changes) == {"create"}
    assert first.preview.changes["create"] > 100
    assert first.after_preview == []


def test_the_up_makes_what_the_preview_said(first: FirstRuns) -> None:
    assert first.up.changes == first.preview.changes


def test_each_pool_is_a_node_group_with_the_plans_capacity(account: Account, plan: Plan) -> None:
    groups = account.zone_groups(CLUSTER)
    assert set(groups) == {"system", "mirror", "t4", "l4", "a10g", "a100", "block"}
    for pool in plan.pools:
        for zone, group in groups[pool.name].items():
            sizes = {"minSize": 0, "desiredSize": 0, "maxSize": pool.max_nodes}
            assert group["scalingConfig"] == sizes, (pool.name, zone, "GPUs are bought when Ray asks, not before")
    assert plan.pools[2].min_nodes == 1, "a10g has a model with min_replicas 1"


def test_copies_of_weights_have_nodes_of_their_own_that_exist_only_while_one_runs(account: Account, plan: Plan) -> None:
    """On the system nodes one model of 70 B filled the disk, and the Ray head was evicted."""
    group, pool = account.node_groups(CLUSTER)["mirror"], plan.copies.pool
    assert pool is not None
    assert group["scalingConfig"] == {"minSize": 0, "desiredSize": 0, "maxSize": 2}
    assert (group["instanceTypes"], group["amiType"]) == (["m7i.2xlarge"], "AL2023_x86_64_STANDARD")
    assert group["labels"] == {"modelfleet.dev/stack": "test", "modelfleet.dev/pool": "mirror"}
    assert group["taints"] == [{"key": "modelfleet.dev/pool", "value": "mirror", "effect": "NO_SCHEDULE"}]
    (disk,) = account.template(group)["BlockDeviceMappings"]
    assert (disk["Ebs"]["VolumeSize"], disk["Ebs"]["Throughput"]) == (100, 600), "it holds the image and no weights"
    tags = account.scaling_tags(group)
    template = "k8s.io/cluster-autoscaler/node-template"
    assert tags[f"{template}/taint/modelfleet.dev/pool"] == "mirror:NoSchedule"
    assert tags[f"{template}/resources/ephemeral-storage"] == "85G", "a Job asks for disk, and no node is there yet"


def test_each_node_group_has_the_plans_labels_and_taints(account: Account, plan: Plan) -> None:
    groups = account.node_groups(CLUSTER)
    for pool in plan.pools:
        group = groups[pool.name]
        assert group["labels"] == dict(pool.rungs[0].labels)
        assert group["taints"] == [{"key": "nvidia.com/gpu", "value": "true", "effect": "NO_SCHEDULE"}]
    assert groups["a100"]["labels"]["nvidia.com/gpu.count"] == "8"
    assert groups["t4"]["labels"]["nvidia.com/gpu.count"] == "1"
    assert groups["system"].get("taints", []) == [], "coredns has nowhere to run when all groups are tainted"


def test_a_node_of_each_pool_is_what_the_plan_says_and_holds_its_worker(
    account: Account, emulator: Emulator, plan: Plan
) -> None:
    """A node's labels and taints are what pods are scheduled by, and a worker takes what the daemon sets leave."""
    with _a_node_each(account, plan):
        nodes = {node["labels"]["modelfleet.dev/pool"]: node for node in emulator.nodes(REGION)}
    for pool in plan.node_groups:
        node = nodes[pool.name]
        offered, gpus = node["allocatable"], pool.node.gpus
        cpu, memory = default_catalog().daemon_requests(gpu=gpus > 0)
        assert pool.node.cpu_millis + cpu <= offered["cpu"], pool.name
        assert (pool.node.memory_mib + memory) * 2**20 <= offered["memory"], pool.name
        assert pool.node.disk_gb * 10**9 <= offered["ephemeral-storage"], pool.name
        assert offered.get("nvidia.com/gpu", 0) == gpus, pool.name
        assert node["labels"].items() >= dict(pool.rungs[0].labels).items(), pool.name
        assert node["taints"] == [vars(taint) for taint in pool.taints], pool.name
    assert nodes["system"]["taints"] == []


@contextmanager
def _a_node_each(account: Account, plan: Plan) -> Iterator[None]:
    """A node in the first group of each pool, as cluster-autoscaler starts it."""
    scaling, groups = account.client("autoscaling"), account.node_groups(CLUSTER)
    names = [groups[pool.name]["resources"]["autoScalingGroups"][0]["name"] for pool in plan.node_groups]
    for name in names:
        scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=1)
    yield
    for name in names:
        scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=0)


def test_each_node_group_buys_as_its_pool_says(account: Account) -> None:
    groups = account.node_groups(CLUSTER)
    bought = {pool: (group["capacityType"], group["amiType"]) for pool, group in groups.items()}
    assert bought == {
        "system": ("ON_DEMAND", "AL2023_x86_64_STANDARD"),
        "mirror": ("ON_DEMAND", "AL2023_x86_64_STANDARD"),
        "t4": ("SPOT", "AL2023_x86_64_NVIDIA"),
        "l4": ("ON_DEMAND", "AL2023_x86_64_NVIDIA"),
        "a10g": ("ON_DEMAND", "AL2023_x86_64_NVIDIA"),
        "a100": ("ON_DEMAND", "AL2023_x86_64_NVIDIA"),
        "block": ("CAPACITY_BLOCK", "AL2023_x86_64_NVIDIA"),
    }
    assert groups["t4"]["instanceTypes"] == ["g4dn.xlarge", "g4dn.2xlarge"]
    block = account.template(groups["block"])
    assert block["InstanceMarketOptions"] == {"MarketType": "capacity-block"}
    assert block["InstanceType"] == "p4de.24xlarge"
    target = block["CapacityReservationSpecification"]["CapacityReservationTarget"]
    assert target == {"CapacityReservationId": "cr-0123456789abcdef0"}


def test_updates_and_repairs_take_one_node_at_a_time(account: Account) -> None:
    for pool, group in account.node_groups(CLUSTER).items():
        # A GPU to spare can seldom be had; what runs on system nodes needs a place before its node ends.
        strategy = "DEFAULT" if pool == "system" else "MINIMAL"
        assert group["updateConfig"] == {"maxUnavailable": 1, "updateStrategy": strategy}, pool
        assert group["nodeRepairConfig"]["enabled"] is True, pool
        assert group["nodeRepairConfig"]["maxParallelNodesRepairedCount"] == 1, pool
        # A group is one zone and often one node: with a lower share EKS would never repair it.
        assert group["nodeRepairConfig"]["maxUnhealthyNodeThresholdPercentage"] == 100, pool
        named = re.fullmatch(rf"{pool}(_spot|_block)?-[a-d]-[0-9a-f]{{26}}", group["nodegroupName"])
        assert named, "with a fixed name a replacement could not be made first"


def test_a_node_group_lies_only_in_zones_that_offer_its_type(account: Account) -> None:
    groups = account.zone_groups(CLUSTER)
    for pool, own in groups.items():
        types = next(iter(own.values()))["instanceTypes"] if pool != "block" else ["p4de.24xlarge"]
        offers = account.ec2.describe_instance_type_offerings(
            LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": types[:1]}]
        )["InstanceTypeOfferings"]
        assert own.keys() <= {offer["Location"] for offer in offers}, pool
    assert set(groups["block"]) == {"us-west-2b"}
    assert len(groups["t4"]) > 1, "a zone without free machines must not stop the pool"
    assert len(groups["system"]) == 3, "a failing zone must not take the head down"


def test_the_system_pool_holds_what_a_cluster_needs_itself(account: Account) -> None:
    system = account.node_groups(CLUSTER)["system"]
    sizes = [group["scalingConfig"] for group in account.zone_groups(CLUSTER)["system"].values()]
    assert [size["minSize"] for size in sizes] == [1, 1, 0], "two nodes in two zones"
    assert [size["desiredSize"] for size in sizes] == [1, 1, 0]
    assert {size["maxSize"] for size in sizes} == {3}, "a second Ray head needs a node more than always runs"
    assert system["instanceTypes"] == ["m7i.xlarge"]
    assert system["labels"] == {"modelfleet.dev/stack": "test", "modelfleet.dev/pool": "system"}


def test_each_node_has_imdsv2_an_encrypted_fast_volume_and_its_nvme_in_one_piece(account: Account, plan: Plan) -> None:
    groups = account.node_groups(CLUSTER)
    for pool in ("system", *(pool.name for pool in plan.pools)):
        data = account.template(groups[pool])
        assert data["MetadataOptions"] == {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
        }, pool
        (device,) = data["BlockDeviceMappings"]
        assert device["DeviceName"] == "/dev/xvda"
        ebs = device["Ebs"]
        assert (ebs["Encrypted"], ebs["DeleteOnTermination"], ebs["VolumeType"]) == (True, True, "gp3"), pool
        assert ebs["VolumeSize"] == (50 if pool == "system" else 200)
        assert not data.get("NetworkInterfaces"), "with interfaces of its own (EFA) EKS adds no security group"
        # SOCI below 600 MiB/s is slower than without.
        assert (ebs.get("Throughput"), ebs.get("Iops")) == ((None, None) if pool == "system" else (600, 6000)), pool
        node_config = base64.b64decode(data["UserData"]).decode()
        assert "Content-Type: application/node.eks.aws" in node_config
        assert '"strategy": "RAID0"' in node_config
        assert ("FastImagePull" in node_config) is (pool != "system")
        tags = {
            spec["ResourceType"]: {t["Key"]: t["Value"] for t in spec["Tags"]} for spec in data["TagSpecifications"]
        }
        assert tags.keys() - {"launch-template"} == {"instance", "volume"}, "moto adds the template itself"
        for kind in ("instance", "volume"):
            assert tags[kind].items() >= {"team": "ml", "modelfleet.dev/pool": pool}.items(), (
                "the tags must say who pays"
            )


def test_scaling_from_zero_knows_gpus_disk_and_taints(account: Account) -> None:
    groups = account.node_groups(CLUSTER)
    template = "k8s.io/cluster-autoscaler/node-template"
    tags = account.scaling_tags(groups["a100"])
    assert tags[f"{template}/resources/nvidia.com/gpu"] == "8"
    assert tags[f"{template}/taint/nvidia.com/gpu"] == "true:NoSchedule"
    assert tags[f"{template}/resources/ephemeral-storage"] == "6400G"
    for pool in ("t4", "l4", "a10g", "block"):
        assert len(account.scaling_tags(groups[pool])) == 3, pool
    assert account.scaling_tags(groups["system"]) == {f"{template}/resources/ephemeral-storage": "42G"}, (
        "a second Ray head requests disk, and would fit no node that does not exist yet"
    )
    assert not any(tag["PropagateAtLaunch"] for tag in account.node_template_tags()), (
        "they describe a node and are not for the node itself"
    )


def test_the_network_keeps_nodes_private_and_weights_off_the_nat(account: Account) -> None:
    (vpc,) = account.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["false"]}])["Vpcs"]
    subnets = account.ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["Subnets"]
    roles = {key: [s for s in subnets if key in {t["Key"] for t in s["Tags"]}] for key in _ROLES}
    private, public = roles["kubernetes.io/role/internal-elb"], roles["kubernetes.io/role/elb"]
    assert sorted(s["CidrBlock"] for s in private) == ["10.0.0.0/19", "10.0.32.0/19", "10.0.64.0/19"]
    assert sorted(s["CidrBlock"] for s in public) == ["10.0.224.0/24", "10.0.225.0/24", "10.0.226.0/24"]
    tables = account.ec2.describe_route_tables()["RouteTables"]
    for subnet in private:
        (table,) = [t for t in tables if subnet["SubnetId"] in {a.get("SubnetId") for a in t["Associations"]}]
        targets = {route.get("DestinationCidrBlock", "S3"): route for route in table["Routes"]}
        assert targets["0.0.0.0/0"]["NatGatewayId"].startswith("nat-")
        assert "GatewayId" not in targets["0.0.0.0/0"], "a private subnet must not be reachable"
    for key in ("enableDnsSupport", "enableDnsHostnames"):
        answer = account.ec2.describe_vpc_attribute(VpcId=vpc["VpcId"], Attribute=key)
        assert answer[key[:1].upper() + key[1:]]["Value"] is True, "the private endpoint has no name in the VPC"
    assert not any(subnet["MapPublicIpOnLaunch"] for subnet in subnets), "a node would get a public address"
    (endpoint,) = account.ec2.describe_vpc_endpoints()["VpcEndpoints"]
    assert endpoint["VpcEndpointType"] == "Gateway"
    wanted = {t["RouteTableId"] for t in tables for a in t["Associations"] if a.get("SubnetId") in _ids(private)}
    assert set(endpoint["RouteTableIds"]) == wanted, "weights would cross a NAT gateway at 0.045 USD per GB"
    (nat,) = account.ec2.describe_nat_gateways()["NatGateways"]
    assert nat["SubnetId"] in _ids(public)


_ROLES = ("kubernetes.io/role/internal-elb", "kubernetes.io/role/elb")


def _ids(subnets: list[Any]) -> set[str]:
    return {subnet["SubnetId"] for subnet in subnets}


def test_the_default_security_group_lets_nothing_through(account: Account) -> None:
    (vpc,) = account.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["false"]}])["Vpcs"]
    groups = account.ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])
    (default,) = [g for g in groups["SecurityGroups"] if g["GroupName"] == "default"]
    assert (default["IpPermissions"], default["IpPermissionsEgress"]) == ([], [])


def test_the_cluster_is_for_named_networks_encrypted_logged_and_has_no_hidden_administrator(
    live: FleetProject, account: Account
) -> None:
    cluster = account.cluster(CLUSTER)
    assert cluster["accessConfig"] == {
        "authenticationMode": "API",
        "bootstrapClusterCreatorAdminPermissions": False,
    }
    vpc = cluster["resourcesVpcConfig"]
    assert (vpc["endpointPrivateAccess"], vpc["publicAccessCidrs"]) == (True, ["203.0.113.0/24"])
    assert cluster["encryptionConfig"][0]["resources"] == ["secrets"]
    key = cluster["encryptionConfig"][0]["provider"]["keyArn"].rpartition("/")[2]
    assert account.kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is True
    assert cluster["upgradePolicy"] == {"supportType": "STANDARD"}
    (asked,) = (one["inputs"] for one in live.resources() if one["type"] == "aws:eks/cluster:Cluster")
    assert asked["bootstrapSelfManagedAddons"] is False, "EKS would make a second CNI next to the add-on"
    (logging,) = cluster["logging"]["clusterLogging"]
    assert set(logging["types"]) == {"api", "audit", "authenticator", "controllerManager", "scheduler"}
    (group,) = account.client("logs").describe_log_groups()["logGroups"]
    assert group["logGroupName"] == f"/aws/eks/{CLUSTER}/cluster"
    assert (group["retentionInDays"], group["kmsKeyId"].rpartition("/")[2]) == (90, key)
    (alias,) = [a for a in account.kms.list_aliases()["Aliases"] if a.get("TargetKeyId") == key]
    assert alias["AliasName"] == f"alias/{CLUSTER}"
    (entry,) = account.entries(CLUSTER).values()  # without one nobody could enter the cluster
    (association,) = entry
    assert association["policyArn"].endswith("cluster-access-policy/AmazonEKSClusterAdminPolicy")
    assert association["accessScope"]["type"] == "cluster"


def test_the_add_ons_have_versions_and_the_cni_a_role_of_its_own(account: Account) -> None:
    addons = account.addons(CLUSTER)
    assert set(addons) == {
        "coredns",
        "eks-node-monitoring-agent",
        "eks-pod-identity-agent",
        "kube-proxy",
        "metrics-server",
        "vpc-cni",
    }
    versions = {name: addon["addonVersion"] for name, addon in addons.items()}
    minor = account.cluster(CLUSTER)["version"]
    assert versions == {name: default_version(name, minor) for name in addons}, "the newest changes with each release"
    (identity,) = addons["vpc-cni"]["podIdentityAssociations"]
    assert identity["serviceAccount"] == "aws-node"
    role = identity["roleArn"].rpartition("/")[2]
    (policy,) = account.iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    assert policy["PolicyName"] == "AmazonEKS_CNI_Policy"
    configuration = json.loads(addons["vpc-cni"]["configurationValues"])
    assert configuration["env"]["WARM_IP_TARGET"] == "5"
    assert configuration["enableNetworkPolicy"] == "true", "otherwise every pod reaches Ray's dashboard"
    node = account.node_groups(CLUSTER)["a10g"]["nodeRole"].rpartition("/")[2]
    nodes = account.iam.list_attached_role_policies(RoleName=node)["AttachedPolicies"]
    assert {p["PolicyName"] for p in nodes} == {
        "AmazonEKSWorkerNodePolicy",
        "AmazonEC2ContainerRegistryPullOnly",
    }, "more than these would be a right of every pod on the node's network"
    (toleration,) = json.loads(addons["eks-node-monitoring-agent"]["configurationValues"])["dcgmAgent"]["tolerations"]
    assert (toleration["key"], toleration["effect"]) == ("nvidia.com/gpu", "NoSchedule"), "no GPU fault would be seen"


def test_nodes_wait_for_the_network_add_ons_and_coredns_for_nodes(fleet: FleetProject, account: Account) -> None:
    by_urn = {resource["urn"]: resource for resource in fleet.resources()}

    def before(urn: str) -> set[str]:
        direct = set(by_urn[urn].get("dependencies", []))
        return direct | {far for near in direct if near in by_urn for far in before(near)}

    def names(urn: str) -> set[str]:
        return {other.rpartition("::")[2] for other in before(urn)}

    groups = [urn for urn in by_urn if "aws:eks/nodeGroup:NodeGroup" in urn]
    assert len(groups) == sum(len(own) for own in account.zone_groups(CLUSTER).values())
    for urn in groups:
        assert {"aws-basics-vpc-cni", "aws-basics-kube-proxy", "aws-basics-eks-pod-identity-agent"} <= names(urn), (
            "a node without CNI stays NotReady on paid GPUs (terraform-aws-eks#3446)"
        )
        assert {f"aws-network-private-{REGION}{zone}" for zone in "abc"} <= names(urn), "a node cannot reach anything"
        assert f"aws-network-nat-{REGION}a" in names(urn)
        assert {"aws-network-s3", "aws-network-public"} <= names(urn)
        assert "aws-services-coredns" not in names(urn)
    (coredns,) = [urn for urn in by_urn if urn.endswith("Addon::aws-services-coredns")]
    assert f"aws-system-{REGION}a" in names(coredns), "coredns without nodes is DEGRADED until it times out"
    (cluster,) = [urn for urn in by_urn if "aws:eks/cluster:Cluster" in urn]
    assert "aws-cluster" in names(cluster), "the log group must exist before EKS makes its own"
    assert any("LogGroup" in other for other in before(cluster))
    (policy,) = [urn for urn in by_urn if "aws:s3/bucketPolicy:BucketPolicy" in urn]
    assert any("BucketPublicAccessBlock" in other for other in before(policy)), "S3 returns 409 to both at once"
    (code,) = [urn for urn in by_urn if "aws:s3/bucketObjectv2:BucketObjectv2" in urn]
    settings = {"Encryption", "Versioning", "BucketPolicy", "PublicAccessBlock", "OwnershipControls"}
    assert {one for one in settings if any(one in other for other in before(code))} == settings
    associations = [urn for urn in by_urn if "aws:eks/podIdentityAssociation:PodIdentityAssociation" in urn]
    for urn in associations:
        assert any("RolePolicyAttachment" in other for other in before(urn)), "a pod would start without its rights"
    assert len(associations) == 4


def test_the_bucket_is_private_encrypted_versioned_and_tidy(account: Account) -> None:
    s3 = account.s3
    assert s3.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
    block = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
    assert block == dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
    )
    (rule,) = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    assert rule["BucketKeyEnabled"] is True
    key = rule["ApplyServerSideEncryptionByDefault"]["KMSMasterKeyID"].rpartition("/")[2]
    (alias,) = [a for a in account.kms.list_aliases()["Aliases"] if a.get("TargetKeyId") == key]
    assert alias["AliasName"] == "alias/modelfleet-test-mirror", "AWS's own key cannot be granted to a role"
    assert account.kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is True
    rules = {rule["ID"]: rule for rule in s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]}
    tidy, usage = rules["tidy"], rules["usage"]
    assert (usage["Filter"], usage["Expiration"]) == ({"Prefix": "usage/"}, {"Days": 400})
    assert usage["NoncurrentVersionExpiration"]["NoncurrentDays"] == 1, "each hour's object is written sixty times"
    assert tidy["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert tidy["NoncurrentVersionExpiration"]["NoncurrentDays"] == 30
    assert tidy["Expiration"] == {"ExpiredObjectDeleteMarker": True}, "each weight that is replaced leaves one behind"
    owner = s3.get_bucket_ownership_controls(Bucket=BUCKET)["OwnershipControls"]["Rules"]
    assert owner == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    code = s3.get_object(Bucket=BUCKET, Key=f"code/serving-{'c0de' * 16}.zip")["Body"].read()
    assert code == b"the serving package"


def test_the_bucket_policy_refuses_everything_without_tls(live: FleetProject) -> None:
    (policy,) = live.resources("aws:s3/bucketPolicy:BucketPolicy")
    (statement,) = json.loads(policy["outputs"]["policy"])["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert statement["Resource"] == [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]


def test_replicas_read_and_only_the_mirror_job_writes(account: Account) -> None:
    weights, code = f"arn:aws:s3:::{BUCKET}/models/org--on-t4/model.bin", f"arn:aws:s3:::{BUCKET}/code/x.zip"
    for reader in READERS:
        role = account.role(reader, NAMESPACE, CLUSTER)
        statements = account.statements(role["RoleName"])
        assert allowed(statements, "s3:GetObject", weights)
        assert allowed(statements, "s3:GetObject", code)
        assert allowed(statements, "s3:GetObject", "arn:aws:s3:::company-weights/llama/model.bin")
        for refused in ("s3:PutObject", "s3:DeleteObject", "s3:DeleteObjectVersion"):
            assert not allowed(statements, refused, weights), (reader, refused)
        assert not allowed(statements, "s3:GetObject", "arn:aws:s3:::other-bucket/models/x")
        assert not allowed(statements, "s3:GetObject", f"arn:aws:s3:::{BUCKET}/logs/x")
        assert not allowed(statements, "s3:GetObject", "arn:aws:s3:::company-weights/other/model.bin")
    writer = account.statements(account.role(WRITER, NAMESPACES[WRITER], CLUSTER)["RoleName"])
    assert allowed(writer, "s3:PutObject", weights)
    assert not allowed(writer, "s3:PutObject", code), "the Job must not replace the code that replicas run"
    for action in ("s3:PutObject", "s3:GetObject"):
        assert not allowed(writer, action, "arn:aws:s3:::company-weights/llama/model.bin"), "it copies other buckets"
    assert allowed(writer, "s3:DeleteObject", weights), "it hides older versions of the weights"
    assert not allowed(writer, "s3:DeleteObjectVersion", weights), "and never deletes one"
    assert not allowed(writer, "s3:DeleteObject", code)


def test_the_autoscaler_changes_only_this_clusters_groups(account: Account) -> None:
    role = account.role(AUTOSCALER, AUTOSCALER_NAMESPACE, CLUSTER)
    statements = account.statements(role["RoleName"])
    asg = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:u:autoScalingGroupName/eks-a10g-1"
    mine = {"aws:ResourceTag/eks:cluster-name": CLUSTER}
    other = {"aws:ResourceTag/eks:cluster-name": "somebody-elses"}
    assert allowed(statements, "autoscaling:SetDesiredCapacity", asg, mine)
    assert not allowed(statements, "autoscaling:SetDesiredCapacity", asg, other)
    assert not allowed(statements, "autoscaling:SetDesiredCapacity", asg, {})
    assert not allowed(statements, "autoscaling:DeleteAutoScalingGroup", asg, mine)


def test_no_role_may_do_everything_or_touch_everything(account: Account) -> None:
    for role in account.iam.list_roles()["Roles"]:
        for statement in account.statements(role["RoleName"]):
            assert not [action for action in statement["Action"] if "*" in action], statement
            if statement["Resource"] == "*":
                assert set(statement["Action"]) <= set(policies.UNSCOPED), statement


def test_a_role_is_for_one_service_account_of_this_cluster(account: Account) -> None:
    for service_account, namespace in (
        *NAMESPACES.items(),
        (AUTOSCALER, AUTOSCALER_NAMESPACE),
    ):
        trust = account.role(service_account, namespace, CLUSTER)["AssumeRolePolicyDocument"]
        (statement,) = trust["Statement"]
        assert statement["Condition"]["StringEquals"] == {
            "aws:RequestTag/eks-cluster-arn": f"arn:aws:eks:{REGION}:{ACCOUNT}:cluster/{CLUSTER}",
            "aws:RequestTag/kubernetes-namespace": namespace,
            "aws:RequestTag/kubernetes-service-account": service_account,
        }


def test_the_buckets_key_opens_for_readers_and_for_who_writes_only_through_s3(account: Account) -> None:
    """The mirror Job writes weights, workers write records of usage."""
    via = {"kms:ViaService": f"s3.{REGION}.amazonaws.com"}
    (alias,) = [a for a in account.kms.list_aliases()["Aliases"] if a["AliasName"] == "alias/modelfleet-test-mirror"]
    key = account.kms.describe_key(KeyId=alias["TargetKeyId"])["KeyMetadata"]["Arn"]
    for service_account, namespace in NAMESPACES.items():
        statements = account.statements(account.role(service_account, namespace, CLUSTER)["RoleName"])
        assert allowed(statements, "kms:Decrypt", key, via), "encrypted weights cannot be read"
        assert allowed(statements, "kms:GenerateDataKey", key, via) is (service_account in (WRITER, READERS[1]))
        assert not allowed(statements, "kms:Decrypt", key)
        assert not allowed(statements, "kms:Decrypt", key.replace("key/", "key/0"), via)


def test_every_resource_bears_the_stacks_tags(account: Account) -> None:
    wanted = {"team": "ml", "modelfleet.dev/stack": "test", "modelfleet.dev/managed-by": "pulumi"}
    for pool, group in account.node_groups(CLUSTER).items():
        assert wanted.items() <= group["tags"].items(), pool
    assert wanted.items() <= account.cluster(CLUSTER)["tags"].items()
    bucket = {tag["Key"]: tag["Value"] for tag in account.s3.get_bucket_tagging(Bucket=BUCKET)["TagSet"]}
    assert wanted.items() <= bucket.items()


def test_a_second_up_changes_nothing(fleet: FleetProject, account: Account) -> None:
    assert set(fleet.up().changes) == {"same"}


def test_the_kubeconfig_is_nowhere_in_plain_text(live: FleetProject, first: FirstRuns) -> None:
    kubeconfig = live.outputs()["kubeconfig"]
    config = json.loads(kubeconfig)
    assert config["users"][0]["user"]["exec"]["args"][-4:] == ["--cluster-name", CLUSTER, "--output", "json"]
    for text in (live.everything_on_disk(), first.preview.text, first.up.text):
        assert "get-token" not in text


def test_a_model_more_on_a_pool_touches_the_readers_policies_and_nothing_else(
    fleet: FleetProject, account: Account
) -> None:
    more = model("org/another", "A10G", replicas=(1, 2), s3_mirror_config={"bucket_uri": "s3://other-weights/a"})
    fleet.files(STACK, {**FIVE, "org--another": more})
    run = fleet.up()
    assert {operation for operation, _ in run.steps()} == {"update"}
    assert {name for _, name in run.steps()} == {f"aws-{account}-access" for account in READERS}


def test_a_pool_more_touches_only_itself(live: FleetProject, emulator: Emulator) -> None:
    more = {"name": "l4-big", "accelerator": "L4", "maxNodes": 1, "instanceTypes": ["g6.12xlarge"]}
    stack, models = live.written
    live.files({**stack, "pools": [*POOLS, more]}, models)
    run = live.up("--target", "**l4-big**")
    zones = Account(emulator, REGION).zone_groups(CLUSTER)["l4-big"]
    assert zones
    assert {name for operation, name in run.steps() if operation == "create"} == {
        "aws-pool-l4-big",
        *(f"aws-pool-l4-big-{zone}{more}" for zone in zones for more in ("", "-disk", "-gpus", "-taint-gpu")),
    }
    rest = live.up()
    assert all(name.startswith("aws-") and "pool" not in name for _, name in rest.steps()), rest.steps()


def test_drift_is_shown_by_refresh_and_mended_by_up_but_not_the_autoscalers_work(
    live: FleetProject, emulator: Emulator
) -> None:
    account = Account(emulator, REGION)
    groups = account.node_groups(CLUSTER)
    zone = min(account.zone_groups(CLUSTER)["l4"])
    account.eks.update_nodegroup_config(
        clusterName=CLUSTER,
        nodegroupName=groups["t4"]["nodegroupName"],
        scalingConfig={"minSize": 0, "desiredSize": 3, "maxSize": 4},
    )
    account.eks.delete_nodegroup(clusterName=CLUSTER, nodegroupName=groups["l4"]["nodegroupName"])
    (vpc,) = account.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["false"]}])["Vpcs"]
    account.ec2.create_tags(Resources=[vpc["VpcId"]], Tags=[{"Key": "team", "Value": "somebody"}])
    account.s3.delete_public_access_block(Bucket=BUCKET)
    seen = _outcomes(live.refresh())
    assert ("delete", f"aws-pool-l4-{zone}") in seen
    assert ("update", "aws-network") in seen, "a tag that somebody changed"
    assert ("delete", "aws-mirror") in seen, "the public access block"
    changed = live.up()
    steps = set(changed.steps())
    assert ("create", f"aws-pool-l4-{zone}") in steps
    assert ("update", "aws-network") in steps
    assert not [name for _, name in steps if name.startswith("aws-pool-t4")], "the autoscaler's desired size was undone"
    after = account.node_groups(CLUSTER)
    assert after["t4"]["scalingConfig"]["desiredSize"] == 3
    assert zone in account.zone_groups(CLUSTER)["l4"]
    tags = account.ec2.describe_vpcs(VpcIds=[vpc["VpcId"]])["Vpcs"][0]["Tags"]
    assert {"Key": "team", "Value": live.written[0]["tags"]["team"]} in tags
    assert account.s3.get_public_access_block(Bucket=BUCKET)
    assert set(live.up().changes) == {"same"}


def _outcomes(run: Run) -> set[tuple[str, str]]:
    """What a refresh found: `delete` for what has gone, `update` for what differs."""
    found = [event["resOutputsEvent"]["metadata"] for event in run.events if "resOutputsEvent" in event]
    return {(step["op"], step["urn"].rpartition("::")[2]) for step in found if step["op"] not in ("refresh", "same")}


def test_a_new_launch_template_version_rolls_the_node_group_in_place(
    live: FleetProject, emulator: Emulator, plan: Plan
) -> None:
    """A pod that does not leave its node for fifteen minutes fails the run, and the next one goes on."""
    account, (stack, models) = Account(emulator, REGION), live.written
    live.files({**stack, "tags": {"team": "platform"}}, models)
    with _a_node_each(account, plan):
        emulator.switch(DRAINS, {"a100-": 901})
        stuck = live.up(check=False)
        emulator.switch(DRAINS, {})
        assert stuck.code != 0
        assert "PodEvictionFailure: Reached max retries while trying to evict pods from nodes" in stuck.text
        assert "Traceback" not in stuck.text
        run = live.up()
    operations = {(operation, name) for operation, name in (*stuck.steps(), *run.steps())}
    zone = min(account.zone_groups(CLUSTER)["a100"])
    assert {("update", "aws-pool-a100"), ("update", f"aws-pool-a100-{zone}")} <= operations
    assert not [o for o in operations if o[0] in ("replace", "create-replacement") and "pool" in o[1]]
    group = account.node_groups(CLUSTER)["a100"]
    assert int(group["launchTemplate"]["version"]) >= 2
    assert {"Key": "team", "Value": "platform"} in account.template(group)["TagSpecifications"][0]["Tags"]


def test_a_new_node_release_rolls_every_group_in_place(live: FleetProject, emulator: Emulator) -> None:
    """`cluster.nodeRelease` is what updates AMIs; a replacement would take all nodes of a pool at once."""
    account, (stack, models) = Account(emulator, REGION), live.written
    before = account.node_groups(CLUSTER)
    version = next(iter(before.values()))["version"]
    release = f"{version}.9-20261130"
    live.files({**stack, "cluster": {**stack.get("cluster", {}), "version": version, "nodeRelease": release}}, models)
    run = live.up("--refresh")
    after = account.node_groups(CLUSTER)
    assert {name: group["releaseVersion"] for name, group in after.items()} == dict.fromkeys(before, release)
    assert {name: group["nodegroupName"] for name, group in after.items()} == {
        name: group["nodegroupName"] for name, group in before.items()
    }
    assert {operation for operation, name in run.steps() if "pool" in name or "system" in name} <= {"update", "refresh"}


def test_new_limits_move_a_pools_size_only_where_they_exclude_it(live: FleetProject, emulator: Emulator) -> None:
    """EKS refuses a minimum above the desired size, which idle pools have at 0 (terraform-aws-eks#3521)."""
    account, (stack, models) = Account(emulator, REGION), live.written

    def resized(pool: str, size: int, *, most: int) -> None:
        group = account.node_groups(CLUSTER)[pool]
        sizes = {"minSize": 0, "desiredSize": size, "maxSize": most}
        account.eks.update_nodegroup_config(
            clusterName=CLUSTER, nodegroupName=group["nodegroupName"], scalingConfig=sizes
        )

    def sizes(pool: str) -> list[tuple[int, int, int]]:
        found = [group["scalingConfig"] for group in account.zone_groups(CLUSTER)[pool].values()]
        return [(one["minSize"], one["desiredSize"], one["maxSize"]) for one in found]

    resized("t4", 4, most=4)
    resized("a10g", 3, most=4)
    changes: dict[str, dict[str, int]] = {"l4": {"minNodes": 2}, "t4": {"maxNodes": 3}, "a10g": {"maxNodes": 5}}
    live.files({**stack, "pools": [{**pool, **changes.get(str(pool["name"]), {})} for pool in POOLS]}, models)
    live.up("--refresh")
    assert sizes("l4")[:2] == [(1, 1, 4), (1, 1, 4)], "an idle pool grows to its new minimum, spread over zones"
    assert sizes("t4")[0] == (0, 3, 3), "a new maximum below the live size ends nodes, as the preview said"
    assert sizes("a10g")[0] == (0, 3, 5), "the autoscaler's size is not undone"
    settled = [sizes(pool) for pool in ("l4", "t4", "a10g")]
    live.up("--refresh")
    assert [sizes(pool) for pool in ("l4", "t4", "a10g")] == settled


def test_a_zone_more_leaves_the_control_plane_alone(live: FleetProject, emulator: Emulator) -> None:
    """EKS keeps a cluster to the zones that it was made with, and would refuse the whole update."""
    account, (stack, models) = Account(emulator, REGION), live.written
    before = account.cluster(CLUSTER)["resourcesVpcConfig"]["subnetIds"]
    live.files({**stack, "network": {**STACK["network"], "zones": 4}}, models)
    steps = live.up("--refresh").steps()
    assert ("create", f"aws-network-private-{REGION}d") in steps
    assert ("create", f"aws-system-{REGION}d") in steps
    assert account.cluster(CLUSTER)["resourcesVpcConfig"]["subnetIds"] == before
    assert len(before) == 2


def test_destroy_leaves_nothing(live: FleetProject, emulator: Emulator) -> None:
    account = Account(emulator, REGION)
    account.s3.put_object(Bucket=BUCKET, Key="models/org--on-t4/weights.bin", Body=b"x")
    live.destroy()
    assert account.everything() == []
