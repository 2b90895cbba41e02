"""What each layer's mixer is, and the shape of its heads: transformers' and vLLM's rules over a config.json."""

from __future__ import annotations

from collections.abc import Mapping

from modelfleet.infra.planning.memory.checkpoint import Checkpoint

#: Families of recurrent layers alone: no feed-forward part, and no prefix caching.
STATES_ONLY = {"mamba", "mamba2", "falcon_mamba"}
#: Names in `layer_types` and `layers_block_type` of layers with a full cache.
FULL_NAMES = {
    "full_attention", "attention", "full", "global", "*", "deepseek_sparse_attention", "indexed_attention",
    "moe_attention", "hybrid_full",
}  # fmt: skip
WINDOW_NAMES = {"sliding_attention", "sliding_window", "local_attention", "hybrid_sliding", "sliding", "local"}
STATE_NAMES = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "linear", "kda", "gdn", "M"}
#: Layers without a mixer: feed-forward parts that Nemotron-H counts as layers.
NO_MIXER = {"moe", "mlp", "-", "E"}
#: MLA checkpoints that vLLM runs with whole keys and values (minicpm3.py has no latent cache).
EXPANDED_LATENTS = {"minicpm3"}


def layer_kinds(checkpoint: Checkpoint) -> list[str]:
    """What each layer's mixer is: full, window, chunk, state, both (Falcon-H1) or none."""
    depth = checkpoint.layers
    if checkpoint.model_type == "falcon_h1":
        return ["both"] * depth
    if checkpoint.model_type.startswith("llama4"):
        rope = checkpoint.get("no_rope_layers") or [
            int((layer + 1) % checkpoint.count("no_rope_layer_interval", default=4) != 0) for layer in range(depth)
        ]
        chunked = bool(checkpoint.get("attention_chunk_size"))
        return ["chunk" if chunked and uses else "full" for uses in rope]
    if checkpoint.model_type == "gpt_oss":
        return ["window" if layer % 2 == 0 else "full" for layer in range(depth)]  # gpt_oss.py ignores layer_types
    if checkpoint.model_type.startswith("inkling"):
        local = set(checkpoint.get("local_layer_ids", default=()))  # its own config class reads no layer_types
        return ["window" if layer in local else "full" for layer in range(depth)]
    if (pattern := checkpoint.get("hybrid_layer_pattern")) is not None:
        return ["window" if sliding else "full" for sliding in pattern]  # MiMo-V2
    names = checkpoint.get("layers_block_type") or checkpoint.get("layer_types")
    names = names or checkpoint.get("hybrid_override_pattern")
    if names is not None:
        return [_kind(str(name)) for name in names]
    return _by_family(checkpoint, depth)


def _kind(name: str) -> str:
    if name in WINDOW_NAMES:
        return "window"
    if name in STATE_NAMES:
        return "state"
    if name == "chunked_attention":
        return "chunk"
    return "none" if name in NO_MIXER else "full"


def _by_family(checkpoint: Checkpoint, depth: int) -> list[str]:
    """The kinds of a config without `layer_types`, as transformers' config classes fill it."""
    kind = checkpoint.model_type
    if checkpoint.get("full_attn_idxs") is not None:  # LFM2
        full = set(checkpoint.get("full_attn_idxs"))
        return ["full" if layer in full else "state" for layer in range(depth)]
    if kind in ("mamba", "mamba2", "falcon_mamba"):
        return ["state"] * depth
    if kind == "jamba":
        period, offset = (
            checkpoint.count("attn_layer_period", default=8),
            checkpoint.count("attn_layer_offset", default=4),
        )
        return ["full" if layer % period == offset else "state" for layer in range(depth)]
    if checkpoint.get("linear_num_value_heads") is not None:
        interval = checkpoint.count("full_attention_interval", default=4)
        return ["full" if (layer + 1) % interval == 0 else "state" for layer in range(depth)]
    if not checkpoint.get("sliding_window") or checkpoint.get("use_sliding_window") is False:
        return ["full"] * depth
    pattern = checkpoint.get("sliding_window_pattern", "_sliding_window_pattern") or _PATTERNS.get(kind)
    if isinstance(pattern, str):  # EXAONE 4: "LLLG"
        return ["window" if pattern[layer % len(pattern)] == "L" else "full" for layer in range(depth)]
    if pattern:
        return ["window" if (layer + 1) % int(pattern) else "full" for layer in range(depth)]
    if kind in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"):
        first = checkpoint.count("max_window_layers", default=depth)
        return ["full" if layer < first else "window" for layer in range(depth)]
    return ["full"] * depth if kind in _WINDOW_UNUSED else ["window"] * depth


