"""Reads `AccountFacts` with boto3, for `modelfleet plan --preflight`: the same findings without Pulumi."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from modelfleet.infra.aws.facts import (
    ADDRESSES,
    CLUSTER,
    IMAGE,
    LOG_GROUP,
    NO_CONTROL_PLANE_ZONE_IDS,
    VPC_DNS,
    ZONE,
    AccountFacts,
    ClusterFact,
    SubnetFact,
    not_queried,
    why,
    zones_by_type,
)
from modelfleet.infra.aws.here import has_aws_command, why_unreachable
from modelfleet.infra.aws.preflight import instance_types, preflight, quota_codes, quota_service
from modelfleet.infra.aws.registry import ecr_image
from modelfleet.infra.aws.site import cluster_name, log_group
from modelfleet.infra.names import STACK_LABEL
from modelfleet.infra.planning.plan import Plan
from modelfleet.serving.config.errors import Finding, SetupError

CONFIG = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 3})
#: What ECR answers where the image, its tag or its repository does not exist.
NO_IMAGE = frozenset({"ImageNotFoundException", "RepositoryNotFoundException"})

T = TypeVar("T")


def run_preflight(plan: Plan) -> list[Finding]:
    """Query AWS and judge the plan; raises `SetupError` when AWS cannot be queried at all."""
    return preflight(plan, read_facts_with_boto3(plan))


def read_facts_with_boto3(plan: Plan, session: boto3.Session | None = None) -> AccountFacts:
    """Read the account of the ambient credentials; raises `SetupError` without credentials, region or network."""
    if not plan.region:
        raise SetupError("no region is set: add `aws:region` to the stack file")
    try:
        return _read(plan, session or boto3.Session(region_name=plan.region, profile_name=plan.source.profile))
    except (BotoCoreError, ClientError) as error:
        raise not_queried(error) from error


def _read(plan: Plan, session: boto3.Session) -> AccountFacts:
    caller = session.client("sts", config=CONFIG).get_caller_identity()
    ec2 = session.client("ec2", region_name=plan.region, config=CONFIG)
    quotas, unread = _quotas(plan, session)
    types = instance_types(plan)
    subnets = _subnets(plan, ec2)

    def or_unread(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (BotoCoreError, ClientError) as error:
            unread[what] = why(error)
            return otherwise

    return AccountFacts(
        account=caller["Account"],
        partition=caller["Arn"].split(":")[1],
        region=str(plan.region),
        caller_role_arn=_role_arn(caller["Arn"], session),
        zones=_zones(ec2),
        offerings=_offerings(ec2, types),
        quotas=quotas,
        unread=unread,
        subnets=subnets,
        vpc_without=_vpc_without(plan, subnets, ec2),
        other_addresses=or_unread(ADDRESSES, lambda: _other_addresses(plan, ec2), 0),
        cluster=or_unread(CLUSTER, lambda: _cluster(plan, session), None),
        has_log_group=or_unread(LOG_GROUP, lambda: _has_log_group(plan, session), otherwise=False),
        zone_id=or_unread(ZONE, lambda: _zone_id(plan, session), ""),
        lacks_image=or_unread(IMAGE, lambda: _lacks_image(plan, session), otherwise=False),
        has_aws_command=has_aws_command(),
    )


def _other_addresses(plan: Plan, ec2: Any) -> int:
    found = ec2.describe_addresses(Filters=[{"Name": "domain", "Values": ["vpc"]}])["Addresses"]
    own = {"Key": STACK_LABEL, "Value": plan.stack}
    return sum(own not in address.get("Tags", []) for address in found)


def _cluster(plan: Plan, session: boto3.Session) -> ClusterFact | None:
    eks = session.client("eks", region_name=plan.region, config=CONFIG)
    try:
        found = eks.describe_cluster(name=cluster_name(plan))["cluster"]
    except eks.exceptions.ResourceNotFoundException:
        return None
    return ClusterFact(why_unreachable(found.get("endpoint")), found.get("version"))


def _has_log_group(plan: Plan, session: boto3.Session) -> bool:
    logs, name = session.client("logs", region_name=plan.region, config=CONFIG), log_group(plan)
    found = logs.describe_log_groups(logGroupNamePrefix=name)["logGroups"]
    return any(group["logGroupName"] == name for group in found)


def _zone_id(plan: Plan, session: boto3.Session) -> str:
    zone = plan.config.gateway.zone
    if zone is None:
        return ""
    route53 = session.client("route53", config=CONFIG)
    found = route53.list_hosted_zones_by_name(DNSName=zone)["HostedZones"]
    public = [one["Id"] for one in found if one["Name"] == f"{zone}." and not one["Config"]["PrivateZone"]]
    return str(public[0]).rpartition("/")[2] if public else ""


def _lacks_image(plan: Plan, session: boto3.Session) -> bool:
    image = ecr_image(plan.config.kubernetes.image)
    if image is None:
        return False
    wanted = {"imageDigest": image.digest} if image.digest else {"imageTag": image.tag}
    ecr = session.client("ecr", region_name=image.region, config=CONFIG)
    try:
        ecr.describe_images(registryId=image.account, repositoryName=image.repository, imageIds=[wanted])
    except ClientError as error:
        if error.response["Error"]["Code"] in NO_IMAGE:
            return True
        raise
    return False


def _role_arn(caller_arn: str, session: boto3.Session) -> str:
    """The ARN of the role behind `assumed-role/NAME/SESSION`, with its path; a user's ARN unchanged."""
    _, _, rest = caller_arn.partition(":assumed-role/")
    if not rest:
        return caller_arn
    name = rest.partition("/")[0]
    return str(session.client("iam", config=CONFIG).get_role(RoleName=name)["Role"]["Arn"])


