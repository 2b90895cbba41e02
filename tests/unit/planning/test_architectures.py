"""Compares the catalog's shapes and parameter counts with transformers' own models, built on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.architectures import shape_of
from modelfleet.infra.planning.facts import facts_from_config

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}


@pytest.mark.slow
@pytest.mark.parametrize("hf_id", sorted(default_catalog().models))
def test_a_row_of_the_catalog_matches_transformers_model(hf_id: str) -> None:
    """A wrong count or dimension would show as a difference; the meta device allocates no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    row = default_catalog().models[hf_id]
    values = {k: v for k, v in row.config.items() if k not in ("model_type", "dtype", "quantization_config")}
    if row.config["model_type"] == "falcon":
        values.pop("head_dim")
    values |= {"q_lora_rank": None} if row.config["model_type"] == "deepseek_v2" else {}
    config = AutoConfig.for_model(row.config["model_type"], **values)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in made.parameters()) == row.parameters
    shape = shape_of(row.config)
    assert shape is not None
    ends = {made.get_input_embeddings().weight, made.get_output_embeddings().weight}
    assert sum(p.numel() for p in ends) == shape.embeddings, "quantization leaves these as they are"


def test_a_configuration_alone_does_not_give_the_number_of_parameters() -> None:
    assert facts_from_config(SMALL, "test") is None
    assert facts_from_config(SMALL, "test", parameters=1000) is not None


def test_a_model_that_is_not_a_decoder_is_unknown() -> None:
    assert facts_from_config({"model_type": "bert"}, "test", parameters=1000) is None


def test_headers_give_the_exact_count_of_the_files() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "BF16", "shape": [1000, 64]},
        "b": {"dtype": "F32", "shape": [64]},
    }
    facts = facts_from_config({**SMALL, "model_type": "something_new"}, "test", [header], parameters=1)
    assert facts is not None
    assert (facts.parameters, facts.weight_bytes) == (64064, 128256)
    assert facts.linear_parameters == 64064 - 2 * 320 * 64


def test_a_quantized_checkpoint_takes_the_size_of_its_files() -> None:
    """Each int32 has eight weights, so the count says little; memory holds the bytes."""
    config = {**SMALL, "quantization_config": {"quant_method": "awq", "bits": 4}}
    facts = facts_from_config(config, "test", [{"qweight": {"dtype": "I32", "shape": [64, 8]}}])
    assert facts is not None
    assert (facts.quantization, facts.weight_bytes) == ("awq", 2048)
