"""What a program has already, as keys of a stack, and as an argument of `Fleet`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import pytest

from modelfleet.infra import component
from modelfleet.infra.component import Existing, Fleet
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.existing import existing_sections
from modelfleet.infra.stack import load_stack
from modelfleet.infra.targets import OUTPUTS, Given
from modelfleet.serving.config.errors import InputErrors

MODEL = {
    "engine_config": {"model_id": "org/m"},
    "scaling_config": {
        "num_workers": 1,
        "placement_strategy": "STRICT_PACK",
        "resources_per_worker": {"accelerator_type:L4": 0.001},
    },
}
POOLS = [{"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]}]
CLUSTER = {"target": "kubernetes", "accountId": "111122223333", "auth": "none", "pools": POOLS}
STACK = """\
config:
  modelfleet:target: kubernetes
  modelfleet:accountId: "111122223333"
  modelfleet:models: ["*"]
  modelfleet:mirror: {sources: {org/m: file:///weights}, create: true}
  modelfleet:pools: [{name: l4, accelerator: L4, maxNodes: 2, instanceTypes: [g6.xlarge]}]
"""


class Nothing(pulumi.runtime.Mocks):
    """An engine for components, which make nothing themselves."""

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        return args.name, dict(args.inputs)

    def call(self, args: pulumi.runtime.MockCallArgs) -> Any:
        raise AssertionError(f"nothing is asked here: {args.token}")


@dataclass
class Built:
    """The plans that reached the renderers, in place of resources."""

    root: Path
    plans: list[Plan] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)

    def build(self, root: Path, plan: Plan, given: Given) -> dict[str, Any]:
        self.plans.append(plan)
        self.given.append(given)
        return dict.fromkeys(OUTPUTS[plan.target.name], "")

    def run(self, program: Callable[[], Fleet]) -> Fleet:
        """The fleet of a program that has ended."""
        made: list[Fleet] = []
        asyncio.set_event_loop(asyncio.new_event_loop())
        pulumi.runtime.set_mocks(Nothing(), project="own", stack="test", preview=False)
        pulumi.runtime.test(lambda: made.append(program()))()
        return made[0]

    def refusal(self, program: Callable[[], Fleet]) -> str:
        """What the run says when it refuses."""
        with pytest.raises(pulumi.RunError) as refused:
            self.run(program)
        assert self.plans == [], "something was made"
        return str(refused.value)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Built]:
    made = Built(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "Pulumi.prod.yaml").write_text(STACK)
    (tmp_path / "models" / "org--m.yaml").write_text(json.dumps(MODEL))
    # An Output wants the thread's event loop, which an asyncio.run() of another test has removed.
    asyncio.set_event_loop(asyncio.new_event_loop())
    monkeypatch.setattr(component, "build", made.build)
    monkeypatch.setattr(pulumi, "get_root_directory", lambda: str(tmp_path))
    yield made
    pulumi.runtime.set_all_config({})


def test_only_what_is_given_takes_the_place_of_what_would_be_made(built: Built) -> None:
    """Regression: with a kubeconfig from another stack, a preview planned for a bucket and a namespace that nobody has."""
    existing = Existing(kubeconfig=pulumi.Output.from_input("text"))
    fleet = built.run(lambda: Fleet("llm", models=[MODEL], settings=CLUSTER, existing=existing))
    assert fleet.plan == built.plans[0]
    assert (fleet.plan.bucket.create, fleet.plan.bucket.name) == (True, "modelfleet-llm-111122223333")
    assert fleet.plan.namespace == "modelfleet-llm"
    assert built.given[0].kubeconfig_text == "text"


def test_an_id_that_is_not_known_yet_still_lets_the_plan_refuse(built: Built) -> None:
    """Mocks know every output at once; `later` has another stand for it first."""
    bucket = pulumi.Output.from_input("company-llm-code")
    existing = Existing(bucket=bucket)
    fleet = built.run(lambda: Fleet("llm", models=[MODEL], settings=CLUSTER, existing=existing))
    assert fleet.plan.bucket.name != "company-llm-code" and not fleet.plan.bucket.create
    assert built.plans[0].bucket.name == "company-llm-code"
    built.plans.clear()
    wrong = {**CLUSTER, "pools": []}
    said = built.refusal(lambda: Fleet("llm", models=[MODEL], settings=wrong, existing=existing))
    assert "org/m" in said


def test_a_stack_file_takes_what_exists_and_keeps_the_rest(built: Built) -> None:
    existing = Existing(kubeconfig="text", namespace="team-llm", bucket="company-llm-code")
    keys = {"team": "sk-0123456789abcdef"}
    plan = built.run(lambda: Fleet("prod", existing=existing, api_keys=keys)).plan
    assert (plan.namespace, plan.config.kubernetes.create_namespace) == ("team-llm", False)
    assert (plan.bucket.create, plan.bucket.name) == (False, "company-llm-code")
    assert plan.config.mirror.sources == {"org/m": "file:///weights"}
    assert plan.gateway.auth == "keys", "the file has no keys, and the program brings them"


def test_models_and_a_region_beside_a_stack_file_are_refused(built: Built) -> None:
    said = built.refusal(lambda: Fleet("prod", models=[MODEL], region="us-east-1"))
    for key in ("models", "region"):
        assert f"Fleet prod: {key}: is given without settings; stacks/Pulumi.prod.yaml says it then" in said


@pytest.mark.parametrize(
    ("target", "existing", "said"),
    [
        ("eks", Existing(kubeconfig="text"), "existing.kubeconfig: is for target kubernetes; target eks uses vpc_id, "),
        ("eks", Existing(namespace="n"), "existing.namespace: is for target kubernetes; target eks uses vpc_id, "),
        ("local", Existing(bucket="b"), "existing.bucket: is for target eks and kubernetes; target local uses nothing"),
        (
            "kubernetes",
            Existing(vpc_id="vpc-1", private_subnet_ids=["subnet-1", "subnet-2"]),
            "existing.vpc_id: is for target eks; target kubernetes uses kubeconfig, bucket, namespace only; remove it",
        ),
    ],
)
def test_what_the_target_would_leave_unused_is_refused(
    built: Built, target: str, existing: Existing, said: str
) -> None:
    settings = {**CLUSTER, "target": target}
    assert f"Fleet llm: {said}" in built.refusal(
        lambda: Fleet("llm", models=[MODEL], settings=settings, existing=existing)
    )


def test_the_region_is_that_of_pulumis_configuration_unless_it_is_given(built: Built) -> None:
    settings = {**CLUSTER, "target": "eks", "cluster": {"publicAccessCidrs": ["203.0.113.0/24"]}}
    pulumi.runtime.set_all_config({"aws:region": "eu-west-1"})
    assert built.run(lambda: Fleet("llm", models=[MODEL], settings=settings)).plan.region == "eu-west-1"
    plan = built.run(lambda: Fleet("llm", models=[MODEL], settings=settings, region="us-west-2")).plan
    assert plan.region == "us-west-2"


def test_a_fault_of_a_stack_file_keeps_its_line_and_a_section_that_is_no_mapping_is_told(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "Pulumi.prod.yaml").write_text(STACK + "  modelfleet:kubernetes: yes please\n")
    with pytest.raises(InputErrors) as refused:
        load_stack(tmp_path, "prod", existing_sections({"namespace": "team-llm"}))
    assert "stacks/Pulumi.prod.yaml:7: modelfleet:kubernetes: " in str(refused.value)
