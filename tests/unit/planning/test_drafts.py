"""What drafts for a model takes on a GPU: against vLLM's own draft classes, and the rules by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.drafting import drafting as drafting_with
from modelfleet.infra.planning.drafting import drafting_of
from modelfleet.infra.planning.facts import ModelFacts, facts_from_config, with_draft
from modelfleet.infra.planning.fit import gpu_memory, memory_in, setting_of
from modelfleet.infra.planning.fit_findings import fit_findings
from modelfleet.infra.planning.memory.answer import ModelMemory
from modelfleet.infra.planning.memory.caches import Kind
from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.drafts import Draft, as_vllm_reads, draft_size, method_of
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.reading.models import Reader
from modelfleet.serving.config.errors import Severity
from modelfleet.serving.config.load import LoadedModel
from tests.unit.planning.builders import model
from tools.probe.__main__ import our_draft
from tools.probe.rows import FIXTURES, rows

CATALOG = default_catalog()
CONFIGS = {row["config"]: row["content"] for row in rows(FIXTURES / "configs.jsonl")}
#: Answers of vLLM 0.32.0's draft classes on meta tensors, without what `_maybe_share_…` frees (2026-11-29).
TRUTH = rows(FIXTURES / "draft-truth.jsonl")
LLAMA_8B, QWEN_9B = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3.5-9B"
#: An EAGLE3 head for Llama 3.1 8B: a layer of its widths, and a vocabulary of 32,000.
HEAD: dict[str, Any] = next(row["draft"] for row in TRUTH if row["name"] == "eagle3")
#: 849,635,328 bytes are vLLM's own answer for that head.
HEAD_MIB = 849635328 / 2**20


def checkpoint(content: dict[str, Any]) -> Checkpoint:
    return Checkpoint(content, CATALOG.architecture_defaults)


@pytest.mark.parametrize("truth", TRUTH, ids=lambda row: f"{row['name']}-tp{row['tp']}")
def test_a_draft_takes_what_vllm_builds_for_it(truth: dict[str, Any]) -> None:
    mine = our_draft(truth, CONFIGS)
    assert mine == {key: truth[key] for key in ("elements", "bytes", "caches", "kv_bytes_per_token")}


def test_a_multi_token_layer_lies_in_the_models_pool() -> None:
    """Qwen3.5-9B has 8 layers of attention and 24 of states: groups of 8. With a ninth, all blocks hold 9 pages."""
    target, engine = checkpoint(CONFIGS["Qwen--Qwen3.5-9B"]), EngineArguments(8192, drafts=1)
    plain, drafted = ModelMemory(target, engine), ModelMemory(target, engine, Draft("mtp"))
    assert [len(group) for group in plain.pool.groups] == [8, 8, 8, 8]
    assert sorted(len(group) for group in drafted.pool.groups) == [8, 8, 8, 9]
    assert drafted.pool.block_bytes == plain.pool.block_bytes // 8 * 9
    assert drafted.growing_bytes - plain.growing_bytes == 2 * 4 * 256 * 2


def drafting(hf_id: str, section: dict[str, Any], accelerator: str = "H100") -> LoadedModel:
    return model(hf_id, accelerator, max_total_tokens=8192, engine_kwargs={"speculative_config": section})


def facts_of(hf_id: str, draft: dict[str, Any] | None = None) -> ModelFacts:
    row = CATALOG.models[hf_id]
    assert row.config is not None
    facts = with_draft(facts_from_config(row.config, "test", CATALOG), draft, CATALOG)
    assert facts is not None
    return facts


def test_the_plan_counts_an_eagle_head() -> None:
    """A plan that fits by less than a draft head takes would buy a node on which vLLM does not start."""
    one = drafting(LLAMA_8B, {"method": "eagle3", "model": "org/head", "num_speculative_tokens": 3})
    card = CATALOG.accelerators["H100"]
    bare = facts_of(LLAMA_8B)
    without = gpu_memory(bare, setting_of(one.config, bare, card))
    facts = facts_of(LLAMA_8B, HEAD)
    counted = gpu_memory(facts, setting_of(one.config, facts, card))
    assert counted.weights_mib - without.weights_mib == pytest.approx(HEAD_MIB, abs=0.01)
    assert without.kv_bytes_per_token == 32 * 2 * 8 * 128 * 2
    assert counted.kv_bytes_per_token == 33 * 2 * 8 * 128 * 2, "the head keeps keys and values too"


def found(one: LoadedModel, facts: ModelFacts, severity: Severity) -> list[str]:
    return [finding.message for finding in fit_findings([one], {one.config.model_id: facts})
            if finding.severity is severity]  # fmt: skip


@pytest.mark.parametrize(
    ("hf_id", "section", "draft", "why"),
    [
        (LLAMA_8B, {"method": "eagle3", "model": "org/head"}, HEAD, None),
        (LLAMA_8B, {"method": "ngram", "prompt_lookup_max": 3}, None, None),
        (QWEN_9B, {"method": "mtp"}, None, None),
        (QWEN_9B, {"method": "qwen3_5_mtp"}, None, None),
        (LLAMA_8B, {"method": "eagle3", "model": "org/head"}, None, "the config.json of org/head is not known here"),
        (LLAMA_8B, {"method": "mtp"}, None, "names no multi-token layers"),
        (LLAMA_8B, {"model": "org/head-dflash"}, HEAD, "a dflash head of class LlamaForCausalLMEagle3 is not known"),
    ],
    ids=["counted", "text alone", "mtp", "mtp by its old name", "unknown head", "no layers", "unknown method"],
)  # fmt: skip
def test_only_what_cannot_be_counted_is_warned_of(
    hf_id: str, section: dict[str, Any], draft: dict[str, Any] | None, why: str | None
) -> None:
    one, facts = drafting(hf_id, {**section, "num_speculative_tokens": 2}), facts_of(hf_id, draft)
    warned = [text for text in found(one, facts, Severity.WARNING) if "drafts" in text]
    if why is None:
        assert warned == []
        assert any("speed" in text for text in found(one, facts, Severity.NOTICE)), "the estimate knows no drafts"
    else:
        assert why in warned[0]


@pytest.mark.parametrize(("pattern", "known"), [("*E", True), (["attention", "moe"], True), ("*E*E", False)])
def test_other_layers_than_those_that_were_read_are_not_guessed(pattern: str | list[str], known: bool) -> None:
    """Nemotron-3 names its multi-token layers; another pattern would be another size."""
    content = {**CONFIGS["nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8"], "mtp_hybrid_override_pattern": pattern}
    unknown = drafting_with({"method": "mtp"}, checkpoint(content), None).unknown
    assert unknown == ("" if known else "multi-token layers of the pattern '*E*E' are not known here")


def test_vllm_drafts_as_many_tokens_as_a_checkpoint_has_layers_for() -> None:
    """Without `num_speculative_tokens`; each is one more copy of every recurrent state."""
    one, facts = drafting(QWEN_9B, {"method": "mtp"}), facts_of(QWEN_9B)
    assert drafting_of(one.config, facts.checkpoint, None).tokens == 1
    setting = setting_of(one.config, facts, CATALOG.accelerators["H100"])
    states = [cache for cache in memory_in(facts, setting).layout.caches if cache.kind is Kind.STATE]
    assert {cache.copies for cache in states} == {3}, "one, one at the last block, one for the draft"


@pytest.mark.parametrize(
    ("section", "method"),
    [
        ({"model": "yuhuili/EAGLE-LLaMA3-Instruct-8B"}, "eagle"),
        ({"model": "AngelSlim/Qwen3-8B_eagle3"}, "eagle3"),
        ({"model": "org/small"}, "draft_model"),
        ({"model": "org/eagle3", "method": "eagle"}, "eagle"),
        ({"model": "ngram"}, "ngram"),
        ({"method": "deepseek_mtp"}, "mtp"),
    ],
)  # fmt: skip
def test_the_method_is_read_as_vllm_reads_it(section: dict[str, Any], method: str) -> None:
    assert method_of(section) == method


def test_a_head_of_the_speculators_library_is_the_same_head() -> None:
    """vLLM unpacks it; the checkpoints that its recipes name are of this form."""
    layer = {key: value for key, value in HEAD.items() if key not in ("architectures", "draft_vocab_size")}
    packed = {"speculators_model_type": "eagle3", "transformer_layer_config": layer, "draft_vocab_size": 32000}
    target, engine = checkpoint(CONFIGS["meta-llama--Meta-Llama-3.1-8B"]), EngineArguments(4096)
    sizes = [
        draft_size(Draft("eagle3", checkpoint(dict(as_vllm_reads(one)))), target, engine) for one in (HEAD, packed)
    ]
    assert sizes[0] == sizes[1]


def test_the_reader_finds_a_drafts_config_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "config.json").write_text(json.dumps(HEAD), encoding="utf-8")
    section = {"method": "eagle3", "model": str(tmp_path / "head"), "num_speculative_tokens": 3}
    facts = Reader(tmp_path).read([drafting(LLAMA_8B, section)])[LLAMA_8B]
    assert facts is not None
    assert facts.draft is not None
    assert facts.draft.architecture == "LlamaForCausalLMEagle3"


def test_the_reader_finds_a_draft_model_in_the_catalog(tmp_path: Path) -> None:
    section = {"method": "draft_model", "model": "meta-llama/Llama-3.2-1B-Instruct", "num_speculative_tokens": 3}
    facts = Reader(tmp_path).read([drafting(LLAMA_8B, section)])[LLAMA_8B]
    assert facts is not None
    assert facts.draft is not None
    assert facts.draft.hidden == 2048


def test_a_head_of_the_hub_is_asked_for_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` and `up` use no network: they count a head by what `plan` has read."""
    asked: list[str] = []

    def hub(_: Reader, source: str, revision: str = "main") -> tuple[dict[str, Any], list[dict[str, Any]], str] | None:
        asked.append(f"{source}@{revision}")
        return (HEAD, [], source) if source == "org/head" else None

    monkeypatch.setattr(Reader, "hub", hub)
    one = drafting(LLAMA_8B, {"method": "eagle3", "model": "org/head", "revision": "v2", "num_speculative_tokens": 3})
    for network in (True, False):
        facts = Reader(tmp_path, network=network).read([one])[LLAMA_8B]
        assert facts is not None
        assert facts.draft is not None
    assert [name for name in asked if "head" in name] == ["org/head@v2"]


def test_multi_token_layers_in_a_checkpoint_are_no_tower_for_images() -> None:
    """The headers of Qwen3.5-9B hold them too; vLLM loads them only to draft with."""
    alone = facts_of(QWEN_9B)
    tower = 900_000_000
    held = round(alone.counted_bytes) + 486_581_248 + tower
    assert dataclasses.replace(alone, header_bytes=held).encoder_bytes == pytest.approx(tower, abs=2)
