"""Whether models fit: numbers worked out by hand, and the refusal messages."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.cards import Card
from modelfleet.infra.planning.facts import ModelFacts, catalog_facts, facts_from_config
from modelfleet.infra.planning.fit import gpu_memory, memory_in, memory_of, setting_of, shortened, variant, weight_bytes
from modelfleet.infra.planning.fit_findings import fit_findings
from modelfleet.infra.planning.replica_speed import why_no_speed
from modelfleet.infra.planning.speed import Load
from modelfleet.infra.planning.ways_out import ways_out
from modelfleet.serving.config.errors import Severity
from modelfleet.serving.config.load import LoadedModel
from tests.unit.planning.builders import model

CATALOG = default_catalog()
LLAMA_7B = "meta-llama/Llama-2-7b-chat-hf"
LLAMA_13B = "meta-llama/Llama-2-13b-chat-hf"
LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"


def facts_of(one: LoadedModel) -> ModelFacts:
    facts = catalog_facts([one.config], CATALOG)[one.config.model_id]
    assert facts is not None
    return facts


def sentences(one: LoadedModel, severity: Severity = Severity.ERROR) -> list[str]:
    found = fit_findings([one], catalog_facts([one.config], CATALOG))
    return [f"{f.line}: {f.path}: {f.message}" for f in found if f.severity is severity]


def test_llama_2_7b_on_an_l4() -> None:
    """6 738 415 616 parameters × 2 bytes = 12 852.5 MiB; 2 × 32 layers × 32 heads × 128 × 2 bytes per token."""
    memory = memory_of(model(LLAMA_7B, max_total_tokens=4096).config, facts_of(model(LLAMA_7B)))
    assert memory is not None
    assert memory.weights_mib == pytest.approx(12852.5, abs=0.1)
    assert memory.kv_bytes_per_token == 524288
    assert memory.full_length_sequences == 3
    assert memory.free_mib == pytest.approx(22476 * 0.08)
    assert memory.weights_mib + memory.kv_cache_mib + memory.reserve_mib + memory.free_mib == pytest.approx(22476)


@pytest.mark.parametrize(
    ("hf_id", "accelerator", "workers", "kv_bytes"),
    [
        ("meta-llama/Llama-2-70b-chat-hf", "A100-40G", 8, 2 * 80 * 1 * 128 * 2),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "A100-80G", 2, 2 * 32 * 4 * 128 * 2),
        ("tiiuae/falcon-7b-instruct", "L4", 1, 2 * 32 * 1 * 64 * 2),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", "A100-40G", 2, 27 * (512 + 64) * 2),
        ("google/gemma-2-9b-it", "A100-40G", 2, 2 * 42 * 4 * 256 * 2),
    ],
    ids=["grouped, one head per worker", "experts", "one key head", "latent, whole on every worker", "windows"],
)
def test_kv_bytes_per_token_and_gpu(hf_id: str, accelerator: str, workers: int, kv_bytes: int) -> None:
    one = model(hf_id, accelerator, workers=workers)
    memory = memory_of(one.config, facts_of(one))
    assert memory is not None
    assert memory.kv_bytes_per_token == kv_bytes


def test_a_sliding_window_keeps_a_window_and_not_the_whole_length() -> None:
    """Mistral 7B v0.1 keeps 4096 tokens (and two batches in flight), v0.2 all 32768, so v0.1 fits four times as many."""
    old = model("mistralai/Mistral-7B-Instruct-v0.1", "A100-40G", max_total_tokens=32768)
    new = model("mistralai/Mistral-7B-Instruct-v0.2", "A100-40G", max_total_tokens=32768)
    first, second = memory_of(old.config, facts_of(old)), memory_of(new.config, facts_of(new))
    assert first is not None and second is not None
    assert first.full_length_sequences > 4 * second.full_length_sequences


def test_awq_takes_a_quarter_but_embeddings_stay_unquantized() -> None:
    """6.48 of 6.74 billion parameters in 4.156 bits, the rest in 16."""
    plain, awq = model(LLAMA_7B), model("TheBloke/Llama-2-7B-Chat-AWQ")
    one, four = memory_of(plain.config, facts_of(plain)), memory_of(awq.config, facts_of(awq))
    assert one is not None and four is not None
    assert four.weights_mib == pytest.approx((6476005376 * 4.156 / 8 + 262410240 * 2) / 1024**2, rel=0.001)


def test_a_model_that_is_too_large_is_refused_with_the_three_cheapest_fixes() -> None:
    (sentence,) = sentences(model(LLAMA_13B, max_total_tokens=4096))
    assert sentence == (
        "11: engine_config.max_total_tokens: does not fit: of 20.2 GiB usable on a L4, weights take 24.2 GiB and the "
        "reserve 1.4 GiB; one sequence of 4096 tokens needs 3.1 GiB of KV cache. Fixes: quantization: fp8: "
        "2 full-length sequences (0.80 USD/h per replica); an AWQ or GPTQ checkpoint (4-bit): 3 full-length sequences "
        "(0.80 USD/h per replica); accelerator_type:L40S with num_workers: 1: 4 full-length sequences (1.86 USD/h per "
        "replica)"
    )


def test_a_length_that_is_too_long_is_refused_with_one_that_fits() -> None:
    (sentence,) = sentences(model(LLAMA_8B, max_total_tokens=131072))
    assert "one sequence of 131072 tokens needs 16.0 GiB of KV cache" in sentence
    assert "Fixes: max_total_tokens: 26880: 1 full-length sequence (0.80 USD/h per replica)" in sentence


def test_the_shortened_length_fits_and_the_next_does_not() -> None:
    one = model(LLAMA_8B, max_total_tokens=131072)
    setting = setting_of(one.config, facts_of(one), CATALOG.accelerators["L4"])
    short = shortened(facts_of(one), setting)
    assert short is not None
    longer = setting.__class__(**{**short.__dict__, "length": short.length + 256})
    assert gpu_memory(facts_of(one), short).full_length_sequences == 1
    assert gpu_memory(facts_of(one), longer).full_length_sequences == 0


def kwargs(**engine: Any) -> dict[str, Any]:
    return {"engine_kwargs": engine}


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (
            model(LLAMA_7B, "T4", workers=2, **kwargs(dtype="bfloat16")),
            "engine_config.engine_kwargs.dtype: found 'bfloat16', which a T4 does not have; write `dtype: half`",
        ),
        (
            model("google/gemma-2-9b-it", "T4", workers=4),
            "gemma2 does not run in float16, and a T4 has no bfloat16; choose one of L4, A10G, L40S, A100-40G, A100-80G",
        ),
        (
            model("openai/gpt-oss-20b", "T4", workers=2),
            "engine_config.engine_kwargs.quantization: mxfp4 needs compute capability 8.0, but a T4 has 7.5; choose one of "
            "L4, A10G, L40S, A100-40G, A100-80G",
        ),
        (
            model(LLAMA_7B, **kwargs(quantization="awq")),
            f"found 'awq', but {LLAMA_7B} is not quantized; name a checkpoint that is",
        ),
        (
            model("Qwen/Qwen2.5-7B-Instruct", workers=8),
            "scaling_config.num_workers: found 8, but 28 attention heads do not divide evenly; allowed are 1, 2, 4",
        ),
        (
            model(LLAMA_7B, max_total_tokens=8192),
            "engine_config.max_total_tokens: found 8192; the checkpoint has 4096 positions; allowed is up to 4096",
        ),
    ],
    ids=["bfloat16 on T4", "gemma on T4", "mxfp4 on T4", "awq of a plain checkpoint", "heads", "positions"],
)
def test_a_model_that_cannot_run_is_refused(one: LoadedModel, sentence: str) -> None:
    assert any(sentence in found for found in sentences(one))


def test_the_plan_counts_whole_experts_where_the_file_asks_for_them() -> None:
    split = model("openai/gpt-oss-120b", "H100", workers=8)
    whole = model("openai/gpt-oss-120b", "H100", workers=8, **kwargs(enable_expert_parallel=True))
    cards = CATALOG.accelerators["H100"]
    settings = [setting_of(one.config, facts_of(one), cards) for one in (split, whole)]
    held = [round(weight_bytes(facts_of(split), setting) / 2**30, 2) for setting in settings]
    assert held == [8.11, 7.62], "whole experts need less padding"


def test_workers_that_split_an_expert_are_refused_unless_each_has_whole_ones() -> None:
    sizes = {"num_experts": 6, "moe_intermediate_size": 100, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": 64, "num_hidden_layers": 2,
        "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 4096, **sizes,
    }  # fmt: skip

    def refused(**engine: Any) -> bool:
        one = model("test/odd", "H100", workers=8, max_total_tokens=1024, **kwargs(**engine))
        found = fit_findings([one], {"test/odd": facts_from_config(config, "test", CATALOG)})
        return any("does not divide evenly" in finding.message for finding in found)

    assert refused() and not refused(enable_expert_parallel=True)


DEEPSEEK = "deepseek-ai/DeepSeek-V3"


def test_data_parallel_ranks_share_experts_and_have_attention_and_a_cache_each() -> None:
    """Latent attention has one head of keys, which tensor parallel copies to each GPU: ranks hold more of them."""
    whole = {"enable_expert_parallel": True}
    tensor = model(DEEPSEEK, "H200", workers=8, max_total_tokens=8192, **kwargs(**whole))
    data = model(DEEPSEEK, "H200", workers=8, max_total_tokens=8192, **kwargs(**whole, data_parallel_size=8))
    facts, card = facts_of(tensor), CATALOG.accelerators["H200"]
    split, ranked = (setting_of(one.config, facts, card) for one in (tensor, data))
    assert (split.workers, split.gpus, ranked.workers, ranked.gpus) == (8, 8, 1, 8)
    here, there = gpu_memory(facts, split), gpu_memory(facts, ranked)
    assert here.kv_bytes_per_token == there.kv_bytes_per_token, "it is whole on each GPU either way"
    assert there.full_length_sequences > 2 * here.full_length_sequences
    assert there.full_length_sequences % 8 == 0, "each rank holds as many"
    batch, hidden, chosen, bytes_each = ranked.batched_tokens, 7168, 8, 2
    others = 7 * batch * hidden * 2 * (1 + chosen) * bytes_each  # hidden states there and back, and two workspaces
    assert there.reserve_mib - here.reserve_mib > others / 2**20
    assert "data_ranks=8" in variant(facts, ranked)
    assert why_no_speed(facts, ranked, Load(100, 100)) == "data parallel ranks are not in the estimate"
    assert why_no_speed(facts, split, Load(100, 100)) == ""


@pytest.mark.parametrize(
    ("config", "engine", "fault"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, {}, "the model has no experts"),
        ({"num_experts": 6, "moe_intermediate_size": 100}, {}, "an expert's width of 100 does not divide evenly"),
        ({"num_experts": 6, "moe_intermediate_size": 100}, {"enable_expert_parallel": True}, ""),
        ({"num_experts": 6, "moe_intermediate_size": 96}, {}, ""),
    ],
    ids=["dense", "width", "whole experts", "divides"],
)
def test_ranks_without_experts_to_share_are_refused(config: dict[str, Any], engine: dict[str, Any], fault: str) -> None:
    shape = {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": 64, "num_hidden_layers": 2,
        "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 4096, "num_attention_heads": 2,
        "num_key_value_heads": 2, **config,
    }  # fmt: skip
    one = model("test/odd", "H100", workers=8, max_total_tokens=1024, **kwargs(data_parallel_size=8, **engine))
    found = [
        finding
        for finding in fit_findings([one], {"test/odd": facts_from_config(shape, "test", CATALOG)})
        if finding.severity is Severity.ERROR
    ]
    assert [finding.path for finding in found] == ["engine_config.engine_kwargs.data_parallel_size"] * bool(fault)
    assert not fault or fault in found[0].message


def test_a_way_out_of_too_few_ranks_names_both_keys() -> None:
    one = model(DEEPSEEK, "H200", workers=4, **kwargs(enable_expert_parallel=True, data_parallel_size=4))
    (said,) = sentences(one)
    assert "num_workers and data_parallel_size: 8" in said


def test_a_way_out_of_ranks_is_the_same_gpus_without_them() -> None:
    ranks = kwargs(enable_expert_parallel=True, data_parallel_size=4)
    one = model("Qwen/Qwen3-30B-A3B", "L4", workers=4, max_total_tokens=40960, **ranks)
    (said,) = sentences(one)
    assert "Fixes: " in said and "no data_parallel_size: 3 full-length sequences" in said


def test_the_other_card_of_this_machine_is_named_where_each_has_whole_experts() -> None:
    sizes = {"num_experts": 64, "moe_intermediate_size": 1001, "num_attention_heads": 64, "num_key_value_heads": 8}
    config = {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": 8192,
        "num_hidden_layers": 32, "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 4096, **sizes,
    }  # fmt: skip
    facts = facts_from_config(config, "test", CATALOG)
    here = [Card(f"GPU-{number}", "NVIDIA H100 80GB HBM3", 81559, (9, 0)) for number in range(2)]

    def ways(**engine: Any) -> list[str]:
        one = model("test/odd", "H100", max_total_tokens=1024, **kwargs(**engine))
        setting = setting_of(one.config, facts, CATALOG.accelerators["H100"])
        return [way.text.partition(":")[0] for way in ways_out(facts, setting, CATALOG, here)]

    assert "num_workers" in ways(enable_expert_parallel=True) and "num_workers" not in ways()


def test_a_bfloat16_checkpoint_on_a_t4_is_a_warning() -> None:
    """vLLM now falls back to half (it refused in vllm#1157)."""
    assert "write `dtype: half`" in sentences(model("Qwen/Qwen2.5-3B-Instruct", "T4"), Severity.WARNING)[0]


def test_a_longer_length_can_be_forced() -> None:
    forced = model(
        LLAMA_7B, "A100-40G", max_total_tokens=8192, runtime_env={"env_vars": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}}
    )
    assert sentences(forced) == []


