"""`modelfleet add`: what it chooses, what it writes, and what it refuses to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelfleet.cli.add import Asked, run_add
from modelfleet.cli.add_stack import with_model
from modelfleet.cli.check import run_check
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.catalog.recipes import recipe_of
from modelfleet.infra.planning.facts import facts_from_config
from modelfleet.infra.planning.offers import Offer, Wish, checkpoints_of, offers
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.infra.stack import StackConfig
from modelfleet.serving.config.errors import InputErrors, SetupError

CATALOG = default_catalog()
STACK = """\
# The team's stack.
config:
  aws:region: us-east-1
  modelfleet:target: eks
  modelfleet:accountId: "111122223333"   # ours
  modelfleet:auth: none
  modelfleet:models: [Qwen--*]   # by file
  modelfleet:pools:   # append only
    - {name: l4, accelerator: L4, maxNodes: 8, instanceTypes: [g6.xlarge]}   # spot is cheaper
  modelfleet:budget: {maxUsdPerHour: 20}
  modelfleet:cluster: {publicAccessCidrs: [203.0.113.0/24]}
"""
OFFLINE = Asked(network=False, yes=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack with one model on an L4."""
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "Pulumi.dev.yaml").write_text(STACK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run_add("Qwen/Qwen3-0.6B", Asked(network=False, yes=True, accelerator="L4"), as_json=True)
    return tmp_path


def added(capsys: pytest.CaptureFixture[str], name: str, asked: Asked) -> dict[str, Any]:
    capsys.readouterr()
    assert run_add(name, asked, as_json=True) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def offers_of(model: str, wish: Wish) -> list[Offer]:
    row = CATALOG.models[model]
    assert row.config is not None
    facts = facts_from_config(row.config, "test", CATALOG)
    return offers(checkpoints_of(model, facts, recipe_of(model, facts.architecture), CATALOG), wish, CATALOG)


@pytest.mark.parametrize(
    "model", ["Qwen/Qwen3-8B", "openai/gpt-oss-20b", "meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen3-Embedding-0.6B",
              "google/gemma-3-27b-it", "Qwen/Qwen3-Coder-30B-A3B-Instruct", "deepseek-ai/DeepSeek-V3.2"],
)  # fmt: skip
def test_what_it_writes_has_no_errors_or_warnings(
    model: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = added(capsys, model, OFFLINE)
    assert found["written"] and found["chosen"]["memory"]["full_length_sequences"] >= 1
    path = project / "models" / f"{model.replace('/', '--')}.yaml"
    assert found["files"] == {str(path.relative_to(project)): path.read_text()}
    assert run_check([path], stack=None, as_json=True, fix=False) == 0
    said = json.loads(capsys.readouterr().out)["findings"]
    assert [one for one in said if one["severity"] != "notice"] == []
    assert not [one for one in said if "add `" in one["message"]], "the recipe's lines are there already"


def test_the_cheapest_that_holds_the_wish_is_chosen() -> None:
    found = offers_of("Qwen/Qwen3-8B", Wish(8192))
    assert found[0].usd_per_hour == min(offer.usd_per_hour for offer in found if offer.checkpoint.bits >= 8)
    assert (found[0].accelerator.name, found[0].workers, found[0].checkpoint.hf_id) == ("L4", 1, "Qwen/Qwen3-8B-FP8")
    crowded = offers_of("Qwen/Qwen3-8B", Wish(8192, concurrency=200))
    assert crowded[0].usd_per_hour > found[0].usd_per_hour, "an L4 does not hold 200 requests at once"
    fast = offers_of("Qwen/Qwen3-8B", Wish(8192, goal="fastest"))
    times = [offer.speed.tpot_ms.expected for offer in fast if offer.speed and offer.speed.tpot_ms]
    assert times[0] == min(times) < 5


def test_four_bits_are_chosen_only_where_they_were_named() -> None:
    assert all(offer.checkpoint.bits >= 8 for offer in offers_of("meta-llama/Llama-3.3-70B-Instruct", Wish(8192))[:3])
    assert offers_of("Qwen/Qwen3-14B-AWQ", Wish(8192))[0].checkpoint.hf_id == "Qwen/Qwen3-14B-AWQ"


def test_a_card_that_vllm_refuses_is_no_offer() -> None:
    cards = {offer.accelerator.name for offer in offers_of("openai/gpt-oss-20b", Wish(8192))}
    assert "T4" not in cards and "L4" in cards


def test_a_stack_gets_the_name_and_a_pool_and_keeps_its_comments(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(stack="dev", accelerator="L40S", replicas="0-3", network=False, yes=True)
    found = added(capsys, "openai/gpt-oss-20b", asked)
    text = (project / "stacks" / "Pulumi.dev.yaml").read_text()
    assert text == STACK.replace("[Qwen--*]", "[Qwen--*, openai--gpt-oss-20b]").replace(
        "is cheaper\n", "is cheaper\n    - {name: l40s, accelerator: L40S, maxNodes: 3}\n"
    )
    plan = make_plan(project, "dev", deploying=False)
    assert {model.model_id: model.pool for model in plan.models}["openai/gpt-oss-20b"] == "l40s"
    before, after = found["cost"]["before"], found["cost"]["after"]
    assert after["max_usd_per_hour"] - before["max_usd_per_hour"] == pytest.approx(3 * 1.861)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  modelfleet:models: []\n", "  modelfleet:models: [m]\n"),
        ("  modelfleet:models:\n  - a # one\n\n  # next\n", "  modelfleet:models:\n  - a # one\n  - m\n\n  # next\n"),
        ("  modelfleet:models: [\n    a,  # one\n  ]\n", "  modelfleet:models: [\n    a, m,  # one\n  ]\n"),
        ("  modelfleet:models: ['*']\n", "  modelfleet:models: ['*']\n"),
    ],
)
def test_lists_of_any_style_get_one_item_more(before: str, after: str) -> None:
    offer = offers_of("openai/gpt-oss-20b", Wish(8192))[0]
    head, pools = "config:\n", "  modelfleet:target: eks\n"
    settings = yaml.safe_load(head + before)["config"]["modelfleet:models"]
    config = StackConfig.model_construct(models=settings, target_name="eks", pools=[])
    pool = f"  modelfleet:pools:\n    - {{name: l4, accelerator: {offer.accelerator.name}, maxNodes: 2}}\n"
    found = with_model(head + before + pools, config, "m", offer, 2)
    assert found.replace(pool, "") == head + after + pools
    assert yaml.safe_load(found)["config"]["modelfleet:pools"][0]["maxNodes"] == 2


def test_a_pool_and_a_pattern_that_are_there_leave_the_stack_file_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = added(capsys, "Qwen/Qwen3-8B", Asked(stack="dev", network=False, yes=True))
    assert list(found["files"]) == ["models/Qwen--Qwen3-8B.yaml"]
    assert (project / "stacks" / "Pulumi.dev.yaml").read_text() == STACK


def test_what_the_plan_refuses_is_not_written(project: Path) -> None:
    asked = Asked(stack="dev", accelerator="H100", replicas="4-4", network=False, yes=True)
    with pytest.raises(InputErrors, match=r"budget.maxUsdPerHour: found 20"):
        run_add("openai/gpt-oss-20b", asked)
    assert [path.name for path in (project / "models").iterdir()] == ["Qwen--Qwen3-0.6B.yaml"]
    assert (project / "stacks" / "Pulumi.dev.yaml").read_text() == STACK


@pytest.mark.parametrize("asked", [Asked(network=False), Asked(network=False, yes=True, dry_run=True)])
def test_nothing_is_written_unasked(asked: Asked, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_add("Qwen/Qwen3-8B", asked) == 0
    printed = capsys.readouterr()
    assert "+  model_id: Qwen/Qwen3-8B" in printed.out and "→" in printed.out and "tokens/s" in printed.out
    assert ("nothing was written; --yes writes it" in printed.err) is not asked.dry_run
    assert not (project / "models" / "Qwen--Qwen3-8B.yaml").exists()


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"accelerator": "L5"}, "--accelerator: found 'L5'"),
        ({"replicas": "4-1"}, "--replicas: found '4-1'"),
        ({"replicas": "many"}, "--replicas: found 'many'"),
        ({"accelerator": "T4", "length": 40960, "concurrency": 4000}, "T4 does not carry Qwen/Qwen3-8B"),
    ],
)
def test_a_wish_that_nothing_meets_says_why(asked: dict[str, Any], fault: str, project: Path) -> None:
    with pytest.raises(SetupError, match=fault):
        run_add("Qwen/Qwen3-8B", Asked(network=False, **asked))


def test_a_file_that_exists_is_not_written_over(project: Path) -> None:
    with pytest.raises(InputErrors, match="exists already"):
        run_add("Qwen/Qwen3-0.6B", OFFLINE)


def test_a_stack_without_nodes_of_its_own_is_given_no_pool(project: Path) -> None:
    text = STACK.replace("target: eks", "target: local").replace("accelerator: L4", "accelerator: CPU")
    local = "\n".join(line for line in text.splitlines() if "accountId" not in line).replace(
        ", instanceTypes: [g6.xlarge]", ""
    )
    (project / "stacks" / "Pulumi.here.yaml").write_text(local)
    with pytest.raises(SetupError, match="none of its pools has a GPU"):
        run_add("Qwen/Qwen3-8B", Asked(stack="here", network=False))
