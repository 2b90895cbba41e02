"""SNS topics, their policies and subscriptions. Force-new from terraform-provider-aws internal/service/sns."""

from __future__ import annotations

import json
from typing import Any

from modelfleet.infra.provider import Autoname, Call, Made, Props, ResourceDef
from tools.standin.aws import making
from tools.standin.aws.resources.s3_settings import same_json
from tools.standin.aws.session import Aws

_POLICY = "Policy"


def _client(call: Call[Aws], props: Props) -> Any:
    return making.client(call, "sns", props)


# --- topic -----------------------------------------------------------------------------------------------


def _create_topic(call: Call[Aws], inputs: Props) -> Made:
    tags = call.session.tags(inputs)
    arn = _client(call, inputs).create_topic(Name=inputs["name"], Tags=making.as_tags(tags))["TopicArn"]
    owner = arn.split(":")[4]
    return Made(arn, {"arn": arn, "owner": owner, "region": making.region(call, inputs), "tagsAll": tags})


def _attributes(call: Call[Aws], arn: str, props: Props) -> Any:
    answer = making.unless_absent(lambda: _client(call, props).get_topic_attributes(TopicArn=arn))
    return answer and answer["Attributes"]


def _read_topic(call: Call[Aws], id: str, state: Props) -> Props | None:
    if not _attributes(call, id, state):
        return None
    found = making.from_tags(_client(call, state).list_tags_for_resource(ResourceArn=id)["Tags"])
    return {**state, **making.live_tags(call, state, found)}


def _update_topic(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    wanted, had = call.session.tags(inputs), state.get("tagsAll") or {}
    if gone := sorted(set(had) - set(wanted)):
        _client(call, inputs).untag_resource(ResourceArn=id, TagKeys=gone)
    if changed := {name: text for name, text in wanted.items() if had.get(name) != text}:
        _client(call, inputs).tag_resource(ResourceArn=id, Tags=making.as_tags(changed))
    return {"tagsAll": wanted}


TOPIC = ResourceDef(
    token="aws:sns/topic:Topic",
    inputs=frozenset({"name", "region", "tags"}),
    outputs=frozenset({"arn", "owner", "region", "tagsAll"}),
    force_new=frozenset({"name", "region"}),
    autoname=Autoname("name"),
    create=_create_topic,
    read=_read_topic,
    update=_update_topic,
    delete=lambda call, id, state: making.unless_absent(lambda: _client(call, state).delete_topic(TopicArn=id)),
)

# --- policy ----------------------------------------------------------------------------------------------


def _put_policy(call: Call[Aws], props: Props, policy: str) -> None:
    _client(call, props).set_topic_attributes(TopicArn=props["arn"], AttributeName=_POLICY, AttributeValue=policy)


def _create_policy(call: Call[Aws], inputs: Props) -> Made:
    _put_policy(call, inputs, inputs["policy"])
    return Made(inputs["arn"], {"owner": inputs["arn"].split(":")[4], "region": making.region(call, inputs)})


def _read_policy(call: Call[Aws], id: str, state: Props) -> Props | None:
    found = _attributes(call, id, state)
    return {**state, "policy": found[_POLICY]} if found and found.get(_POLICY) else None


def _update_policy(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    _put_policy(call, inputs, inputs["policy"])
    return {}


def _delete_policy(call: Call[Aws], id: str, state: Props) -> None:
    """The provider puts back the policy that a new topic has."""
    if _attributes(call, id, state) is None:
        return
    owner = {"AWS": f"arn:aws:iam::{making.ACCOUNT}:root"}
    statement = {"Effect": "Allow", "Principal": owner, "Action": "sns:*", "Resource": id}
    _put_policy(call, state, json.dumps({"Version": "2012-10-17", "Statement": [statement]}))


TOPIC_POLICY = ResourceDef(
    token="aws:sns/topicPolicy:TopicPolicy",
    inputs=frozenset({"arn", "policy", "region"}),
    required=frozenset({"arn", "policy"}),
    outputs=frozenset({"owner", "region"}),
    force_new=frozenset({"arn", "region"}),
    same={"policy": same_json},
    create=_create_policy,
    read=_read_policy,
    update=_update_policy,
    delete=_delete_policy,
)

# --- subscription ----------------------------------------------------------------------------------------


def _create_subscription(call: Call[Aws], inputs: Props) -> Made:
    arn = _client(call, inputs).subscribe(
        TopicArn=inputs["topic"], Protocol=inputs["protocol"], Endpoint=inputs["endpoint"], ReturnSubscriptionArn=True
    )["SubscriptionArn"]
    return Made(arn, {"arn": arn, "region": making.region(call, inputs), **_confirmed(call, arn, inputs)})


def _confirmed(call: Call[Aws], arn: str, props: Props) -> Props:
    found = _client(call, props).get_subscription_attributes(SubscriptionArn=arn)["Attributes"]
    return {"pendingConfirmation": str(found["PendingConfirmation"]).lower() == "true"}


def _read_subscription(call: Call[Aws], id: str, state: Props) -> Props | None:
    found = making.unless_absent(lambda: _confirmed(call, id, state))
    return found and {**state, **found}


def _delete_subscription(call: Call[Aws], id: str, state: Props) -> None:
    """One that nobody confirmed cannot be ended; it goes with its topic, or after three days.

    https://docs.aws.amazon.com/sns/latest/api/API_Unsubscribe.html
    """
    found = making.unless_absent(lambda: _confirmed(call, id, state))
    if found and not found["pendingConfirmation"]:
        _client(call, state).unsubscribe(SubscriptionArn=id)


SUBSCRIPTION = ResourceDef(
    token="aws:sns/topicSubscription:TopicSubscription",
    inputs=frozenset({"endpoint", "protocol", "region", "topic"}),
    required=frozenset({"endpoint", "protocol", "topic"}),
    outputs=frozenset({"arn", "pendingConfirmation", "region"}),
    force_new=frozenset({"endpoint", "protocol", "region", "topic"}),
    create=_create_subscription,
    read=_read_subscription,
    delete=_delete_subscription,
)

INVOKES = ()
RESOURCES = (TOPIC, TOPIC_POLICY, SUBSCRIPTION)
