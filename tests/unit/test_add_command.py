"""`modelfleet add`: what it chooses, what it writes, and what it refuses to write."""

from __future__ import annotations

import json
import shutil
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
ROOT = Path(__file__).parents[2]
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
    lines = [(one["sign"], one["what"], one["name"]) for one in found["plan"]]
    assert lines == [("+", "pool", "l40s"), ("+", "model", "openai/gpt-oss-20b")], "what it does to the plan"
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


def local_stack(project: Path) -> str:
    """A stack on this machine, with a pool of CPUs and one model."""
    name = "HuggingFaceTB--SmolLM2-135M-Instruct"
    shutil.copy(ROOT / "models" / f"{name}.yaml", project / "models")
    keys = f"  modelfleet:models: [{name}]\n  modelfleet:pools: [{{name: cpu, accelerator: CPU, maxNodes: 1}}]\n"
    text = f"config:\n  modelfleet:target: local\n  modelfleet:auth: none\n{keys}"
    (project / "stacks" / "Pulumi.here.yaml").write_text(text)
    return "here"


def test_a_stack_without_nodes_of_its_own_is_given_no_pool(project: Path) -> None:
    with pytest.raises(SetupError, match="--accelerator: found 'L4'"):
        run_add("Qwen/Qwen3-8B", Asked(stack=local_stack(project), accelerator="L4", network=False))


def test_a_stack_without_pools_is_told_to_have_one(project: Path) -> None:
    path = project / "stacks" / f"Pulumi.{local_stack(project)}.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "pools" not in line))
    with pytest.raises(SetupError, match="stack here makes no nodes and has no pool"):
        run_add("Qwen/Qwen3-8B", Asked(stack="here", network=False))


def test_the_first_lines_count_with_the_recipes_settings(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gpt-oss 120B on one H100 gets a smaller batch and 95 % of the memory, so its cache is larger than vLLM's defaults
    leave; and a card that was named is not called the cheapest."""
    found = added(capsys, "openai/gpt-oss-120b", Asked(accelerator="H100", length=32768, network=False, yes=True))
    head = found["files"]["models/openai--gpt-oss-120b.yaml"].partition("deployment_config")[0]
    memory = found["chosen"]["memory"]
    assert memory["total_mib"] * 0.95 == pytest.approx(memory["total_mib"] - memory["free_mib"])
    assert f"the KV cache {memory['kv_cache_mib'] / 1024:.1f}: {memory['full_length_sequences']} requests" in head
    assert "on one H100, as asked; it holds requests" in head and "cheapest" not in head


def test_a_stack_of_cpus_gets_a_model_on_cpus(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = local_stack(project)
    found = added(capsys, "Qwen/Qwen3-1.7B", Asked(stack=stack, replicas="1", network=False, yes=True))
    assert found["chosen"]["accelerator"] == "CPU" and found["chosen"]["speed"] is None
    scaling = yaml.safe_load(found["files"]["models/Qwen--Qwen3-1.7B.yaml"])["scaling_config"]
    assert (scaling["num_gpus_per_worker"], scaling["num_cpus_per_worker"]) == (0, 1)
    planned = {model.model_id: model.pool for model in make_plan(project, stack, deploying=False).models}
    assert planned["Qwen/Qwen3-1.7B"] == "cpu"


def test_a_cpu_pool_is_added_where_cpus_are_asked_for(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of 3.2 GiB, a cache of 1, processes of 2: the cheapest node of 8 vCPUs holds them."""
    asked = Asked(stack="dev", accelerator="cpu", replicas="1", length=4096, network=False, yes=True)
    chosen = added(capsys, "Qwen/Qwen3-1.7B", asked)["chosen"]
    assert (chosen["instance_type"], chosen["usd_per_hour"], chosen["cpus"]) == ("c7i.2xlarge", 0.357, 6)
    assert "- {name: cpu, accelerator: CPU, maxNodes: 1}" in (project / "stacks" / "Pulumi.dev.yaml").read_text()
    pools = {pool.name: pool.instance_types for pool in make_plan(project, "dev", deploying=False).pools}
    assert pools["cpu"] == ("c7i.2xlarge",), "the plan chooses the node that was counted with"


@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B-FP8", "zai-org/GLM-5.2"])
def test_what_cpus_cannot_hold_says_why(model: str, project: Path) -> None:
    with pytest.raises(SetupError, match=r"no node without a GPU carries .* or its weights are compressed"):
        run_add(model, Asked(accelerator="CPU", network=False))


def test_prices_are_those_of_the_stacks_region(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In eu-west-1 an L4 costs more here than an L40S, so the L40S is the cheapest."""
    stack = project / "stacks" / "Pulumi.dev.yaml"
    stack.write_text(STACK.replace("us-east-1", "eu-west-1"))
    kept = project / ".modelfleet" / "prices" / "eu-west-1.json"
    kept.parent.mkdir(parents=True)
    types = {one.name: 9.0 for card in CATALOG.accelerators for one in CATALOG.instance_types_with(card)}
    types |= {"g6.xlarge": 4.5, "g6e.xlarge": 2.25, "nat-gateway": 0.05, "m7i.xlarge": 0.2}
    kept.write_text(json.dumps({name: [usd, "2026-11-29"] for name, usd in types.items()}))
    found = added(capsys, "Qwen/Qwen3-8B", Asked(stack="dev", network=False, dry_run=True))
    chosen = found["chosen"]
    assert (chosen["accelerator"], chosen["usd_per_hour"], chosen["price_region"]) == ("L40S", 2.25, "eu-west-1")
    assert "2.25 USD/h in eu-west-1." in found["files"]["models/Qwen--Qwen3-8B.yaml"]


def test_a_price_that_the_region_does_not_have_is_marked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = project / "stacks" / "Pulumi.dev.yaml"
    stack.write_text(STACK.replace("us-east-1", "eu-west-1"))
    assert run_add("Qwen/Qwen3-8B", Asked(stack="dev", network=False, dry_run=True)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "on demand in eu-west-1 (~ in us-east-1: not known there)" in printed and "~0.80" in printed
    assert "0.80 USD/h in us-east-1; the price in eu-west-1 is not known." in printed


def test_code_of_a_checkpoint_is_added_at_its_commit_to_a_stack_that_trusts_it(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file would be refused without the commit, and `check --fix --pin` needs a file."""
    name, commit = "Alibaba-NLP/gte-Qwen2-7B-instruct", "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("modelfleet.infra.reading.models.Reader.commit", lambda *_: commit)
    asked = Asked(stack="dev", network=False, yes=True)
    stack = project / "stacks" / "Pulumi.dev.yaml"
    stack.write_text(STACK.replace("20}", "500}"))
    with pytest.raises(InputErrors) as refused:
        run_add(name, asked, as_json=True)
    assert any(f"add {name} to modelfleet:trust.foreignCode" in one.message for one in refused.value.findings)
    stack.write_text(STACK.replace("20}", "500}") + f"  modelfleet:trust: {{foreignCode: [{name}]}}\n")
    found = added(capsys, name, asked)
    (text,) = (text for file, text in found["files"].items() if file.startswith("models/"))
    assert f"  revision: {commit}   # replicas run this commit's code; read it\n" in text
