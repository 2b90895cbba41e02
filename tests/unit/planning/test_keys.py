"""The stack file's `keys` and `teams`: what becomes of them in the plan, and what is refused with its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.keys import key_findings, key_for
from modelfleet.infra.planning.plan import AllowancePlan, BudgetPlan, KeyPlan
from modelfleet.infra.stack.keys import PULUMI_MIDNIGHT, ApiKey
from modelfleet.serving.config.errors import InputErrors, Severity
from tests.unit.planning.builders import model, planned, pool, stack
from tests.unit.stack.test_load import HEAD, sentences

MODELS = [model("org/large", lora=[{"name": "org/large-lora", "source": "s3://b/l"}]), model("small")]


def plan_of(**sections: Any) -> Plan:
    settings = {"auth": "keys", "secrets": ["apiKeys"], **sections}
    return planned(MODELS, stack(pool(), **settings))


def refused(**sections: Any) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        plan_of(**sections)
    return [finding.sentence() for finding in caught.value.findings]


def key_of(plan: Plan, name: str) -> KeyPlan:
    return next(key for key in plan.gateway.keys if key.name == name)


def test_globs_become_the_names_that_the_gateway_serves() -> None:
    plan = plan_of(keys={"a": {"models": ["org/*"]}, "b": {"models": ["*-lora", "small"]}, "c": {}})
    assert key_of(plan, "a").models == ("org/large", "org/large-lora")
    assert key_of(plan, "b").models == ("org/large-lora", "small")
    assert key_of(plan, "c").models is None


def test_a_key_may_use_what_both_it_and_its_team_may() -> None:
    plan = plan_of(
        keys={"a": {"team": "web", "models": ["org/*"]}, "b": {"team": "web"}},
        teams={"web": {"models": ["*lora", "small"], "tokensPerMinute": 9}},
    )
    assert key_of(plan, "a").models == ("org/large-lora",)
    assert key_of(plan, "b").models == ("org/large-lora", "small")
    assert plan.gateway.teams == (AllowancePlan("web", tokens_per_minute=9),)
    assert plan.gateway.counts_tokens


def test_a_key_has_the_gateways_limits_where_it_has_none() -> None:
    plan = plan_of(gateway={"requestsPerMinute": 60, "tokensPerMinute": 10}, keys={"a": {"requestsPerMinute": 5}})
    assert (key_of(plan, "a").requests_per_minute, key_of(plan, "a").tokens_per_minute) == (5, 10)


def test_a_key_ends_with_its_last_day_in_utc() -> None:
    assert ApiKey(expires="2026-12-31").ends_at == 1_798_761_600
    assert ApiKey(expires="2026-12-31" + PULUMI_MIDNIGHT).expires == "2026-12-31", "as Pulumi writes it back"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"keys": {"a": {"models": ["org/larg"]}}}, "keys.a.models[0]: found 'org/larg', which matches no model"),
        (
            {"keys": {"a": {"team": "t", "models": ["small"]}}, "teams": {"t": {"models": ["org/*"]}}},
            "no model in common",
        ),
        ({"keys": {"a": {"team": "web"}}, "teams": {"wep": {}}}, "keys.a.team: found web; did you mean wep?"),
        ({"auth": "none", "keys": {"a": {}}}, "auth is none"),
    ],
)
def test_what_opens_nothing_is_refused_with_its_line(sections: dict[str, Any], words: str) -> None:
    (sentence,) = refused(**sections)
    assert words in sentence and sentence.startswith("stacks/Pulumi.test.yaml:"), sentence


def test_a_key_without_a_secret_is_a_warning() -> None:
    plan = plan_of(keys={"a": {}})
    (notice,) = [one for one in plan.notices if one.path == "modelfleet:keys.a"]
    assert notice.severity is Severity.WARNING and "modelfleet key add a --stack test" in notice.message


def test_keys_that_the_file_does_not_hold_are_not_missed() -> None:
    """A program gives them, or somebody made the Secret."""
    of_the_file = stack(pool(), auth="keys", secrets=["apiKeys"], keys={"a": {}})
    of_a_program = replace(of_the_file, key_names=frozenset({"a"}))
    of_an_output = replace(of_the_file, key_names=None)
    self_made = replace(of_the_file, secrets=frozenset())
    missed = [len(key_findings(one, ["small"])) for one in (of_the_file, of_a_program, of_an_output, self_made)]
    assert missed == [1, 0, 0, 0]


LLAMA = "meta-llama/Llama-2-7b-chat-hf"


def test_budgets_are_the_keys_and_the_teams_in_tokens_or_millionths_of_a_usd() -> None:
    keys = {"a": {"team": "web", "budget": {"tokens": 5, "per": "day"}}, "b": {}}
    config: dict[str, Any] = {"auth": "keys", "keys": keys, "teams": {"web": {"budget": {"usd": 250.5}}}}
    made = stack(pool(instanceTypes=["g6.xlarge"]), secrets=("apiKeys",), **config)
    plan = planned([model(LLAMA)], made, facts=None)
    assert key_of(plan, "a").budget == BudgetPlan(5, "tokens", "day") and key_of(plan, "b").budget is None
    assert plan.gateway.teams[0].budget == BudgetPlan(250_500_000, "usd", "month")
    assert plan.gateway.settles and plan.gateway.has_budgets and not plan.gateway.counts_tokens
    (route,), (planned_model,) = plan.gateway.routes, plan.models
    assert planned_model.speed is not None
    assert route.usd_per_million_tokens == planned_model.speed.usd_per_million_tokens is not None


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"keys": {"a": {"budget": {"usd": 5}}}}, "keys.a.budget: is in USD"),
        ({"keys": {"a": {"team": "t"}}, "teams": {"t": {"budget": {"usd": 5}}}}, "teams.t.budget: is in USD"),
    ],
)
def test_a_budget_in_usd_for_a_model_without_a_price_is_refused(sections: dict[str, Any], words: str) -> None:
    (sentence,) = refused(**sections)
    assert words in sentence and "of org/large, small; use tokens" in sentence


def test_a_head_that_may_forget_budgets_is_a_warning() -> None:
    budget = {"keys": {"a": {"budget": {"tokens": 5}}}}

    def warned(**sections: Any) -> list[str]:
        return [one.message for one in plan_of(**sections).notices if "begin anew" in one.message]

    assert len(warned(**budget)) == 1 and not warned(keys={"a": {}})
    assert not warned(**budget, kubernetes={"image": "r.example/s:1", "redisAddress": "valkey.example:6379"})


def test_the_first_request_of_a_model_takes_a_key_that_may_use_it_and_lives() -> None:
    keys = {"ended": {"expires": "2020-01-01"}, "small": {"models": ["small"]}, "large": {"models": ["org/*"]}}
    gateway = plan_of(keys=keys).gateway
    names, now = ["ended", "small", "large"], 1_798_761_600
    assert [key_for(gateway, model, names, now) for model in ("org/large", "small")] == ["large", "small"]
    assert key_for(gateway, "org/large", names[:2], now) is None
    assert key_for(gateway, "org/large", ["small", "in-no-file"], now) == "in-no-file"
    assert key_for(gateway, "org/large", names, 0) == "ended", "it lived then"
    spent = plan_of(keys={"a": {"budget": {"tokens": 5}}, "b": {}}).gateway
    assert key_for(spent, "small", ["a", "b"], now) == "b" and key_for(spent, "small", ["a"], now) == "a"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: {a: {expires: '9999-12-31'}}", "from 2000 to 9998"),
        ("keys: {a: {expires: '1969-12-31'}}", "from 2000 to 9998"),
        ("keys: {a: {expires: '0001-01-01'}}", "from 2000 to 9998"),
        ("keys: {a: {team: [one, two]}}", "keys.a.team"),
        ("keys: {a: {team: one}, a: {team: two}}", "a"),
        ("keys: {a: {expires: tomorrow}}", "allowed is a day such as 2026-12-31"),
        ("keys: {a: {expires: '2026-02-30'}}", "allowed is a day such as 2026-12-31"),
        ("keys: {a: {models: []}}", "keys.a.models"),
        ("keys: {a: {models: ['x y']}}", "a model's id or its adapter's name"),
        ("keys: {a: {requestsPerMinute: 0}}", "keys.a.requestsPerMinute"),
        ("keys: {a: {budget: 3}}", "keys.a.budget"),
        ("keys: {a: {budget: {}}}", "name either tokens or usd"),
        ("keys: {a: {budget: {tokens: 5, usd: 3}}}", "name either tokens or usd"),
        ("keys: {a: {budget: {tokens: 0}}}", "keys.a.budget.tokens"),
        ("keys: {a: {budget: {usd: .inf}}}", "keys.a.budget.usd"),
        ("keys: {a: {budget: {tokens: 5, per: week}}}", "keys.a.budget.per"),
        ('keys: {"a\\"b": {}}', "1 to 63 letters"),
        ('keys: {"a\\nb": {}}', "1 to 63 letters"),
        ('keys: {"a\\n": {}}', "1 to 63 letters"),
        (f"keys: {{{'x' * 64}: {{}}}}", "1 to 63 letters"),
    ],
)
def test_a_key_in_two_teams_and_every_other_fault_is_refused(tmp_path: Path, text: str, words: str) -> None:
    found = sentences(tmp_path, HEAD + f"  modelfleet:{text}\n")
    assert any(words in one and one.startswith("stacks/Pulumi.dev.yaml:5") for one in found), found
