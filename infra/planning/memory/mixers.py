"""The tensors of a layer's attention or state on one GPU, as vLLM 0.32.0 splits them over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Iterator

from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.kinds import head_shape, index_leader
from modelfleet.infra.planning.memory.parts import SINGLE, Part, plain
from modelfleet.infra.planning.memory.traits import Traits

#: Families with a gate as wide as the queries inside the query projection (`attn_output_gate`).
GATED_QUERIES = ("qwen3_next", "qwen3_5", "qwen4_exp")


def attention(
    checkpoint: Checkpoint, traits: Traits, layer: int, kind: str, ranks: int, *, shares: bool
) -> Iterator[Part]:
    """Ordinary attention; `shares` means a layer that reads another layer's keys and values."""
    name, hidden = f"layers.{layer}.self_attn", checkpoint.hidden
    kv_total, key, value = head_shape(checkpoint, layer, kind)
    heads = query_heads(checkpoint, layer, kind)
    queries = heads * key // ranks
    kv = max(1, kv_total // ranks)
    gate = (
        2 if checkpoint.model_type.startswith(GATED_QUERIES) and checkpoint.get("attn_output_gate", default=True) else 1
    )
    if checkpoint.model_type.startswith("hrm"):
        gate = 2
    rows = queries * gate + (0 if shares else kv * (key + value))
    rows += _indexer_rows(checkpoint)
    biased = traits.qkv_bias or bool(checkpoint.get("attention_bias", "qkv_bias", "use_qkv_bias", "use_bias"))
    yield Part(f"{name}.q_proj", rows, hidden, bias=rows if biased else 0)
    out = _out_bias(checkpoint, traits, biased)
    yield Part(f"{name}.o_proj", hidden, heads * value // ranks, bias=hidden if out else 0)
    yield from _query_norms(checkpoint, traits, name, queries, kv, key, shares=shares)
    yield from _attention_extras(checkpoint, traits, name, kind, heads // ranks, heads * key // ranks)


def query_heads(checkpoint: Checkpoint, layer: int, kind: str) -> int:
    """Query heads of a layer: some families have more of them in window layers."""
    table = checkpoint.get("num_attention_heads_per_layer")
    if isinstance(table, list):
        return int(table[layer])
    if kind == "window":
        return checkpoint.count("swa_num_attention_heads", "num_sliding_attention_heads", default=checkpoint.heads)
    return int(checkpoint.per_layer(layer, "num_attention_heads", checkpoint.heads))


def _out_bias(checkpoint: Checkpoint, traits: Traits, biased: bool) -> bool:
    named = checkpoint.get("attention_out_bias", "o_proj_bias")
    if named is not None:
        return bool(named)
    if traits.out_bias is not None:
        return traits.out_bias
    return bool(biased and not checkpoint.get("qkv_bias"))


def _indexer_rows(checkpoint: Checkpoint) -> int:
    """Rows of an indexer that is part of the query projection (Qwen3.8-Flash-Next), whole on each GPU."""
    if checkpoint.get("indexer_compress_ratio") is None:
        return 0
    heads = checkpoint.count("indexer_n_heads") + checkpoint.count("indexer_kv_heads", default=1)
    return heads * checkpoint.count("indexer_head_dim")


def _query_norms(
    checkpoint: Checkpoint, traits: Traits, name: str, queries: int, kv: int, key: int, *, shares: bool
) -> Iterator[Part]:
    switched = checkpoint.get("use_qk_norm", "qk_norm")
    asked = traits.qk_norm != "none" or (switched is True and not checkpoint.model_type.startswith("llama4"))
    if not asked or (switched is False and checkpoint.model_type != "qwen3"):
        return
    if traits.qk_norm == "full":
        yield plain(f"{name}.qk_norm", queries + kv * key)
    else:
        yield plain(f"{name}.qk_norm", key if shares else 2 * key)
    if checkpoint.get("indexer_compress_ratio") is not None:
        yield plain(f"{name}.indexer.norms", 2 * checkpoint.count("indexer_head_dim"))


def _attention_extras(
    checkpoint: Checkpoint, traits: Traits, name: str, kind: str, heads: int, width: int
) -> Iterator[Part]:
    kept = traits.sinks == "all" or (traits.sinks == "window" and kind == "window")
    if kept or (kind == "window" and checkpoint.get("swa_attention_sink_enabled")):
        yield plain(f"{name}.sinks", heads)
    if checkpoint.model_type == "laguna" and checkpoint.get("gating"):
        yield Part(f"{name}.g_proj", heads, checkpoint.hidden)
    if checkpoint.model_type.startswith("muse_glimmer"):
        yield Part(f"{name}.output_gate_proj", width, checkpoint.hidden)
    if checkpoint.model_type.startswith("step3p") and checkpoint.get("use_head_wise_attn_gate"):
        yield Part(f"{name}.g_proj", heads, checkpoint.hidden)
    sparse = checkpoint.get("sparse_attention_config")
    layer = int(name.split(".")[1])
    if isinstance(sparse, dict) and sparse.get("sparse_attention_freq", [0])[layer]:
        size, index = int(sparse["sparse_index_dim"]), int(sparse["sparse_num_index_heads"])
        yield Part(f"{name}.index_proj", (index + 1) * size, checkpoint.hidden)
        yield plain(f"{name}.index_norms", 2 * size)


def latent(checkpoint: Checkpoint, layer: int, ranks: int, name: str = "") -> Iterator[Part]:
    """Multi-head latent attention: the down-projections are whole on each GPU, the heads are divided."""
    name = name or f"layers.{layer}.self_attn"
    hidden, heads = checkpoint.hidden, checkpoint.heads // ranks
    rank, rope = checkpoint.count("kv_lora_rank"), checkpoint.count("qk_rope_head_dim", default=0)
    nope, value = checkpoint.count("qk_nope_head_dim"), checkpoint.count("v_head_dim")
    low = checkpoint.get("q_lora_rank")
    gate = heads * value if checkpoint.get("mla_use_output_gate") else 0
    if low:
        yield Part(f"{name}.q_a_proj", int(low) + rank + rope + gate, hidden)
        yield plain(f"{name}.q_a_layernorm", int(low))
        yield Part(f"{name}.q_b_proj", heads * (nope + rope), int(low))
    else:
        yield Part(f"{name}.q_proj", heads * (nope + rope), hidden)
        yield Part(f"{name}.kv_a_proj_with_mqa", rank + rope + gate, hidden)
    yield plain(f"{name}.kv_a_layernorm", rank)
    yield Part(f"{name}.kv_b_proj", heads * (nope + value), rank)
    yield Part(f"{name}.o_proj", hidden, heads * value)
    if checkpoint.model_type == "hy_v4":
        yield Part(f"{name}.linear_gate", heads * value, hidden)
        yield plain(f"{name}.sink", heads, SINGLE)
    if index_leader(checkpoint, layer):
        yield from _indexer(checkpoint, name, int(low or hidden))


def _indexer(checkpoint: Checkpoint, name: str, low: int) -> Iterator[Part]:
    """DeepSeek's indexer, whole on each GPU; its key and weight projection stays in half precision."""
    size, heads = checkpoint.count("index_head_dim", default=128), checkpoint.count("index_n_heads")
    yield Part(f"{name}.indexer.wq_b", heads * size, low)
    yield plain(f"{name}.indexer.wk_weights_proj", (size + heads) * checkpoint.hidden)
    yield plain(f"{name}.indexer.k_norm", 2 * size, SINGLE)
    pool = checkpoint.count("index_kpool", default=1)
    if pool > 1:
        yield plain(f"{name}.indexer.ape", pool * size, SINGLE)
        yield plain(f"{name}.indexer.compress_gate", size * checkpoint.hidden)


def gated_delta_net(checkpoint: Checkpoint, layer: int, ranks: int) -> Iterator[Part]:
    """Qwen3-Next, Qwen3.5 and Olmo-Hybrid."""
    name, hidden = f"layers.{layer}.linear_attn", checkpoint.hidden
    keys = checkpoint.count("linear_num_key_heads") * checkpoint.count("linear_key_head_dim")
    heads, size = checkpoint.count("linear_num_value_heads"), checkpoint.count("linear_value_head_dim")
    values, kernel = heads * size, checkpoint.count("linear_conv_kernel_dim", default=4)
    plain_decay = checkpoint.model_type == "olmo_hybrid"
    yield Part(f"{name}.in_proj_qkv", (2 * keys + 2 * values) // ranks, hidden)
    yield Part(f"{name}.in_proj_b", 2 * heads // ranks, hidden)
    yield plain(f"{name}.conv1d", (2 * keys + values) // ranks * kernel)
    yield plain(f"{name}.dt_bias", heads // ranks)
    yield plain(f"{name}.A_log", heads // ranks, 2 if plain_decay else SINGLE)
    yield plain(f"{name}.norm", size)
    yield Part(f"{name}.out_proj", hidden, values // ranks)


def kimi_delta(checkpoint: Checkpoint, layer: int, ranks: int) -> Iterator[Part]:
    """Kimi-Linear, Kimi-K3, GLM-5.3-Flash: the gates' low-rank parts are whole on each GPU."""
    name, hidden = f"layers.{layer}.self_attn", checkpoint.hidden
    section = checkpoint.get("linear_attn_config", default={})
    heads = section.get("num_heads") or checkpoint.count("linear_num_heads")
    size = section.get("head_dim") or checkpoint.count("linear_head_dim")
    kernel = section.get("short_conv_kernel_size") or checkpoint.count("linear_conv_kernel_dim", default=4)
    width = heads * size // ranks
    full_gate = bool(section.get("use_full_rank_gate"))
    rows = (4 if full_gate else 3) * width + size + heads // ranks
    if section:
        rows += -rows % 16  # kimi_k3/nvidia/kda.py pads its fused projection
    quantized = not checkpoint.model_type.startswith("glm5_next")  # Glm5NextLinearAttention drops quantization
    yield Part(f"{name}.q_proj", rows, hidden, linear=quantized)
    yield Part(f"{name}.f_b_proj", width, size, linear=quantized)
    if not full_gate:
        yield Part(f"{name}.g_a_proj", size, hidden, linear=quantized)
        yield Part(f"{name}.g_b_proj", width, size, linear=quantized)
    yield plain(f"{name}.conv1d", 3 * width * kernel, SINGLE)
    yield plain(f"{name}.dt_bias", width, SINGLE)
    yield plain(f"{name}.A_log", heads // ranks, SINGLE)
    yield plain(f"{name}.o_norm", size)
    yield Part(f"{name}.o_proj", hidden, width, linear=quantized)


def mamba1(checkpoint: Checkpoint, layer: int, ranks: int) -> Iterator[Part]:
    """Mamba and Falcon-Mamba."""
    name, hidden = f"layers.{layer}.mixer", checkpoint.hidden
    inner = checkpoint.count("intermediate_size", default=checkpoint.count("expand", default=2) * hidden) // ranks
    width = checkpoint.count("state_size", default=16)
    kernel, step = checkpoint.count("conv_kernel", default=4), checkpoint.count("time_step_rank", default=hidden // 16)
    yield Part(f"{name}.in_proj", 2 * inner, hidden)
    yield plain(f"{name}.conv1d", inner * (kernel + bool(checkpoint.get("use_conv_bias", default=True))))
    yield Part(f"{name}.x_proj", step + 2 * width, inner)
    yield Part(f"{name}.dt_proj", inner, step, bias=inner)
    yield plain(f"{name}.A", inner * (width + 1), SINGLE)
    yield Part(f"{name}.out_proj", hidden, inner)


def mamba2(checkpoint: Checkpoint, layer: int, ranks: int) -> Iterator[Part]:
    """Nemotron-H, Falcon-H1, Granite 4."""
    name, hidden = f"layers.{layer}.mixer", checkpoint.hidden
    heads = checkpoint.count("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads")
    inner = checkpoint.get("mamba_d_ssm")
    if inner is None and checkpoint.model_type.startswith("nemotron_h"):
        inner = heads * checkpoint.count("mamba_head_dim")
    inner = int(inner if inner is not None else checkpoint.get("mamba_expand", "expand", default=2) * hidden)
    width = checkpoint.count("ssm_state_size", "mamba_d_state", "state_size")
    groups = checkpoint.count("mamba_n_groups", "mamba_ngroups", "n_groups", default=1)
    shared = 1 if groups % ranks == 0 else ranks  # a group that is not divided is copied
    conv = inner // ranks + 2 * groups * shared * width // ranks
    kernel = checkpoint.count("conv_kernel", "mamba_d_conv", default=4)
    yield Part(f"{name}.in_proj", inner // ranks + conv + heads // ranks, hidden)
    biased = checkpoint.get("use_conv_bias", "mamba_conv_bias", default=True)
    yield plain(f"{name}.conv1d", conv * (kernel + bool(biased)))
    yield plain(f"{name}.A", heads // ranks, SINGLE)
    yield plain(f"{name}.D", 2 * heads // ranks)
    if checkpoint.model_type != "falcon_h1" or checkpoint.get("mamba_rms_norm"):
        yield plain(f"{name}.norm", inner // ranks)
    yield Part(f"{name}.out_proj", hidden, inner // ranks)


def short_convolution(checkpoint: Checkpoint, layer: int, ranks: int) -> Iterator[Part]:
    """LFM2: three gates in one projection around a convolution."""
    name = f"layers.{layer}.conv"
    width, kernel = checkpoint.count("conv_dim", default=checkpoint.hidden), checkpoint.count("conv_L_cache", default=3)
    yield Part(f"{name}.in_proj", 3 * width // ranks, width)
    yield plain(f"{name}.conv", width // ranks * kernel)
    yield Part(f"{name}.out_proj", width, width // ranks)


def compressed(checkpoint: Checkpoint, layer: int, ranks: int, ratio: int) -> Iterator[Part]:
    """DeepSeek V4's attention: low-rank queries, one shared key, grouped output, compressors and an indexer."""
    name, hidden, head = f"layers.{layer}.attn", checkpoint.hidden, checkpoint.head_dim
    low, heads = checkpoint.count("q_lora_rank"), checkpoint.heads // ranks
    groups, out = checkpoint.count("o_groups"), checkpoint.count("o_lora_rank")
    yield Part(f"{name}.wqkv_a", low + head, hidden)
    yield plain(f"{name}.norms", low + head)
    yield Part(f"{name}.wq_b", heads * head, low)
    yield Part(f"{name}.wo_a", groups * out // ranks, checkpoint.heads * head // groups)
    yield Part(f"{name}.wo_b", hidden, groups * out // ranks)
    yield plain(f"{name}.attn_sink", max(checkpoint.heads // ranks, 64), SINGLE)
    if ratio > 1:
        yield from _compressor(f"{name}.compressor", ratio, head, hidden)
    if ratio == 4:
        size, index = checkpoint.count("index_head_dim", default=128), checkpoint.count("index_n_heads")
        yield Part(f"{name}.indexer.wq_b", index * size, low)
        yield plain(f"{name}.indexer.weights_proj", index * hidden)
        yield from _compressor(f"{name}.indexer.compressor", ratio, size, hidden)


def _compressor(name: str, ratio: int, head: int, hidden: int) -> Iterator[Part]:
    overlap = 2 if ratio == 4 else 1
    yield plain(f"{name}.ape", ratio * overlap * head, SINGLE)
    yield plain(f"{name}.wkv_wgate", 2 * overlap * head * hidden)
    yield plain(f"{name}.norm", head)


def inkling(checkpoint: Checkpoint, layer: int, kind: str, ranks: int) -> Iterator[Part]:
    """Inkling: attention with relative positions, and four short convolutions a layer."""
    name, hidden = f"layers.{layer}.attn", checkpoint.hidden
    kv, key, value = head_shape(checkpoint, layer, kind)
    heads = query_heads(checkpoint, layer, kind) // ranks
    kv //= ranks
    kernel, rel = checkpoint.count("sconv_kernel_size", "conv_kernel_size", default=4), checkpoint.count("d_rel")
    extent = checkpoint.count("sliding_window_size") if kind == "window" else checkpoint.count("rel_extent")
    yield Part(f"{name}.qkvr", heads * (key + rel) + kv * (key + value), hidden)
    yield Part(f"{name}.wo_ud", hidden, heads * value)
    yield plain(f"{name}.rel_logits_proj", rel * extent)
    yield plain(f"{name}.norms", 2 * key)
    yield plain(f"{name}.sconv", (kv * (key + value) + 2 * hidden // ranks) * kernel)


def zaya(checkpoint: Checkpoint, layer: int, ranks: int) -> Iterator[Part]:
    """Zaya: compressed convolutional attention."""
    name, hidden, head = f"layers.{layer}.self_attn", checkpoint.hidden, checkpoint.head_dim
    heads, kv = checkpoint.heads // ranks, max(1, checkpoint.kv_heads // ranks)
    mixed = (heads + kv) * head
    yield Part(f"{name}.q_proj", heads * head + 2 * kv * head, hidden)
    yield Part(f"{name}.o_proj", hidden, heads * head)
    first, second = checkpoint.count("cca_time0", default=2), checkpoint.count("cca_time1", default=2)
    yield plain(f"{name}.convs", mixed * (first + 1) + mixed * (head * second + 1) + kv)
