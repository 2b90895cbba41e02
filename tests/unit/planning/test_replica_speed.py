"""From a model's config.json to the speed of its replica: the adapter, by hand and beside published figures."""

from __future__ import annotations

import dataclasses
import math

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.catalog.speed import fitted_factors, measurements
from modelfleet.infra.planning.facts import ModelFacts, catalog_facts, facts_from_config
from modelfleet.infra.planning.fit import DEFAULT_UTILIZATION, Setting
from modelfleet.infra.planning.memory.answer import ModelMemory
from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.memory.stored import stored_as
from modelfleet.infra.planning.replica_speed import replica_speed
from modelfleet.infra.planning.speed import Load
from modelfleet.infra.planning.speed.shape import in_precision, shape_of, weight_format
from tests.unit.planning.builders import model, planned, pool, stack
from tools.speed.cases import METRICS, Case, case_of, checkpoints, predicted

CATALOG = default_catalog()


def facts_of(model: str) -> ModelFacts:
    row = CATALOG.models[model]
    assert row.config is not None
    return facts_from_config(row.config, "test", CATALOG)


def memory(model: str, ranks: int = 1) -> ModelMemory:
    return ModelMemory(facts_of(model).checkpoint, EngineArguments(8192, ranks=ranks))


def setting(accelerator: str, *, workers: int = 1, length: int = 8192, kv_dtype: str = "auto") -> Setting:
    card = CATALOG.accelerators[accelerator]
    return Setting(
        card,
        workers,
        length,
        DEFAULT_UTILIZATION,
        card.batched_tokens,
        card.sequences,
        2.0,
        kv_dtype,
        None,
        eager=False,
    )


