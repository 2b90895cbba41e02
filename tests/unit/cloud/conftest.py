"""An emulated AWS in this process, with the roles, the bucket and the keys of a fleet as its program makes them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.documents import pod_access
from modelfleet.infra.aws.site import site_of
from modelfleet.infra.planning import Plan
from tests.unit.aws import builders
from tools.cloud.evaluator import as_list
from tools.cloud.joining import needs
from tools.cloud.server import Listening, listening

BUCKET = "fleet-weights"
REGION = builders.REGION
#: What nodes need to join; the policies that the stack attaches have it, and are AWS's own.
NODE = {"Effect": "Allow", "Action": [need["action"] for need in needs()], "Resource": "*"}
#: AmazonEKSWorkerNodeMinimalPolicy, which only lets the agent on the node ask for its pods' credentials.
#: https://docs.aws.amazon.com/aws-managed-policy/latest/reference/AmazonEKSWorkerNodeMinimalPolicy.html
MINIMAL_NODE = {"Effect": "Allow", "Action": "eks-auth:AssumeRoleForPodIdentity", "Resource": "*"}


@dataclass(frozen=True)
class Fleet:
    """A fleet in the account: its cluster and namespace, and the roles by service account."""

    cloud: Listening
    cluster: str
    namespaces: dict[str, str]
    node: dict[str, str]
    roles: dict[str, str]
    #: ARN of the key that the stack made to sign manifests with, or empty.
    manifest_key: str = ""

    def credentials(self, service_account: str) -> dict[str, str]:
        """A pod's credentials."""
        return self.cloud.pod(self.node, self.cluster, self.namespaces[service_account], service_account)

    def s3(self, service_account: str) -> Any:
        """A pod's S3 client."""
        return self.cloud.client("s3", self.credentials(service_account))

    def used(self, service_account: str) -> set[str]:
        """IAM actions that pods of a service account have used."""
        return self.cloud.cloud.judge.trail.actions(self.roles[service_account])

    def granted(self, service_account: str) -> set[str]:
        """All actions in the policies of a service account's role."""
        documents = self._policies(service_account).values()
        return {action for one in documents for s in one["Statement"] for action in as_list(s["Action"])}

    def take(self, service_account: str, action: str) -> None:
        """Takes one action out of the role's policies."""
        iam = self.cloud.client("iam")
        for arn, document in self._policies(service_account).items():
            left = [{**s, "Action": [a for a in as_list(s["Action"]) if a != action]} for s in document["Statement"]]
            text = json.dumps({**document, "Statement": [one for one in left if one["Action"]]})
            iam.create_policy_version(PolicyArn=arn, PolicyDocument=text, SetAsDefault=True)

    def _policies(self, service_account: str) -> dict[str, Any]:
        """The documents of a role's attached policies, by ARN."""
        iam = self.cloud.client("iam")
        attached = iam.list_attached_role_policies(RoleName=self.roles[service_account])["AttachedPolicies"]
        return {
            one["PolicyArn"]: iam.get_policy_version(PolicyArn=one["PolicyArn"], VersionId="v1")["PolicyVersion"][
                "Document"
            ]
            for one in attached
        }


@pytest.fixture(scope="session")
def cloud() -> Iterator[Listening]:
    with listening() as running:
        yield running


