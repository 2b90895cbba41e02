"""ARNs and tags of the EC2 resources that a call tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moto.ec2.models import ec2_backends

from tools.cloud.callers import ACCOUNT, PARTITION
from tools.cloud.wire import Call

#: What an id begins with, by the kind in its ARN.
#: https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html#amazonec2-resources-for-iam-policies
KINDS = {
    "eipalloc": "elastic-ip",
    "eni": "network-interface",
    "i": "instance",
    "igw": "internet-gateway",
    "lt": "launch-template",
    "nat": "natgateway",
    "rtb": "route-table",
    "sg": "security-group",
    "sgr": "security-group-rule",
    "subnet": "subnet",
    "vol": "volume",
    "vpc": "vpc",
    "vpce": "vpc-endpoint",
}


def values(call: Call) -> Mapping[str, Any]:
    """What CreateTags and DeleteTags are about, with the tags that it has, and the kinds that a call makes with tags.

    A resource of a kind that is not in `KINDS` has no ARN here, so only a policy for all resources allows it.
    """
    where = f"arn:{PARTITION}:ec2:{call.region}:{ACCOUNT}:"
    ids = [str(id) for id in call.params.get("Resources") or ()]
    kinds = {id: KINDS.get(id.rpartition("-")[0]) for id in ids}
    arns = {id: f"{where}{kind}/{id}" if kind else "*" for id, kind in kinds.items()}
    known = ec2_backends[ACCOUNT][call.region].tags
    tagged = [str(one["ResourceType"]) for one in call.params.get("TagSpecifications") or ()]
    return {
        "resourceArns": list(arns.values()),
        "taggedArns": [f"{where}{kind}/*" for kind in tagged],
        "resourceTags": {arn: dict(known.get(id, {})) for id, arn in arns.items()},
    }
