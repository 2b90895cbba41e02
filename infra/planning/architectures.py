"""The shape of a decoder, read from its `config.json` by its `model_type`.

Source: the configuration classes of transformers 5.19, whose names and defaults differ from family to family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The numbers of a `config.json` under one set of names."""

    architecture: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int | None
    tied: bool
    window: int | None
    sliding: tuple[bool, ...]
    latent_dim: int

    @property
    def embeddings(self) -> int:
        """Parameters of the embeddings and the output head, which quantization leaves as they are."""
        return self.vocab_size * self.hidden_size * (1 if self.tied else 2)


#: Architectures whose embeddings are tied unless the file says otherwise.
_TIED = {
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma3",
    "falcon",
    "gpt2",
    "opt",
    "bloom",
    "starcoder2",
    "cohere",
    "cohere2",
    "gpt_bigcode",
}
#: Every n-th layer sees all tokens, the others a window, where the file has no `layer_types`.
_PATTERN = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
#: Architectures whose `sliding_window` holds for every layer.
_ALWAYS = {"mistral", "mixtral", "phi3", "starcoder2"}


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape of a decoder; None when the file does not describe one."""
    nested = config.get("text_config")
    raw: Mapping[str, Any] = {**config, **nested} if isinstance(nested, Mapping) else config
    architecture = str(raw.get("model_type", ""))
    hidden = _first(raw, "hidden_size", "n_embd", "d_model")
    layers = _first(raw, "num_hidden_layers", "n_layer", "n_layers")
    heads = _first(raw, "num_attention_heads", "n_head", "n_heads")
    vocab = _first(raw, "vocab_size")
    if not (architecture and hidden and layers and heads and vocab):
        return None
    latent = (
        (_first(raw, "kv_lora_rank") or 0) + (_first(raw, "qk_rope_head_dim") or 0) if raw.get("kv_lora_rank") else 0
    )
    return Shape(
        architecture=architecture,
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(raw, architecture, heads),
        head_dim=_first(raw, "head_dim") or hidden // heads,
        intermediate_size=_first(raw, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size") or 4 * hidden,
        vocab_size=vocab,
        max_positions=_first(raw, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        tied=bool(raw.get("tie_word_embeddings", architecture in _TIED)),
        window=_first(raw, "sliding_window"),
        sliding=_sliding(raw, architecture, layers),
        latent_dim=latent,
    )


def _first(raw: Mapping[str, Any], *names: str) -> int | None:
    """The first of several names that holds a positive whole number."""
    for name in names:
        value = raw.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _kv_heads(raw: Mapping[str, Any], architecture: str, heads: int) -> int:
    if architecture == "falcon" and not raw.get("new_decoder_architecture"):
        return 1 if raw.get("multi_query", True) else heads
    if architecture == "gpt_bigcode" and raw.get("multi_query", True):
        return 1
    return _first(raw, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads


def _sliding(raw: Mapping[str, Any], architecture: str, layers: int) -> tuple[bool, ...]:
    """Which layers keep only a window of tokens."""
    types = raw.get("layer_types")
    if not raw.get("sliding_window") or raw.get("use_sliding_window") is False:
        return (False,) * layers
    if isinstance(types, list | tuple) and len(types) == layers:
        return tuple(kind == "sliding_attention" for kind in types)
    pattern = _first(raw, "sliding_window_pattern") or _PATTERN.get(architecture)
    if pattern:
        return tuple((index + 1) % pattern != 0 for index in range(layers))
    return (architecture in _ALWAYS,) * layers
