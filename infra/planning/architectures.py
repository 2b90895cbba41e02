"""Shapes and parameter formulas of decoder architectures, by the `model_type` of their `config.json`.

Sources: the modelling code of transformers 5.19 and the papers that it names. `tests/unit/planning` holds every
formula against transformers models built on the meta device, and the rows of the catalog against published counts.
A formula gives (all parameters, those in linear layers that quantization compresses).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

Counts = tuple[int, int]


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
    raw: Mapping[str, Any] = field(repr=False)

    def get(self, key: str, default: Any = None) -> Any:
        """A number under its own name."""
        value = self.raw.get(key)
        return default if value is None else value


@dataclass(frozen=True)
class Style:
    """What distinguishes one plain decoder from another."""

    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    layer_norms: int = 2
    norm_bias: bool = False
    head_norms: int = 0
    wide_head_norms: bool = False
    head_bias: bool = False
    besides: Callable[[Shape], int] = field(default=lambda shape: 0)


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
        raw=raw,
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


def _attention(shape: Shape, style: Style) -> Counts:
    h, q, kv = shape.hidden_size, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = h * (q + 2 * kv) + q * h
    biases = (q + 2 * kv) * style.qkv_bias + h * style.out_bias
    norms = style.head_norms * shape.head_dim + (q + kv) * style.wide_head_norms
    return weights + biases + norms, weights


def _mlp(hidden: int, inner: int, style: Style) -> Counts:
    weights = (3 if style.gated else 2) * hidden * inner
    biases = ((2 if style.gated else 1) * inner + hidden) * style.mlp_bias
    return weights + biases, weights


def _plain(shape: Shape, style: Style) -> Counts:
    """A dense decoder."""
    attention, mlp = _attention(shape, style), _mlp(shape.hidden_size, shape.intermediate_size, style)
    return _stacked(shape, style, [(attention, mlp)] * shape.layers)


def _stacked(shape: Shape, style: Style, layers: list[tuple[Counts, Counts]]) -> Counts:
    """Layers, norms, embeddings and head together."""
    h = shape.hidden_size
    norm = h * (2 if style.norm_bias else 1)
    linear = sum(attention[1] + mlp[1] for attention, mlp in layers)
    total = sum(attention[0] + mlp[0] + style.layer_norms * norm for attention, mlp in layers) + norm
    total += shape.vocab_size * h * (1 if shape.tied else 2) + shape.vocab_size * style.head_bias + style.besides(shape)
    return total, linear


def _mixture(shape: Shape, style: Style, *, experts: str, inner: str) -> Counts:
    """A decoder whose layers choose among experts; `mlp_only_layers` and shared experts as in Qwen."""
    count = int(shape.get(experts) or shape.get("num_local_experts", 0))
    width = int(shape.get(inner, shape.intermediate_size))
    one = _mlp(shape.hidden_size, width, style)
    shared_width = int(shape.get("shared_expert_intermediate_size", 0)) if shape.architecture == "qwen2_moe" else 0
    shared = _mlp(shape.hidden_size, shared_width, style)
    router = shape.hidden_size * count + (shape.hidden_size if shared_width else 0)
    sparse = (count * one[0] + shared[0] + router, count * one[1] + shared[1])
    dense = _mlp(shape.hidden_size, shape.intermediate_size, style)
    step, only = int(shape.get("decoder_sparse_step", 1)), set(shape.get("mlp_only_layers", []))
    attention = _attention(shape, style)
    layers = [
        (attention, sparse if index not in only and (index + 1) % step == 0 else dense) for index in range(shape.layers)
    ]
    return _stacked(shape, style, layers)


def _latent_attention(shape: Shape) -> Counts:
    """DeepSeek's multi-head latent attention."""
    h, heads = shape.hidden_size, shape.heads
    nope, rope, value = (
        int(shape.get("qk_nope_head_dim")),
        int(shape.get("qk_rope_head_dim")),
        int(shape.get("v_head_dim")),
    )
    rank, q_rank = int(shape.get("kv_lora_rank")), int(shape.get("q_lora_rank", 0))
    query = h * q_rank + q_rank * heads * (nope + rope) if q_rank else h * heads * (nope + rope)
    weights = query + h * (rank + rope) + rank * heads * (nope + value) + heads * value * h
    return weights + rank + q_rank, weights


