"""The length and the sampling of a model whose file does not say them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.facts import ModelFacts, catalog_facts
from modelfleet.infra.planning.fit import fits, setting_of
from modelfleet.infra.planning.plan import ModelPlan
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.engine_args import engine_arguments
from tests.unit.planning.builders import model, planned, pool, stack

CATALOG = default_catalog()
QWEN, LLAMA, SMALL = "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"
TEMPLATES = {"system": "{instruction}", "user": "{instruction}", "assistant": "{instruction}", "trailing_assistant": ""}
RAYLLM: dict[str, Any] = {"generation": {"prompt_format": TEMPLATES}}


def facts_of(hf_id: str) -> ModelFacts:
    facts = catalog_facts([model(hf_id).config], CATALOG)[hf_id]
    assert facts is not None
    return facts


def one(hf_id: str, accelerator: str = "H100", **engine: Any) -> ModelPlan:
    target: dict[str, Any] = {"target": "local", "region": None} if accelerator == "CPU" else {}
    made = stack(pool("one", accelerator), **target)
    config = model(hf_id, accelerator, **engine)
    return planned([config], made, facts=catalog_facts([config.config], CATALOG)).models[0]


def asked(plan: ModelPlan) -> Any:
    """What the engine is asked for."""
    return engine_arguments(ModelConfig.model_validate(plan.application.args["model"]), "/weights")["max_model_len"]


def test_a_file_without_a_length_has_the_checkpoints_where_it_fits() -> None:
    plan = one(QWEN)
    assert (plan.length, plan.length_source, plan.sampling, asked(plan)) == (40960, "checkpoint", "checkpoint", 40960)


def test_it_has_the_longest_that_fits_where_the_checkpoints_does_not() -> None:
    """131,072 tokens of Llama 3.1 take 16 GiB, and beside its weights an A10G has 2.9 GiB."""
    plan, facts = one(LLAMA, "A10G"), facts_of(LLAMA)
    assert plan.length is not None and 0 < plan.length < 131072 and plan.length % 256 == 0
    assert (plan.length_source, asked(plan)) == ("memory", plan.length)
    setting = setting_of(model(LLAMA, "A10G").config, facts, CATALOG.accelerators["A10G"])
    assert fits(facts, dataclasses.replace(setting, length=plan.length))
    assert not fits(facts, dataclasses.replace(setting, length=plan.length + 256))


def test_a_file_that_speaks_rayllm_keeps_its_2048_tokens_and_temperature_1() -> None:
    plan = one(QWEN, **RAYLLM)
    assert (plan.length, plan.length_source, plan.sampling, asked(plan)) == (2048, "RayLLM", "vLLM", 2048)


def test_the_files_own_words_count() -> None:
    plan = one(QWEN, max_total_tokens=4096, generation={"generate_kwargs": {"temperature": 0.1}})
    assert (plan.length, plan.length_source, plan.sampling, asked(plan)) == (4096, "file", "file", 4096)


def test_of_an_unknown_model_the_engine_finds_the_length() -> None:
    plan = one("nobody/knows-it")
    assert (plan.length, plan.length_source, asked(plan)) == (None, "engine", -1)


def test_on_cpus_the_cache_of_a_replica_is_the_limit() -> None:
    """SmolLM2 at its 8,192 tokens takes 189 MiB; Llama 3.1 takes 128 KiB a token of the 1 GiB."""
    assert (one(SMALL, "CPU").length, one(SMALL, "CPU").length_source) == (8192, "checkpoint")
    assert (one(LLAMA, "CPU").length, one(LLAMA, "CPU").length_source) == (8192, "memory")


def test_a_model_that_writes_nothing_is_left_to_the_engine_which_reads_its_tokenizers_limit_too() -> None:
    plan = one("BAAI/bge-m3", model_type="embedding")
    assert (plan.length_source, asked(plan)) == ("checkpoint", -1)


def test_with_long_rope_the_default_is_vllms_the_length_before_its_scaling() -> None:
    facts = facts_of(QWEN)
    rope = {"rope_type": "longrope", "factor": 32.0}
    raw = {**facts.checkpoint.raw, "rope_parameters": rope, "original_max_position_embeddings": 4096}
    long = dataclasses.replace(facts.checkpoint, raw=raw)
    assert (long.default_length, long.longest) == (4096, 40960)


@pytest.mark.parametrize(("length", "charged"), [(None, 40960), (512, 512)])
def test_the_gateway_charges_answers_with_the_planned_length(length: int | None, charged: int) -> None:
    config = model(QWEN, "H100", max_total_tokens=length)
    plan = planned([config], stack(pool("one", "H100")), facts=catalog_facts([config.config], CATALOG))
    assert plan.gateway.routes[0].answer_tokens == charged