def test_unknown_models_are_reported_and_not_guessed() -> None:
    unknown = model("org/unheard-of")
    assert memory_of(unknown.config, None) is None
    (notice,) = sentences(unknown, Severity.NOTICE)
    assert "nothing is known about org/unheard-of, so its memory is not checked" in notice


def test_quantization_config_of_a_checkpoint_is_read() -> None:
    section = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}}}
    row = CATALOG.models[LLAMA_7B]
    facts = facts_from_config({**(row.config or {}), "quantization_config": section}, "test", CATALOG)
    assert facts.quantization == "compressed-tensors"
    assert facts.counted_bytes < 0.52 * facts_of(model(LLAMA_7B)).counted_bytes, "8 bits, scales, plain embeddings"


def test_headers_correct_a_config_that_lacks_its_quantization_section() -> None:
    """NVIDIA's repositories keep it in hf_quant_config.json; the files are a quarter of what the config says."""
    row = CATALOG.models[LLAMA_7B]
    header = {"w": {"dtype": "U8", "shape": [3_500_000_000]}}
    facts = facts_from_config(row.config or {}, "test", CATALOG, [header])
    memory = memory_of(model(LLAMA_7B).config, facts)
    assert memory is not None
    assert memory.weights_mib == pytest.approx(3_500_000_000 / 1024**2, rel=0.001)