@pytest.fixture
def account(cloud: Listening) -> Listening:
    """The cloud, with nothing in it."""
    reset = urllib.request.Request(f"{cloud.url}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=60).read()
    cloud.cloud.judge.trail.entries.clear()
    cloud.cloud.rules.short_of()
    cloud.cloud.rules.slow = {}
    return cloud


@pytest.fixture
def fleet(account: Listening, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    plan, _ = builders.planned(tmp_path_factory.mktemp("plan"), mirror={"bucket": BUCKET})
    return made(account, plan)


def signing_key(cloud: Listening, stack: str) -> str:
    """The key of manifests that a stack makes, with its own policy; returns its ARN."""
    policy = json.dumps(policies.signing_key(partition="aws", account=builders.ACCOUNT, names=stack))
    key = cloud.client("kms").create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY", Policy=policy)
    return str(key["KeyMetadata"]["Arn"])


def made(cloud: Listening, plan: Plan) -> Fleet:
    """Makes what a fleet's pods meet: cluster, bucket with its default key and its policy, roles, associations."""
    site = site_of(plan, builders.facts())
    iam, eks, s3, kms = (cloud.client(service) for service in ("iam", "eks", "s3", "kms"))
    name = plan.bucket.name or BUCKET
    key = kms.create_key(Policy=json.dumps(policies.account_key(partition="aws", account=builders.ACCOUNT)))
    key_arn = key["KeyMetadata"]["Arn"]
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key_arn}
    rules = [{"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": True}]
    s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": rules})
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps(policies.tls_only(name, partition="aws")))
    cluster_role = iam.create_role(
        RoleName="cluster", AssumeRolePolicyDocument=json.dumps(policies.service_trust("eks.amazonaws.com"))
    )
    subnets = subnets_in(cloud, "us-west-2a", "us-west-2b")
    eks.create_cluster(
        name=site.cluster_name, roleArn=cluster_role["Role"]["Arn"], resourcesVpcConfig={"subnetIds": subnets}
    )
    iam.create_role(RoleName="node", AssumeRolePolicyDocument=json.dumps(policies.service_trust("ec2.amazonaws.com")))
    document = json.dumps(policies.document([MINIMAL_NODE]))
    iam.put_role_policy(RoleName="node", PolicyName="minimal", PolicyDocument=document)
    signing = signing_key(cloud, site.stack) if plan.manifest_key and plan.manifest_key.made else ""
    roles, namespaces = {}, {}
    for access in pod_access(site, plan):
        trust = policies.pod_trust(
            cluster_arn=site.cluster_arn, namespace=access.namespace, service_account=access.service_account
        )
        # As Pulumi names it (`identity.py`, `PodRole`): the stack, the account, and a suffix of its own.
        name_of_role = f"{site.stack}-{access.service_account}-1a2b3c4"
        role = iam.create_role(RoleName=name_of_role, AssumeRolePolicyDocument=json.dumps(trust))
        documents = list(policies.numbered("access", access.statements).values())
        if access.key:
            use = policies.use_key(key_arn, write=access.key == "write", region=REGION)
            documents.append(policies.document(use))
        if access.signs:
            documents.append(policies.document(policies.sign_with_own_key(signing)))
        for index, document in enumerate(documents):
            policy = iam.create_policy(
                PolicyName=f"{access.service_account}-{index}", PolicyDocument=json.dumps(document)
            )
            iam.attach_role_policy(RoleName=role["Role"]["RoleName"], PolicyArn=policy["Policy"]["Arn"])
        eks.create_pod_identity_association(
            clusterName=site.cluster_name,
            namespace=access.namespace,
            serviceAccount=access.service_account,
            roleArn=role["Role"]["Arn"],
        )
        roles[access.service_account] = role["Role"]["RoleName"]
        namespaces[access.service_account] = access.namespace
    node = cloud.assumed(f"arn:aws:iam::{builders.ACCOUNT}:role/node")
    return Fleet(cloud, site.cluster_name, namespaces, node, roles, signing)


def subnets_in(cloud: Listening, *zones: str) -> list[str]:
    """New public subnets of a new VPC, one in each zone."""
    ec2 = cloud.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    (table,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    made = []
    for index, zone in enumerate(zones):
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{index}.0/24", AvailabilityZone=zone)["Subnet"]
        ec2.modify_subnet_attribute(SubnetId=subnet["SubnetId"], MapPublicIpOnLaunch={"Value": True})
        made.append(subnet["SubnetId"])
    return made
