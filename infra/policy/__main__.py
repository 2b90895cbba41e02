"""The policy pack: `pulumi up --policy-pack infra/policy [--policy-pack-config limits.json]`.

Limits come from the pack's configuration, of the policy `limits`:

    {"limits": {"regions": ["us-west-2"], "instanceTypes": ["g6.xlarge"], "maxUsdPerHour": 60}}
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pulumi_policy import (
    EnforcementLevel,
    PolicyConfigSchema,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)

from infra.policy.rules import LIMITED, RULES, Limits, within_budget

NODE_GROUP = "aws:eks/nodeGroup:NodeGroup"
LIST = {"type": "array", "items": {"type": "string"}}
SCHEMA = PolicyConfigSchema(
    properties={
        "regions": LIST,
        "instanceTypes": LIST,
        "maxUsdPerHour": {"type": "number"},
        "prices": {"type": "object", "additionalProperties": {"type": "number"}},
    }
)


def limits_of(config: Mapping[str, Any], *, with_prices: bool = False) -> Limits:
    """The limits of a policy's configuration; prices of the catalog where it names none."""
    prices = dict(config.get("prices") or {})
    if with_prices and not prices:
        from infra.catalog import default_catalog

        for (_, name), price in default_catalog().prices.items():
            prices[name] = max(price.usd_per_hour, prices.get(name, 0.0))
    return Limits(
        regions=config.get("regions") or (),
        instance_types=config.get("instanceTypes") or (),
        max_usd_per_hour=config.get("maxUsdPerHour"),
        prices=prices,
    )


def on_each(name: str, rule: Callable[[str, Mapping[str, Any]], Iterator[str]]) -> ResourceValidationPolicy:
    """A rule on one resource."""

    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        for sentence in rule(args.resource_type, args.props):
            report(f"{args.name}: {sentence}", None)

    return ResourceValidationPolicy(name, (rule.__doc__ or name).strip(), validate)


def on_each_within_limits(name: str, rule: Callable[..., Iterator[str]]) -> ResourceValidationPolicy:
    """A rule on one resource that looks at the pack's limits."""

    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        for sentence in rule(args.resource_type, args.props, limits_of(args.get_config())):
            report(f"{args.name}: {sentence}", None)

    return ResourceValidationPolicy(name, (rule.__doc__ or name).strip(), validate, config_schema=SCHEMA)


def budget(args: StackValidationArgs, report: ReportViolation) -> None:
    """The rule on all node groups together."""
    groups = [resource.props for resource in args.resources if resource.resource_type == NODE_GROUP]
    for sentence in within_budget(groups, limits_of(args.get_config(), with_prices=True)):
        report(sentence, None)


PolicyPack(
    name="modelfleet",
    enforcement_level=EnforcementLevel.MANDATORY,
    policies=[
        *(on_each(name, rule) for name, rule in RULES.items()),
        *(on_each_within_limits(name, rule) for name, rule in LIMITED.items()),
        StackValidationPolicy("within-budget", (within_budget.__doc__ or "").strip(), budget, config_schema=SCHEMA),
    ],
)
