"""`pulumi-resource-modelfleet-fleet`: `Fleet` in other languages, through Pulumi's component provider.

Without `from __future__ import annotations`: Pulumi makes the package's schema from the annotations as objects.
"""

import sys
from dataclasses import fields
from importlib.metadata import version
from typing import Any, NotRequired, Optional, TypedDict

import pulumi
from packaging.version import Version
from pulumi.errors import InputPropertiesError
from pulumi.provider import ConstructResult, main
from pulumi.provider.experimental.component import ComponentProvider
from pulumi.provider.server import ComponentInitError

from modelfleet.infra import component

NAME = "modelfleet-fleet"


class FleetArgs(TypedDict):
    """The arguments of `Fleet`, with those of `Existing` beside them."""

    models: NotRequired[list[Any]]
    settings: NotRequired[dict[str, Any]]
    region: NotRequired[str]
    vpc_id: NotRequired[pulumi.Input[str]]
    private_subnet_ids: NotRequired[pulumi.Input[list[pulumi.Input[str]]]]
    kubeconfig: NotRequired[pulumi.Input[str]]
    bucket: NotRequired[pulumi.Input[str]]
    namespace: NotRequired[pulumi.Input[str]]
    huggingface_token: NotRequired[pulumi.Input[str]]
    api_keys: NotRequired[pulumi.Input[dict[str, pulumi.Input[str]]]]
    alert_webhook: NotRequired[pulumi.Input[str]]


class Fleet(pulumi.ComponentResource):
    """Models on GPUs; docs/component.md of modelfleet says what the arguments are."""

    base_url: pulumi.Output[str]
    pools: pulumi.Output[dict[str, str]]
    max_usd_per_hour: Optional[float]  # noqa: UP045 - Pulumi's analyzer does not know `| None`
    kubeconfig: Optional[pulumi.Output[str]]  # noqa: UP045

    # A subclass of our `Fleet` would have its annotations too, such as that of the plan.
    def __init__(self, name: str, args: FleetArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(f"{NAME}:index:Fleet", name, None, opts)
        given: dict[str, Any] = {key: whole(value) for key, value in args.items()}
        there = component.Existing(**{one.name: given.pop(one.name, None) for one in fields(component.Existing)})
        fleet = component.Fleet(name, **given, existing=there, opts=pulumi.ResourceOptions(parent=self))
        self.base_url, self.pools = fleet.base_url, fleet.pools.apply(dict)
        self.max_usd_per_hour = fleet.plan.cost.max_usd_per_hour
        self.kubeconfig = fleet.outputs.get("kubeconfig")
        self.register_outputs({"base_url": self.base_url})


class FleetProvider(ComponentProvider):
    """Pulumi's provider, which adds a traceback to every error of a component; ours are sentences."""

    def construct(self, *args: Any, **more: Any) -> ConstructResult:
        """Make the component."""
        try:
            return super().construct(*args, **more)
        except ComponentInitError as error:
            if isinstance(error.inner, pulumi.RunError):
                raise InputPropertiesError(str(error.inner), []) from error
            raise


def whole(value: Any) -> Any:
    """`value` with whole numbers as `int`: the wire has one kind of number, and vLLM's arguments have two."""
    if isinstance(value, dict):
        return {key: whole(one) for key, one in value.items()}
    if isinstance(value, list):
        return [whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def run() -> None:
    """Entry point of the plugin, which the engine starts."""
    main(FleetProvider([Fleet], NAME, version=Version(version("modelfleet")).base_version), sys.argv[1:])