def _zones(ec2: Any) -> tuple[str, ...]:
    found = ec2.describe_availability_zones(
        Filters=[{"Name": "zone-type", "Values": ["availability-zone"]}, {"Name": "state", "Values": ["available"]}]
    )["AvailabilityZones"]
    return tuple(sorted(zone["ZoneName"] for zone in found if zone["ZoneId"] not in NO_CONTROL_PLANE_ZONE_IDS))


def _offerings(ec2: Any, types: tuple[str, ...]) -> dict[str, frozenset[str]]:
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": list(types)}]
    )
    found = [(entry["InstanceType"], entry["Location"]) for page in pages for entry in page["InstanceTypeOfferings"]]
    return zones_by_type(found, types)


def _quotas(plan: Plan, session: boto3.Session) -> tuple[dict[str, float], dict[str, str]]:
    client = session.client("service-quotas", region_name=plan.region, config=CONFIG)
    quotas: dict[str, float] = {}
    unread: dict[str, str] = {}
    for code in quota_codes(plan):
        try:
            quotas[code] = _quota(client, code)
        except (BotoCoreError, ClientError) as error:
            unread[code] = why(error)
    return quotas, unread


def _quota(client: Any, code: str) -> float:
    """The account's value; AWS's default where the account never had another one."""
    try:
        answer = client.get_service_quota(ServiceCode=quota_service(code), QuotaCode=code)
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchResourceException":
            raise
        answer = client.get_aws_default_service_quota(ServiceCode=quota_service(code), QuotaCode=code)
    return float(answer["Quota"]["Value"])


def _subnets(plan: Plan, ec2: Any) -> tuple[SubnetFact, ...]:
    wanted = plan.config.network.private_subnet_ids
    if not wanted:
        return ()
    found = ec2.describe_subnets(Filters=[{"Name": "subnet-id", "Values": wanted}])["Subnets"]
    return tuple(
        SubnetFact(one["SubnetId"], one["VpcId"], one["AvailabilityZone"], one["AvailableIpAddressCount"])
        for one in found
    )


def _vpc_without(plan: Plan, subnets: tuple[SubnetFact, ...], ec2: Any) -> tuple[str, ...]:
    """DNS attributes that are switched off in the stack's existing VPC.

    AWS is queried only if one of the subnets is in this VPC: otherwise the VPC may not exist, and the findings about
    the subnets say so already.
    """
    vpc = plan.config.network.vpc_id
    if vpc not in {subnet.vpc_id for subnet in subnets}:
        return ()
    answers = {key: ec2.describe_vpc_attribute(VpcId=vpc, Attribute=key) for key in VPC_DNS}
    return tuple(key for key, answer in answers.items() if not answer[key[:1].upper() + key[1:]]["Value"])
