"""`Fleet`: models on GPUs as a component of anybody's Pulumi program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pulumi

from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.existing import existing_findings, existing_sections
from modelfleet.infra.planning.monitoring import ALERT_WEBHOOK
from modelfleet.infra.reading.workspace import Workspace, plan_workspace, read_workspace, workspace_of
from modelfleet.infra.stack import StackConfig
from modelfleet.infra.targets import OUTPUTS, Given, build
from modelfleet.serving.config.errors import Finding, InputErrors, ModelfleetError

Model = str | Path | Mapping[str, Any]
"""A model file, a glob of model files, or a model file's content."""

Settings = StackConfig | Mapping[str, Any]
"""A stack file's keys without their `modelfleet:` prefix, as in `stacks/README.md`; `models` may be left out."""

#: Stand for ids that an output has not given yet, so that the plan and its refusals come first.
_NOT_YET: Final[Mapping[str, Any]] = {
    "vpc_id": "vpc-0",
    "private_subnet_ids": ["subnet-0", "subnet-1"],
    "bucket": "not-known-yet",
    "namespace": "not-known-yet",
    "kubeconfig": "",
}


@dataclass(frozen=True)
class Existing:
    """What exists already, and is used instead of made. Each may be an output of another resource."""

    vpc_id: pulumi.Input[str] | None = None
    private_subnet_ids: Sequence[pulumi.Input[str]] | pulumi.Output[Sequence[str]] | None = None
    """Private subnets of the VPC, in at least two zones."""
    kubeconfig: pulumi.Input[str] | None = None
    """Text of a kubeconfig, for the target `kubernetes`."""
    bucket: pulumi.Input[str] | None = None
    """Name of the bucket for the code that replicas run. Weights then load from where the model files say."""
    namespace: pulumi.Input[str] | None = None
    """Namespace for everything in the cluster. The fleet sets a quota in it and leaves its labels as they are."""

    def given(self) -> dict[str, Any]:
        """What is set, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Fleet(pulumi.ComponentResource):
    """Models, served: the same plan and the same refusals as `pulumi up` on a stack file.

        fleet = Fleet(
            "llm",
            models=["models/*.yaml"],
            settings={"target": "eks", "pools": [{"name": "l4", "accelerator": "L4", "maxNodes": 2}]},
            existing=Existing(vpc_id=vpc.id, private_subnet_ids=[a.id, b.id]),
        )
        pulumi.export("base_url", fleet.base_url)

    `name` names the cluster, the bucket and the namespace `modelfleet-<name>`; without `settings` also the stack file
    `stacks/Pulumi.<name>.yaml`. Paths are relative to Pulumi.yaml. `region` is `aws:region` unless it is given.
    `docs/component.md` has a program for each combination. Raises `pulumi.RunError`, which Pulumi prints without a
    traceback, with every fault of models and settings before it registers a resource.
    """

    plan: Plan
    """What was decided. Where an output of `existing` is not known yet, another id stands for it."""
    base_url: pulumi.Output[str]
    """The address of OpenAI's API, such as `http://127.0.0.1:8000/v1`."""
    pools: pulumi.Output[Mapping[str, str]]
    """EKS node groups by pool; empty for other targets."""
    outputs: Mapping[str, pulumi.Output[Any]]
    """All that the target has: `base_url`, and for `eks` `kubeconfig`, `endpoint`, `bucket`, `pools`."""

    def __init__(
        self,
        name: str,
        *,
        models: Sequence[Model] = (),
        settings: Settings | None = None,
        region: str | None = None,
        existing: Existing | None = None,
        huggingface_token: pulumi.Input[str] | None = None,
        api_keys: pulumi.Input[Mapping[str, str]] | None = None,
        alert_webhook: pulumi.Input[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        there = (existing or Existing()).given()
        secrets = {"huggingFaceToken": huggingface_token, "apiKeys": api_keys, ALERT_WEBHOOK: alert_webhook}
        named = frozenset(key for key, value in secrets.items() if value is not None)
        root = Path(
            pulumi.get_root_directory() or Path.cwd()
        )  # none is said to a plugin, which runs beside the program
        names = frozenset(api_keys) if isinstance(api_keys, Mapping) else None
        asked = _Asked(name, models, settings, region, named, root, names)
        with _told():
            self.plan = asked.plan({key: _NOT_YET[key] if _is_output(value) else value for key, value in there.items()})
            # As inputs they become dependencies: `destroy` deletes what is in a VPC or a bucket before it. Providers
            # depend on the kubeconfig themselves, and a new token in it is no change of the fleet.
            inputs = {key: value for key, value in there.items() if key != "kubeconfig"}
            super().__init__("modelfleet:index:Fleet", name, inputs, opts)
            for notice in self.plan.notices:
                pulumi.log.warn(notice.sentence(), self)
            given = Given(huggingface_token, api_keys, alert_webhook, there.get("kubeconfig"), parent=self)
            if any(map(_is_output, there.values())):
                self.outputs = self._later(asked, there, given)
            else:
                made = build(asked.root, self.plan, replace(given, kubeconfig_text=there.get("kubeconfig")))
                self.outputs = {key: pulumi.Output.from_input(value) for key, value in made.items()}
        self.base_url = self.outputs["base_url"]
        self.pools = self.outputs.get("pools", pulumi.Output.from_input({}))
        self.register_outputs({"base_url": self.base_url})

    def _later(self, asked: _Asked, there: Mapping[str, Any], given: Given) -> dict[str, pulumi.Output[Any]]:
        """The outputs of a fleet that is built when all that exists is known: in a preview perhaps not at all."""

        def make(known: Mapping[str, Any]) -> Mapping[str, Any]:
            with _told():
                return build(asked.root, asked.plan(known), replace(given, kubeconfig_text=known.get("kubeconfig")))

        made = pulumi.Output.all(**there).apply(make)
        keys = (*OUTPUTS[self.plan.target.name], *(("metrics_endpoint",) if self.plan.amp else ()))
        outputs = {key: _of(made, key) for key in keys}
        # An address is no secret, although a kubeconfig is.
        return {**outputs, "base_url": pulumi.Output.unsecret(outputs["base_url"])}


@dataclass(frozen=True)
class _Asked:
    """What a program asks for, before a plan is made of it."""

    name: str
    models: Sequence[Model]
    settings: Settings | None
    region: str | None
    secrets: frozenset[str]
    root: Path
    #: Names of the keys that the program gives; None where they are an output's.
    key_names: frozenset[str] | None = None

    def plan(self, known: Mapping[str, Any]) -> Plan:
        """The plan where `known` exists; raises `InputErrors` with every fault."""
        workspace = self._workspace(known)
        stack = replace(workspace.stack, secrets=workspace.stack.secrets | self.secrets)
        if "apiKeys" in self.secrets and not workspace.stack.key_names:  # the file has none
            stack = replace(stack, key_names=self.key_names)
        if refused := list(existing_findings(f"Fleet {self.name}", stack.config.target, known)):
            raise InputErrors(refused)
        return plan_workspace(replace(workspace, stack=stack), self.root, ask_issuer=True)

    def _workspace(self, known: Mapping[str, Any]) -> Workspace:
        sections = existing_sections(known)
        if self.settings is None:
            self._refuse_what_the_file_says()
            return read_workspace(self.root, self.name, sections)
        settings = self.settings
        if isinstance(settings, StackConfig):
            settings = settings.model_dump(mode="json", by_alias=True, exclude_unset=True)
        region = self.region or pulumi.Config("aws").get("region")
        return workspace_of(self.name, self.models, settings, self.root, region=region, sections=sections)

    def _refuse_what_the_file_says(self) -> None:
        message = (
            f"is given without settings; stacks/Pulumi.{self.name}.yaml says it then: remove it here, or give settings"
        )
        both = {"models": self.models, "region": self.region}
        if refused := [Finding(f"Fleet {self.name}", 0, key, message) for key, value in both.items() if value]:
            raise InputErrors(refused)


@contextmanager
def _told() -> Iterator[None]:
    """Make our errors the run's own, which Pulumi prints without a traceback, in an output's `apply` too."""
    try:
        yield
    except ModelfleetError as error:
        raise pulumi.RunError(str(error)) from error


def _of(made: pulumi.Output[Mapping[str, Any]], key: str) -> pulumi.Output[Any]:
    """One of several values, with the outputs in it resolved."""
    return made.apply(lambda values: pulumi.Output.from_input(values[key]))


def _is_output(value: Any) -> bool:
    return isinstance(value, pulumi.Output) or (isinstance(value, list | tuple) and any(map(_is_output, value)))
