"""What SNS's permissions name and its calls do not: the topic of a subscription."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.cloud.wire import Call


def values(call: Call) -> Mapping[str, Any]:
    """A subscription's ARN is its topic's with an id. https://docs.aws.amazon.com/sns/latest/api/API_Subscription.html"""
    arn = str(call.params.get("SubscriptionArn", ""))
    return {"topicOfSubscription": arn.rpartition(":")[0]}
