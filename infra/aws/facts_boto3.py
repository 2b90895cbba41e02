"""Reads `AccountFacts` with boto3, for `modelfleet plan --preflight`: the same findings without Pulumi."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from modelfleet.infra.aws.facts import NO_CONTROL_PLANE_ZONE_IDS, VPC_DNS, AccountFacts, SubnetFact, zones_by_type
from modelfleet.infra.aws.preflight import instance_types, preflight, quota_codes
from modelfleet.infra.planning.plan import Plan
from modelfleet.serving.config.errors import Finding, SetupError

CONFIG = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 3})


def run_preflight(plan: Plan) -> list[Finding]:
    """Query AWS and judge the plan; raises `SetupError` when AWS cannot be queried at all."""
    return preflight(plan, read_facts_with_boto3(plan))


def read_facts_with_boto3(plan: Plan, session: boto3.Session | None = None) -> AccountFacts:
    """Read the account of the ambient credentials; raises `SetupError` without credentials, region or network."""
    if not plan.region:
        raise SetupError("no region is set: add `aws:region` to the stack file")
    session = session or boto3.Session(region_name=plan.region)
    try:
        return _read(plan, session)
    except (BotoCoreError, ClientError) as error:
        raise SetupError(
            f"AWS could not be queried: {error}. Log in (`aws sso login`, AWS_PROFILE), then run the command again; "
            f"it reads only sts:GetCallerIdentity, ec2:Describe*, servicequotas:GetServiceQuota, iam:GetRole"
        ) from error


def _read(plan: Plan, session: boto3.Session) -> AccountFacts:
    caller = session.client("sts", config=CONFIG).get_caller_identity()
    ec2 = session.client("ec2", region_name=plan.region, config=CONFIG)
    quotas, unread = _quotas(plan, session)
    types = instance_types(plan)
    subnets = _subnets(plan, ec2)
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
    )


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
            quotas[code] = float(client.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"])
        except (BotoCoreError, ClientError) as error:
            unread[code] = str(error)
    return quotas, unread


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
