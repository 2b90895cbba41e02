"""What AWS's own bill says of a stack's machines, from Cost Explorer. Each question costs 0.01 USD."""

from __future__ import annotations

from collections import defaultdict
from datetime import date
from decimal import Decimal
from typing import Any

from modelfleet.infra.names import POOL_LABEL, STACK_LABEL
from modelfleet.infra.reading.aws_errors import plain_setup_errors
from modelfleet.serving.config.errors import SetupError

#: Cost Explorer's one endpoint in each partition.
#: https://docs.aws.amazon.com/general/latest/gr/billing.html
REGIONS = {"cn": "cn-northwest-1"}
API_REGION = "us-east-1"
#: Hours of machines alone, as the books have them: no volumes, no traffic.
#: https://docs.aws.amazon.com/cost-management/latest/userguide/ce-filtering.html
SERVICE = "Amazon Elastic Compute Cloud - Compute"

#: Where it refuses.
FIX = (
    "allow ce:GetCostAndUsage, and in AWS Organizations have the management account open Cost Explorer to this account"
)


def cost_by_pool(
    stack: str, region: str, first: date, end: date, *, profile: str | None = None, client: Any = None
) -> dict[str, Decimal]:
    """USD of the stack's machines by pool, for the days from `first` up to `end` (UTC), which is not one of them.

    Under the empty name is what has the stack's tag and no pool's. The cost is unblended: what each machine was billed
    with. Raises `SetupError` where Cost Explorer is not there for us.
    """
    asked: dict[str, Any] = {
        "TimePeriod": {"Start": first.isoformat(), "End": end.isoformat()},
        "Granularity": "DAILY",
        "Metrics": ["UnblendedCost"],
        "Filter": {
            "And": [
                {"Tags": {"Key": STACK_LABEL, "Values": [stack]}},
                {"Dimensions": {"Key": "SERVICE", "Values": [SERVICE]}},
            ]
        },
        "GroupBy": [{"Type": "TAG", "Key": POOL_LABEL}],
    }
    found: dict[str, Decimal] = defaultdict(Decimal)
    with plain_setup_errors(f"the bill of stack {stack}", FIX, service="Cost Explorer"):
        asking = client or _client(region, profile)
        while True:
            answer = asking.get_cost_and_usage(**asked)
            for day in answer["ResultsByTime"]:
                for group in day["Groups"]:
                    cost = group["Metrics"]["UnblendedCost"]
                    if cost["Unit"] != "USD":
                        raise SetupError(f"Cost Explorer counts in {cost['Unit']}, and the books in USD")
                    found[group["Keys"][0].partition("$")[2]] += Decimal(cost["Amount"])
            if not (token := answer.get("NextPageToken")):
                return dict(found)
            asked["NextPageToken"] = token


def _client(region: str, profile: str | None) -> Any:
    import boto3

    return boto3.Session(profile_name=profile).client(
        "ce", region_name=REGIONS.get(region.partition("-")[0], API_REGION)
    )
