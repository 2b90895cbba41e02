"""What AWS still holds with a stack's tag, to prove after `modelfleet down` that nothing is left and nothing costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from modelfleet.infra.aws.facts_boto3 import CONFIG
from modelfleet.infra.names import STACK_LABEL
from modelfleet.serving.config.errors import SetupError

Client = Callable[[str], Any]


@dataclass(frozen=True)
class Leftover:
    """A resource that AWS lists. `note` says why that is no mistake of the run; None: nothing explains it."""

    arn: str
    note: str | None


def leftovers(stack: str, region: str, profile: str | None) -> list[Leftover]:
    """All resources of the region with the stack's tag, in the order of their names; raises `SetupError` unread.

    The tagging API knows no IAM roles and policies: they cost nothing, and Pulumi reports those that it cannot delete.
    https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/API_GetResources.html
    """
    try:
        session = boto3.Session(profile_name=profile, region_name=region)
        pages = session.client("resourcegroupstaggingapi", config=CONFIG).get_paginator("get_resources")
        found = pages.paginate(TagFilters=[{"Key": STACK_LABEL, "Values": [stack]}])
        arns = sorted(one["ResourceARN"] for page in found for one in page["ResourceTagMappingList"])
        return [one for arn in arns if (one := _judged(arn, lambda name: session.client(name, config=CONFIG)))]
    except (BotoCoreError, ClientError) as error:
        raise SetupError(f"what AWS still holds could not be read: {error}") from error


def _judged(arn: str, client: Client) -> Leftover | None:
    """None for what only the list still knows: the tagging API shows ended resources for about an hour."""
    for part, judge in _JUDGES.items():
        if part in arn:
            try:
                return judge(arn, client)
            except ClientError as error:
                if "NotFound" in error.response["Error"]["Code"]:
                    return None
                raise
    return Leftover(arn, None)


def _key(arn: str, client: Client) -> Leftover | None:
    key: Mapping[str, Any] = client("kms").describe_key(KeyId=arn)["KeyMetadata"]
    if key["KeyState"] != "PendingDeletion":
        return Leftover(arn, None)
    return Leftover(arn, f"goes on {key['DeletionDate']:%Y-%m-%d}, as KMS wants it; it costs nothing until then")


def _instance(arn: str, client: Client) -> Leftover | None:
    (reservation,) = client("ec2").describe_instances(InstanceIds=[_id(arn)])["Reservations"]
    return _unless(arn, reservation["Instances"][0]["State"]["Name"], "terminated")


def _nat_gateway(arn: str, client: Client) -> Leftover | None:
    (gateway,) = client("ec2").describe_nat_gateways(NatGatewayIds=[_id(arn)])["NatGateways"]
    return _unless(arn, gateway["State"], "deleted")


def _endpoint(arn: str, client: Client) -> Leftover | None:
    (endpoint,) = client("ec2").describe_vpc_endpoints(VpcEndpointIds=[_id(arn)])["VpcEndpoints"]
    return _unless(arn, endpoint["State"].lower(), "deleted")


def _unless(arn: str, state: str, ended: str) -> Leftover | None:
    return None if state == ended else Leftover(arn, None)


def _id(arn: str) -> str:
    return arn.rpartition("/")[2]


#: By a part of the ARN: what AWS keeps in its lists for a while.
_JUDGES: Final[Mapping[str, Callable[[str, Client], Leftover | None]]] = {
    ":key/": _key,
    ":instance/": _instance,
    ":natgateway/": _nat_gateway,
    ":vpc-endpoint/": _endpoint,
}