#: Every n-th layer is full, in transformers' classes whose files may leave the pattern out.
_PATTERNS = {
    "gemma2": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4, "cohere2_moe": 4, "olmo3": 4, "exaone4": 4,
    "exaone_moe": 4, "gemma3n_text": 5, "gemma4_text": 6, "vaultgemma": 2, "ministral": 4, "smollm3": 0,
}  # fmt: skip
#: Families whose `sliding_window` has no effect without `layer_types`.
_WINDOW_UNUSED = {"laguna", "mellum", "minimax_m2", "minimax_m3", "mixtral_full", "step3p5", "step3p7", "mimo"}


def head_shape(checkpoint: Checkpoint, layer: int, kind: str) -> tuple[int, int, int]:
    """KV heads, key size and value size of a layer with attention."""
    heads, key = checkpoint.kv_heads, checkpoint.head_dim
    value = int(checkpoint.get("v_head_dim", default=key) or key)
    if checkpoint.model_type in EXPANDED_LATENTS:
        key = checkpoint.count("qk_nope_head_dim") + checkpoint.count("qk_rope_head_dim")
        return checkpoint.heads, key, key
    if kind == "window":
        heads = int(checkpoint.get("swa_num_key_value_heads", default=heads))
        key = int(checkpoint.get("swa_head_dim", default=key))
        value = int(checkpoint.get("swa_v_head_dim", default=value))
    elif checkpoint.get("global_head_dim") and not checkpoint.get("per_layer_config"):
        key = value = checkpoint.count("global_head_dim")
        if checkpoint.get("attention_k_eq_v"):
            heads = checkpoint.count("num_global_key_value_heads", default=heads)
    key = int(checkpoint.per_layer(layer, "head_dim", key))
    if checkpoint.get("per_layer_config"):
        value = key
    heads = int(checkpoint.per_layer(layer, "num_key_value_heads", heads))
    return heads, key, value


def latent_kinds(checkpoint: Checkpoint) -> list[str]:
    """Full or state, per cache: LongCat has two attentions a layer, Kimi names its full layers from 1."""
    if checkpoint.model_type.startswith("longcat"):
        return ["full"] * (2 * checkpoint.layers)
    section = checkpoint.get("linear_attn_config")
    if isinstance(section, Mapping) and section.get("full_attn_layers"):
        full = set(section["full_attn_layers"])
        return ["full" if layer + 1 in full else "state" for layer in range(checkpoint.layers)]
    if checkpoint.model_type.startswith("bailing"):
        group = checkpoint.count("layer_group_size", default=1)
        last = checkpoint.layers // group * group
        return ["full" if (layer + 1) % group == 0 or layer >= last else "state" for layer in range(checkpoint.layers)]
    names = checkpoint.get("layer_types")
    if names is None:
        return ["full"] * checkpoint.layers
    return ["state" if _kind(str(name)) == "state" else "full" for name in names]


def index_leader(checkpoint: Checkpoint, layer: int) -> bool:
    """Whether a layer has an indexer of its own (deepseek_v2.py: `_skip_topk`)."""
    if checkpoint.get("index_topk") is None:
        return False
    if layer >= checkpoint.layers:  # a multi-token layer computes its own
        return True
    kinds = checkpoint.get("indexer_types")
    if kinds is not None:
        return bool(kinds[layer] == "full")
    pattern = checkpoint.get("index_topk_pattern")
    if pattern is not None:
        return bool(pattern[layer] != "S")
    every, offset = (
        checkpoint.count("index_topk_freq", default=1),
        checkpoint.count("index_skip_topk_offset", default=2),
    )
    return max(layer - offset + 1, 0) % every == 0
