"""Tags of Auto Scaling groups; the groups themselves are those that EKS makes for node groups."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError

from modelfleet.infra.provider import Call, Made, Props, ResourceDef
from tools.standin.aws.making import client, region
from tools.standin.aws.session import Aws


def _autoscaling(call: Call[Aws], props: Props) -> Any:
    return client(call, "autoscaling", props)


def _entry(props: Props) -> Props:
    tag = props["tag"]
    return {
        "ResourceId": props["autoscalingGroupName"],
        "ResourceType": "auto-scaling-group",
        "Key": tag["key"],
        "Value": tag["value"],
        "PropagateAtLaunch": tag["propagateAtLaunch"],
    }


def _put(call: Call[Aws], inputs: Props) -> Props:
    _autoscaling(call, inputs).create_or_update_tags(Tags=[_entry(inputs)])
    return {"region": region(call, inputs)}


def _create(call: Call[Aws], inputs: Props) -> Made:
    return Made(f"{inputs['autoscalingGroupName']},{inputs['tag']['key']}", _put(call, inputs))


def _read(call: Call[Aws], id: str, state: Props) -> Props | None:
    group, _, key = id.partition(",")
    filters = [{"Name": "auto-scaling-group", "Values": [group]}, {"Name": "key", "Values": [key]}]
    found = _autoscaling(call, state).describe_tags(Filters=filters)["Tags"]
    if not found:
        return None
    tag = {"key": key, "value": found[0]["Value"], "propagateAtLaunch": found[0]["PropagateAtLaunch"]}
    return {**state, "autoscalingGroupName": group, "tag": tag, "region": region(call, state)}


def _delete(call: Call[Aws], id: str, state: Props) -> None:
    try:
        _autoscaling(call, state).delete_tags(Tags=[_entry(state)])
    except ClientError as error:
        if "not found" not in str(error):  # the tags have gone with their group
            raise


RESOURCES = (
    ResourceDef(
        token="aws:autoscaling/tag:Tag",
        inputs=frozenset({"autoscalingGroupName", "region", "tag"}),
        required=frozenset({"autoscalingGroupName", "tag"}),
        outputs=frozenset({"region"}),
        force_new=frozenset({"autoscalingGroupName", "region", "tag.key"}),
        create=_create,
        read=_read,
        update=lambda call, id, state, inputs: _put(call, inputs),
        delete=_delete,
    ),
)
