"""The stacks and models of this repository: each plan is whole, fits its budget, and shows what people deploy today."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.serving.config.load import load_model

ROOT = Path(__file__).parents[3]
STACKS = ("dev", "staging", "prod")


@pytest.fixture(scope="module", params=STACKS)
def plan(request: pytest.FixtureRequest) -> Plan:
    """An example stack's plan, from the files of this repository alone; over its budget it is refused."""
    return make_plan(ROOT, request.param, deploying=False)


def test_a_stack_says_nothing_but_that_its_keys_are_missing(plan: Plan) -> None:
    assert {notice.path for notice in plan.notices} <= {"modelfleet:apiKeys"}


def test_a_stack_is_within_its_budget_and_names_one(plan: Plan) -> None:
    limit, most = plan.config.budget.max_usd_per_hour, plan.cost.max_usd_per_hour
    assert limit is not None and most is not None and most <= limit
    assert most > 0.75 * limit, "a budget far above the plan protects nobody"


def test_every_pool_carries_its_models_at_their_most_replicas(plan: Plan) -> None:
    assert {pool.name: pool.needed_nodes for pool in plan.pools if pool.needed_nodes > pool.max_nodes} == {}
    assert {pool.name for pool in plan.pools} == {model.pool for model in plan.models}, "a pool that nobody uses"


def test_the_memory_of_every_model_is_planned(plan: Plan) -> None:
    assert [model.model_id for model in plan.models if model.memory is None] == []


def test_a_stack_at_rest_costs_what_its_first_lines_say(plan: Plan) -> None:
    head = (ROOT / "stacks" / f"Pulumi.{plan.stack}.yaml").read_text().partition("config:")[0]
    if "an hour at rest" in head:
        assert f"About {plan.cost.min_usd_per_hour:.0f} USD an hour at rest" in head


def test_there_is_an_example_for_each_accelerator_and_each_use() -> None:
    """At least twelve of today's models, with a reason in the first line of each, on the nine kinds of GPU."""
    files = sorted((ROOT / "models").glob("*.yaml"))
    loaded = [model.config for path in files if (model := load_model(path)[0])]
    nine = {"T4", "L4", "A10G", "L40S", "A100-40G", "A100-80G", "H100", "H200", "B200"}
    assert nine <= {config.accelerator for config in loaded}
    assert len([config for config in loaded if "Llama-2" not in config.model_id]) >= 12
    assert all(path.read_text().startswith("# ") for path in files)
    kwargs = [config.engine_config.engine_kwargs for config in loaded]
    assert sum(one.get("runner") == "pooling" for one in kwargs) >= 2, "an embedder and a reranker"
    assert (
        sum("reasoning_parser" in one for one in kwargs) >= 2 and sum("tool_call_parser" in one for one in kwargs) >= 5
    )


def test_a_first_stack_costs_what_its_guide_says() -> None:
    plan = make_plan(ROOT, "trial", deploying=False)
    most = plan.cost.max_usd_per_hour
    assert most is not None and most <= 2 and not plan.notices
    assert f"{most:.2f} USD an hour" in (ROOT / "docs" / "first-account.md").read_text()
    assert [one.model_id for one in plan.models if one.memory is None] == []
