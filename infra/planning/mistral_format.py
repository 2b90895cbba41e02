"""A params.json of Mistral's own layout as the config.json that vLLM makes of it, for dense text models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: vLLM 0.32 `vllm/transformers_utils/configs/mistral.py`, `_remap_general_mistral_args`.
NAMES = {
    "dim": "hidden_size",
    "norm_eps": "rms_norm_eps",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
#: Sections that make another architecture of it: its shape is not read here.
OTHERS = ("moe", "multimodal", "vision_encoder", "quantization", "qk_nope_head_dim", "yarn", "llama_4_scaling")
#: vLLM's length for a params.json that names none.
DEFAULT_LENGTH = 128_000


def config_of(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config.json of a dense text model; None for another one, of which nothing is known then."""
    if any(params.get(key) for key in OTHERS) or params.get("model_type") == "mamba" or "dim" not in params:
        return None
    named = {NAMES.get(key, key): value for key, value in params.items()}
    named["max_position_embeddings"] = params.get("max_position_embeddings", params.get("max_seq_len", DEFAULT_LENGTH))
    named["tie_word_embeddings"] = bool(params.get("tied_embeddings", False))
    return {**named, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "dtype": "bfloat16"}