#: Layers, hidden size, active 10^9, dense and expert GB, attention width, bytes a token and a sequence, experts, each.
BY_HAND = {
    # 8.03 B, of which 0.525 B are only looked up.
    "meta-llama/Llama-3.1-8B": (32, 4096, 7.505, 15.01, 0.0, 32 * 4096, 32 * 2 * 8 * 128 * 2, 0, 0, 0),
    # Every second layer has a window of 128; experts are 32 x 3 x 2880 x 2880 in 4.25 bits, 2880 padded to 64s.
    "openai/gpt-oss-20b": (24, 2880, 3.6, 2.44, 10.15, 12 * 4096, 12 * 2 * 8 * 64 * 2, 12 * 128 * 2 * 8 * 64 * 2, 32, 4),
    # One latent vector of 576 values a token and layer; 128 heads of 192.
    "deepseek-ai/DeepSeek-R1": (61, 7168, 37.0, 17.1, 653.9, 61 * 128 * 192, 61 * 576 * 2, 0, 256, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_the_shape_of_a_model_is_its_makers_figures(name: str) -> None:
    layers, hidden, active, dense, expert, width, growing, fixed, experts, each = BY_HAND[name]
    found = shape_of(memory(name))
    assert (found.layers, found.hidden_size, found.experts, found.experts_per_token) == (layers, hidden, experts, each)
    assert (found.attention_width, found.kv_bytes_per_token) == (width, growing)
    assert found.kv_bytes_per_sequence == fixed
    assert found.active_parameters / 1e9 == pytest.approx(active, rel=0.03)
    assert found.dense_bytes / 1e9 == pytest.approx(dense, rel=0.03)
    assert found.expert_bytes / 1e9 == pytest.approx(expert, rel=0.03)


def test_a_tied_table_is_the_head_and_is_read_and_another_is_not() -> None:
    tied = memory("Qwen/Qwen2.5-0.5B-Instruct")
    assert shape_of(tied).dense_bytes == pytest.approx(tied.weights.bytes)
    untied = memory("meta-llama/Llama-3.1-8B")
    assert untied.weights.bytes - shape_of(untied).dense_bytes == 128256 * 4096 * 2


def test_a_shape_is_over_all_gpus_with_what_each_of_them_copies() -> None:
    one, eight = (
        shape_of(memory("meta-llama/Llama-3.3-70B-Instruct")),
        shape_of(memory("meta-llama/Llama-3.3-70B-Instruct", 8)),
    )
    assert eight.kv_bytes_per_token == one.kv_bytes_per_token
    assert eight.dense_bytes == pytest.approx(one.dense_bytes, rel=0.001)
    latent = [shape_of(memory("deepseek-ai/DeepSeek-R1", ranks)).kv_bytes_per_token for ranks in (1, 8)]
    assert latent[1] == 8 * latent[0], "a latent vector is whole on each GPU"


def test_a_window_above_the_requests_is_no_window() -> None:
    """Mistral 7B v0.1 has 4,096 tokens in each of 32 layers, of 8 heads of 128: 128 KiB a token."""
    windowed = memory("mistralai/Mistral-7B-Instruct-v0.1")
    short, long = shape_of(windowed, 4096), shape_of(windowed, 4097)
    assert (short.kv_bytes_per_token, short.kv_bytes_per_sequence) == (131072, 0)
    assert (long.kv_bytes_per_token, long.kv_bytes_per_sequence) == (0, 4096 * 131072)
    assert (short.attention_width, long.attention_width) == (32 * 4096, 0)


def test_states_and_windows_are_read_once_a_sequence() -> None:
    hybrid = memory("Qwen/Qwen3.5-9B")
    assert shape_of(hybrid).kv_bytes_per_sequence == hybrid.state_bytes > 0


@pytest.mark.parametrize(
    ("name", "form", "share"),
    [("bf16", "16bit", 1.0), ("fp8", "fp8", 0.5), ("int8-w8a8", "int8", 0.5), ("awq", "packed", 0.26),
     ("gptq-int8", "packed", 0.51), ("nvfp4", "nvfp4", 0.28)],
)  # fmt: skip
def test_a_precision_has_its_format_and_its_bytes(name: str, form: str, share: float) -> None:
    plain = memory("meta-llama/Llama-3.3-70B-Instruct")
    stored = ModelMemory(stored_as(plain.checkpoint, name), plain.engine)
    assert weight_format(stored.checkpoint) == form
    assert shape_of(stored).dense_bytes / shape_of(plain).dense_bytes == pytest.approx(share, abs=0.02)


def test_a_checkpoint_that_has_the_precision_already_keeps_its_own_section() -> None:
    own = facts_of("deepseek-ai/DeepSeek-R1").checkpoint
    assert in_precision(own, "fp8") is own
    assert in_precision(own, "awq") != own
    assert not stored_as(own, "bf16").quantization
    nested = Checkpoint({"text_config": {"hidden_size": 1, "quantization_config": {"quant_method": "awq"}}})
    assert not stored_as(nested, "bf16").quantization


def same_case(case: Case) -> tuple[ModelFacts, Setting]:
    row = case.row
    facts = ModelFacts(in_precision(checkpoints()[row.model], row.precision), "test")
    length = max(8192, math.ceil(row.input_tokens + row.output_tokens))
    return facts, setting(
        row.accelerator, length=length, workers=row.gpus, kv_dtype="fp8" if row.kv_dtype == "fp8" else "bfloat16"
    )


def test_the_adapter_brings_no_error_of_its_own() -> None:
    """Each loaded vLLM row, as `models show` asks it, beside what `tools.speed` predicts: 4 % apart at most,
    where an A100 pads MXFP4 wider than the H100 that `tools.speed` counts for."""
    apart = []
    for row in measurements():
        if row.engine != "vllm" or row.load != "clients" or row.accelerator not in CATALOG.accelerators:
            continue
        case = case_of(row, fitted_factors())
        if case is None or row.requests is None:
            continue
        facts, asked = same_case(case)
        room = row.kv_gib * 2**30 if row.kv_gib else None
        server = case.server
        asked = dataclasses.replace(
            asked,
            sequences=server.max_num_seqs,
            batched_tokens=server.max_num_batched_tokens,
            utilization=row.utilization or 0.9,
        )
        load = Load(row.input_tokens, row.output_tokens, row.requests)
        found, there = replica_speed(facts, asked, load, room=room), predicted(case)
        if found is None or found.saturated or "ttft" not in there:
            continue
        ours = {"ttft": found.ttft_ms, "tpot": found.tpot_ms, "throughput": found.output_tokens_per_second}
        scale = {"ttft": 1e3, "tpot": 1e3, "throughput": 1.0}
        for metric in METRICS:
            value = ours[metric]
            assert value is not None
            apart.append((abs(value.expected / (there[metric] * scale[metric]) - 1), row.id, metric))
    assert len(apart) > 60
    assert max(apart)[0] < 0.05, max(apart)


def test_a_card_without_room_for_one_request_has_no_speed() -> None:
    facts = facts_of("meta-llama/Llama-3.3-70B-Instruct")
    assert replica_speed(facts, setting("L4"), Load(512, 256)) is None
    assert replica_speed(facts_of("BAAI/bge-large-en-v1.5"), setting("L4"), Load(512, 1)) is None, "it writes no tokens"


def test_capacity_is_that_of_the_replica_and_of_the_loads_own_lengths() -> None:
    """10 GiB on each of two GPUs hold 20 GiB / 128 KiB = 163,840 tokens: 213 requests of 768."""
    facts, there = facts_of("meta-llama/Llama-3.1-8B"), setting("L40S", workers=2)
    for clients, full in ((212, False), (214, True)):
        found = replica_speed(facts, there, Load(512, 256, clients), room=10 * 2**30)
        assert found is not None and found.saturated is full


def test_a_running_request_holds_its_window_and_not_two_batches_in_flight() -> None:
    """768 tokens are 48 blocks of 12 full layers and 9 of 12 windows of 128; a block is 384 KiB, so 2 GiB hold 95."""
    facts, there = facts_of("openai/gpt-oss-20b"), setting("L40S")
    for clients, full in ((95, False), (96, True)):
        found = replica_speed(facts, there, Load(512, 256, clients), room=2 * 2**30)
        assert found is not None and found.saturated is full, clients


@pytest.mark.parametrize(("types", "usd"), [("g6.xlarge", 0.8048), ("g6.12xlarge", 4.6016 / 4)])
def test_a_replica_costs_its_share_of_the_node(types: str, usd: float) -> None:
    """A g6.12xlarge has four L4."""
    one = model("Qwen/Qwen3-8B", "L4", max_total_tokens=4096)
    plan = planned([one], stack(pool(instanceTypes=[types])), facts=catalog_facts([one.config], CATALOG))
    speed = plan.models[0].speed
    assert speed is not None and speed.usd_per_million_tokens is not None
    per_hour = speed.usd_per_million_tokens * speed.output_tokens_per_second.expected * 3600 / 1e6
    assert per_hour == pytest.approx(usd)