def _deepseek(shape: Shape) -> Counts:
    """DeepSeek V2 and V3: the first layers dense, then routed and shared experts."""
    style, h = Style(), shape.hidden_size
    experts, width = (
        int(shape.get("n_routed_experts", 0)),
        int(shape.get("moe_intermediate_size", shape.intermediate_size)),
    )
    one = _mlp(h, width, style)
    shared = _mlp(h, width * int(shape.get("n_shared_experts", 0)), style)
    sparse = (experts * one[0] + shared[0] + h * experts, experts * one[1] + shared[1])
    dense, attention = _mlp(h, shape.intermediate_size, style), _latent_attention(shape)
    first = int(shape.get("first_k_dense_replace", 0))
    return _stacked(shape, style, [(attention, dense if i < first else sparse) for i in range(shape.layers)])


def _gpt_oss(shape: Shape) -> Counts:
    """gpt-oss: attention with biases and one sink per head, experts with biases."""
    h, width, experts = shape.hidden_size, shape.intermediate_size, int(shape.get("num_local_experts", 0))
    style = Style(qkv_bias=True, out_bias=True)
    attention = _attention(shape, style)
    weights = experts * 3 * h * width
    biases = experts * (2 * width + h) + h * experts + experts
    return _stacked(
        shape, style, [((attention[0] + shape.heads, attention[1]), (weights + biases, weights))] * shape.layers
    )


def _falcon(shape: Shape) -> Counts:
    norms = 2 if shape.get("new_decoder_architecture") or not shape.get("parallel_attn", True) else 1
    bias = bool(shape.get("bias", False))
    return _plain(shape, Style(False, bias, bias, bias, layer_norms=norms, norm_bias=True))


def _starcoder2(shape: Shape) -> Counts:
    bias = bool(shape.get("use_bias", True))
    return _plain(shape, Style(False, bias, bias, bias, norm_bias=True))


def _llama(shape: Shape) -> Counts:
    bias = bool(shape.get("attention_bias", False))
    return _plain(shape, Style(qkv_bias=bias, out_bias=bias, mlp_bias=bool(shape.get("mlp_bias", False))))


def _qwen3(shape: Shape) -> Counts:
    bias = bool(shape.get("attention_bias", False))
    return _plain(shape, Style(qkv_bias=bias, out_bias=bias, head_norms=2))


def _neox(shape: Shape) -> Counts:
    bias = bool(shape.get("attention_bias", True))
    return _plain(shape, Style(False, bias, bias, True, norm_bias=True))


def _positions(offset: int) -> Callable[[Shape], int]:
    return lambda shape: ((shape.max_positions or 0) + offset) * shape.hidden_size


FORMULAS: Mapping[str, Callable[[Shape], Counts]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": partial(_plain, style=Style(qkv_bias=True)),
    "qwen3": _qwen3,
    "gemma": _llama,
    "gemma2": partial(_plain, style=Style(layer_norms=4)),
    "gemma3_text": partial(_plain, style=Style(layer_norms=4, head_norms=2)),
    "phi3": partial(_plain, style=Style()),
    "phi": partial(_plain, style=Style(False, True, True, True, layer_norms=1, norm_bias=True, head_bias=True)),
    "olmo2": partial(_plain, style=Style(wide_head_norms=True)),
    "granite": _llama,
    "cohere": partial(_plain, style=Style(layer_norms=1)),
    "falcon": _falcon,
    "gptj": partial(_plain, style=Style(False, mlp_bias=True, layer_norms=1, norm_bias=True, head_bias=True)),
    "gpt_neox": _neox,
    "gpt2": partial(_plain, style=Style(False, True, True, True, norm_bias=True, besides=_positions(0))),
    "gpt_bigcode": partial(_plain, style=Style(False, True, True, True, norm_bias=True, besides=_positions(0))),
    "opt": partial(_plain, style=Style(False, True, True, True, norm_bias=True, besides=_positions(2))),
    "bloom": partial(_plain, style=Style(False, True, True, True, norm_bias=True, besides=lambda s: 2 * s.hidden_size)),
    "starcoder2": _starcoder2,
    "mixtral": partial(_mixture, style=Style(), experts="num_local_experts", inner="intermediate_size"),
    "qwen2_moe": partial(_mixture, style=Style(qkv_bias=True), experts="num_experts", inner="moe_intermediate_size"),
    "qwen3_moe": partial(_mixture, style=Style(head_norms=2), experts="num_experts", inner="moe_intermediate_size"),
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gpt_oss": _gpt_oss,
}
