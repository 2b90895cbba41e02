"""The policy pack: `pulumi up --policy-pack FOLDER [--policy-pack-config limits.json]` with this folder, as installed.

Pulumi runs it with the `python3` on PATH, so the environment of modelfleet must be activated.
Limits come from the pack's configuration, by policy:

    {"allowed-region": {"regions": ["us-west-2"]}, "allowed-instance-types": {"instanceTypes": ["g6.xlarge"]},
     "within-budget": {"maxUsdPerHour": 60}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

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

from modelfleet.infra.policy.rules import LAUNCH_TEMPLATE, LIMITED, NODE_GROUP, RULES, Limits, Props, within_budget

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
    """The limits in a policy's configuration. With `with_prices`, a configuration without prices gets the catalog's."""
    prices = dict(config.get("prices") or {})
    if with_prices and not prices:
        from modelfleet.infra.catalog import default_catalog

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
    """A rule on one resource that uses the pack's limits."""

    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        for sentence in rule(args.resource_type, args.props, limits_of(args.get_config())):
            report(f"{args.name}: {sentence}", None)

    return ResourceValidationPolicy(name, (rule.__doc__ or name).strip(), validate, config_schema=SCHEMA)


def budget(args: StackValidationArgs, report: ReportViolation) -> None:
    """The rule on all node groups together. It finds launch templates by dependency: new ones have no id yet."""
    groups: list[tuple[Props, Props]] = []
    for group in args.resources:
        if group.resource_type == NODE_GROUP:
            templates = group.property_dependencies.get("launchTemplate", [])
            groups.append(
                (group.props, next((one.props for one in templates if one.resource_type == LAUNCH_TEMPLATE), {}))
            )
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