@pytest.mark.parametrize(
    ("hf_id", "accelerator", "fault"),
    [
        ("openai/gpt-oss-20b", "T4", "MXFP4 needs compute capability 8.0"),
        ("deepseek-ai/DeepSeek-V3.2", "A100-80G", "sparse latent attention"),
        ("nvidia/MiniMax-M2.7-NVFP4", "A100-80G", "FP8 KV cache (fp8_e4m3) needs compute capability 8.9"),
    ],
)
def test_a_card_without_the_kernels_is_refused_before_it_is_bought(hf_id: str, accelerator: str, fault: str) -> None:
    found = sentences(model(hf_id, accelerator, workers=8))
    assert any(fault in one or "mxfp4 needs compute capability 8.0" in one for one in found), found


@pytest.mark.parametrize(
    ("model_id", "tokens", "weights_gib"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 442_560, 15.0),
        ("Qwen/Qwen3-8B", 390_720, 15.27),
        ("openai/gpt-oss-20b", 1_214_749, 13.03),
    ],
)
def test_an_h100_held_what_the_plan_says(model_id: str, tokens: int, weights_gib: float) -> None:
    """NVIDIA H100 80GB HBM3, vLLM 0.32.0, 2026-11-27: utilization 0.9, 8192 tokens, 256 sequences."""
    engine = {"gpu_memory_utilization": 0.9, "max_num_seqs": 256, "max_num_batched_tokens": 8192}
    one = model(model_id, "H100", max_total_tokens=8192, **kwargs(**engine))
    setting = setting_of(one.config, facts_of(one), CATALOG.accelerators["H100"])
    memory = gpu_memory(facts_of(one), setting)
    held = memory_in(facts_of(one), setting)
    assert memory.weights_mib / 1024 == pytest.approx(weights_gib, abs=0.3)
    assert held.pool.tokens(int(memory.kv_cache_mib * 1024**2), held.demand) == pytest.approx(tokens, rel=0.02)
