"""Parameter counts against transformers' own models, built on the meta device, and against published counts."""

from __future__ import annotations

from typing import Any

import pytest

from infra.catalog import default_catalog
from infra.planning.facts import facts_from_config

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}
GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 320, "n_positions": 128}
EXPERTS: dict[str, Any] = {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {
    **SMALL,
    "num_key_value_heads": 8,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mistral": SMALL,
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 16},
    "gemma": {**SMALL, "head_dim": 16},
    "gemma2": {**SMALL, "head_dim": 16},
    "gemma3_text": {**SMALL, "head_dim": 16},
    "phi3": {**SMALL, "pad_token_id": 0},
    "phi": {**SMALL, "num_key_value_heads": 8},
    "olmo2": SMALL,
    "granite": SMALL,
    "cohere": SMALL,
    "falcon": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 320},
    "gptj": {**GPT, "rotary_dim": 8, "tie_word_embeddings": False},
    "gpt_neox": {**SMALL, "num_key_value_heads": 8},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "opt": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 96, "vocab_size": 320},
    "bloom": {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 320},
    "starcoder2": SMALL,
    "mixtral": {**SMALL, "num_local_experts": 4},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {**EXPERTS, "head_dim": 16},
    "deepseek_v2": {**LATENT, "q_lora_rank": None, "n_shared_experts": 2},
    "deepseek_v3": {**LATENT, "q_lora_rank": 24, "n_shared_experts": 1, "n_group": 2, "topk_group": 1},
    "gpt_oss": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CONFIGS)
def test_parameters_are_those_of_transformers_model(architecture: str) -> None:
    """On the meta device no weight is made; the count is of the real modules."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(architecture, **CONFIGS[architecture])
    with torch.device("meta"):
        real = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    facts = facts_from_config(config.to_dict(), "test")
    assert facts is not None
    assert facts.parameters == real


@pytest.mark.slow
@pytest.mark.parametrize(
    "hf_id",
    [
        "meta-llama/Llama-2-7b-chat-hf",
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen3-30B-A3B",
        "google/gemma-2-9b-it",
        "microsoft/Phi-3-mini-4k-instruct",
        "tiiuae/falcon-7b-instruct",
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        "bigcode/starcoder2-3b",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ],
)
def test_real_configs_give_transformers_count_too(hf_id: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    row = default_catalog().models[hf_id]
    values = {key: value for key, value in row.config.items() if key not in ("model_type", "dtype")}
    if row.config["model_type"] == "falcon":
        values.pop("head_dim")
    values |= {"q_lora_rank": None} if row.config["model_type"] == "deepseek_v2" else {}
    config = AutoConfig.for_model(row.config["model_type"], **values)
    with torch.device("meta"):
        real = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert row.parameters == real


@pytest.mark.parametrize("hf_id", sorted(default_catalog().models))
def test_the_published_count_is_that_of_the_shape(hf_id: str) -> None:
    """The count is the Hub's, the formula takes the dimensions: a wrong one of either would not agree."""
    row = default_catalog().models[hf_id]
    facts = facts_from_config(row.config, row.source)
    assert facts is not None
    assert facts.parameters == row.parameters


def test_an_unknown_architecture_is_unknown() -> None:
    assert facts_from_config({**SMALL, "model_type": "something_new"}, "test") is None


def test_a_vision_model_without_headers_is_unknown() -> None:
    """Its `config.json` describes two models; the language model's count alone would be too small."""
    config = {"model_type": "gemma3", "text_config": {**SMALL, "model_type": "gemma3_text"}, "vision_config": {}}
    assert facts_from_config(config, "test") is None


def test_headers_count_exactly_what_is_in_the_files() -> None:
    """An architecture without formula is known by its tensors."""
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "BF16", "shape": [1000, 64]},
        "b": {"dtype": "F32", "shape": [64]},
    }
    facts = facts_from_config({**SMALL, "model_type": "something_new"}, "test", [header])
    assert facts is not None
    assert (facts.parameters, facts.weight_bytes) == (64064, 128256)
