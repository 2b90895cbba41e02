"""Parameters and bytes of a model's weights on one GPU, counted from its config.json.

Counted as vLLM 0.32.0 creates them: embeddings padded to 64 rows and divided, attention and feed-forward parts divided,
low-rank projections, routers and indexers whole on each rank. Towers for images and sound are not in the sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modelfleet.infra.planning.memory import mixers
from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.memory.feedforward import dense, feed_forward, puzzle
from modelfleet.infra.planning.memory.kinds import STATES_ONLY, latent_kinds, layer_kinds
from modelfleet.infra.planning.memory.layers import state_rule
from modelfleet.infra.planning.memory.parts import SINGLE, Part, Size, format_of, plain
from modelfleet.infra.planning.memory.stages import stage_has
from modelfleet.infra.planning.memory.states import kimi_delta, mamba1, mamba2, short_convolution
from modelfleet.infra.planning.memory.traits import ENCODER, Traits, traits_of

#: Rows that an embedding is padded to (VocabParallelEmbedding's `DEFAULT_VOCAB_PADDING_SIZE`).
VOCAB_PADDING = 64


#: Families with an embedding of positions, and its rows beyond the longest sequence.
LEARNED_POSITIONS = {"opt": 2, "gpt2": 0, "gpt-sw3": 0, "gpt_bigcode": 0}


@dataclass(frozen=True)
class Weights:
    """Elements as stored and bytes on one GPU; `host_bytes` of them stay in the node's memory."""

    elements: int
    bytes: float
    host_bytes: float


def weights_of(checkpoint: Checkpoint, engine: EngineArguments) -> Weights:
    """The weights of a model on one of `engine.ranks` GPUs. Raises `UnknownShapeError`."""
    form = format_of(checkpoint)
    total, host = Size(0, 0.0), 0.0
    for part in parts_of(checkpoint, engine):
        size = form.size(part)
        total += size
        host += size.bytes if part.name == HOST_TABLE else 0.0
    return Weights(total.elements, total.bytes, host)


#: The n-gram table that vLLM keeps in pinned host memory (config/engram.py: `cpu_offload`).
HOST_TABLE = "ple.ngram_embedding"


def linear_elements(checkpoint: Checkpoint, engine: EngineArguments) -> int:
    """Elements that a quantization at load compresses."""
    return sum(part.elements for part in parts_of(checkpoint, engine) if part.linear)


def parts_of(checkpoint: Checkpoint, engine: EngineArguments) -> Iterator[Part]:
    """All tensors of the decoder on one GPU, in one stage of a pipeline those of the stage."""
    return (part for part in _all_parts(checkpoint, engine) if stage_has(checkpoint, engine, part.name))


def _all_parts(checkpoint: Checkpoint, engine: EngineArguments) -> Iterator[Part]:
    traits = traits_of(checkpoint)
    yield from _outside(checkpoint, traits, engine.ranks)
    if checkpoint.get("block_configs") is not None:
        yield from _puzzle_layers(checkpoint, engine)
    elif checkpoint.model_type.startswith("hrm_text"):
        yield from _looped_layers(checkpoint, traits, engine)
    elif checkpoint.model_type.startswith("longcat"):
        yield from _double_layers(checkpoint, traits, engine)
    elif checkpoint.model_type.startswith("nemotron_h"):
        yield from _single_layers(checkpoint, traits, engine)
    else:
        kinds = layer_kinds(checkpoint)
        for layer in range(checkpoint.layers):
            yield from _layer(checkpoint, traits, engine, layer, kinds[layer])


def _outside(checkpoint: Checkpoint, traits: Traits, ranks: int) -> Iterator[Part]:
    """Embedding, head and last norm."""
    vocab = checkpoint.count("vocab_size")
    rows = VOCAB_PADDING * -(-vocab // VOCAB_PADDING) // ranks
    hidden = checkpoint.hidden
    yield plain("embed_tokens", rows * hidden)
    if not checkpoint.tied and not _headless(checkpoint):
        yield plain("lm_head", rows * hidden)
    yield plain("norm", traits.final_norms * hidden * (2 if traits.norm_bias else 1))
    yield from _outside_of_family(checkpoint, ranks)


def _headless(checkpoint: Checkpoint) -> bool:
    """Whether the class makes embeddings: it has no head."""
    return not checkpoint.architecture.endswith(("LM", "Generation", "Diffusion"))


def _outside_of_family(checkpoint: Checkpoint, ranks: int) -> Iterator[Part]:
    hidden, kind = checkpoint.hidden, checkpoint.model_type
    if traits_of(checkpoint) is ENCODER:  # positions, token types and their norm
        rows = checkpoint.count("max_position_embeddings") + checkpoint.count("type_vocab_size", default=2) + 2
        yield plain("embeddings", rows * hidden)
    if kind in LEARNED_POSITIONS:
        yield plain("positions", (checkpoint.longest + LEARNED_POSITIONS[kind]) * hidden)
    if kind.startswith("diffusion_gemma"):
        yield plain("self_conditioning.norm", hidden)
        yield Part("self_conditioning.mlp", 3 * checkpoint.count("intermediate_size"), hidden)
    if (size := checkpoint.get("hidden_size_per_layer_input")) and kind.startswith(("gemma", "embedding_gemma")):
        wide = checkpoint.layers * int(size)
        rows = checkpoint.count("vocab_size_per_layer_input", default=0)
        yield plain("embed_tokens_per_layer", rows // ranks * wide)
        yield Part("per_layer_model_projection", wide // ranks, hidden)
        yield plain("per_layer_projection_norm", int(size))
    if (width := checkpoint.get("embedding_dim")) and kind.startswith("embedding_gemma"):
        yield Part("embedding_projection", int(width), hidden)
    copies = checkpoint.count("hc_mult", "hc_count", default=0)
    if copies and kind.startswith(("deepseek_v4", "hy_v4")):
        yield plain("hc_head", copies * copies * hidden + copies + 1, SINGLE)
    if copies and kind.startswith("qwen4_exp"):
        low = checkpoint.count("hc_lowrank")
        yield plain("hyper_connection_mixer", copies * hidden * (1 + 2 * low) - hidden)
        yield from _ngrams(checkpoint, copies, ranks)
    if checkpoint.get("attn_res_block_size"):
        yield plain("output_attn_res", 2 * hidden)
    if kind.startswith("hrm_text"):
        yield plain("z_L_init", hidden)
    if kind.startswith("zaya"):
        yield plain("input_scale", 2 * hidden)


def _ngrams(checkpoint: Checkpoint, copies: int, ranks: int) -> Iterator[Part]:
    """Qwen3.8-Flash-Next's n-gram embedding: a table in host memory, and what mixes it in."""
    if not checkpoint.get("ple_layer_ids"):
        return
    hidden, size = checkpoint.hidden, checkpoint.count("ple_embed_dim")
    heads, longest = checkpoint.count("heads_per_ngram"), checkpoint.count("ngram_size")
    tables = heads * (longest - 1)
    multiple = checkpoint.count("make_ngram_vocab_size_divisible_by", default=1)
    rows = multiple * -(-_ngram_rows(checkpoint, tables) // multiple)
    yield plain(HOST_TABLE, rows // ranks * (size // tables))
    wide = copies * hidden
    yield Part("ple.kv_proj", wide + hidden, size)
    yield plain("ple.norms", 3 * wide + wide * checkpoint.count("ple_conv_kernel_size"))


def _ngram_rows(checkpoint: Checkpoint, tables: int) -> int:
    """Rows of all n-gram tables: each takes the next prime after the base (qwen4_exp/common/ple)."""
    base, total = checkpoint.count("ngram_vocab_size_base"), 0
    candidate = base
    for _ in range(tables):
        candidate = _next_prime(candidate)
        total += candidate
    return total


def _next_prime(above: int) -> int:
    number = above + 1
    while any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


def _layer(checkpoint: Checkpoint, traits: Traits, engine: EngineArguments, layer: int, kind: str) -> Iterator[Part]:
    """One ordinary layer: mixer, feed-forward part and norms."""
    ranks, hidden = engine.ranks, checkpoint.hidden
    yield from _mixer(checkpoint, traits, engine, layer, kind)
    if checkpoint.model_type not in STATES_ONLY:
        yield from feed_forward(checkpoint, traits, layer, engine)
    norms = traits.norms * hidden * (2 if traits.norm_bias else 1)
    if checkpoint.get("hc_count"):
        norms = 0  # Qwen4Exp normalises inside its hyper-connections
    yield plain(f"layers.{layer}.norms", norms)
    yield from _layer_extras(checkpoint, layer, ranks)


def _mixer(checkpoint: Checkpoint, traits: Traits, engine: EngineArguments, layer: int, kind: str) -> Iterator[Part]:
    ranks = engine.ranks
    if checkpoint.get("compress_ratios") is not None:
        yield from mixers.compressed(checkpoint, layer, ranks, int(checkpoint.get("compress_ratios")[layer]))
        return
    if checkpoint.model_type.startswith("inkling"):
        yield from mixers.inkling(checkpoint, layer, kind, ranks)
        return
    if checkpoint.model_type.startswith("zaya"):
        yield from mixers.zaya(checkpoint, layer, ranks)
        return
    has_latent = checkpoint.get("kv_lora_rank") is not None
    if has_latent:
        kind = latent_kinds(checkpoint)[layer]
    if kind in ("state", "both"):
        yield from _state(checkpoint, layer, ranks)
    if kind in ("state", "none"):
        return
    if has_latent:
        yield from mixers.latent(checkpoint, layer, ranks)
    else:
        own = checkpoint.layers - checkpoint.count("num_kv_shared_layers", default=0)
        yield from mixers.attention(checkpoint, traits, layer, kind, ranks, shares=layer >= own)


def _state(checkpoint: Checkpoint, layer: int, ranks: int) -> Iterator[Part]:
    """The part of a layer that holds a state."""
    rule = state_rule(checkpoint)
    if rule is kimi_delta:
        yield from mixers.kimi_delta(checkpoint, layer, ranks)
    elif rule is mamba1:
        yield from mixers.mamba1(checkpoint, layer, ranks)
    elif rule is mamba2:
        yield from mixers.mamba2(checkpoint, layer, ranks)
    elif rule is short_convolution:
        yield from mixers.short_convolution(checkpoint, layer, ranks)
    else:
        yield from mixers.gated_delta_net(checkpoint, layer, ranks)


def _layer_extras(checkpoint: Checkpoint, layer: int, ranks: int) -> Iterator[Part]:
    """What only some families have in each layer."""
    hidden, kind = checkpoint.hidden, checkpoint.model_type
    copies = checkpoint.count("hc_mult", "hc_count", default=0)
    if copies and kind.startswith(("deepseek_v4", "glm5_next")):
        rows = (2 + copies) * copies
        yield plain(f"layers.{layer}.hc", 2 * (rows * copies * hidden + rows + 3), SINGLE)
    if copies and kind.startswith("hy_v4"):
        rows = 2 * copies
        yield plain(f"layers.{layer}.hc", 2 * (rows * copies * hidden + rows + 2), SINGLE)
    if copies and kind.startswith("qwen4_exp"):
        wide, low = copies * hidden, checkpoint.count("hc_lowrank")
        rows = low + 16  # `input_mix_weight_down_block_inject`
        yield plain(f"layers.{layer}.hyper_connections", 2 * (wide + rows * wide + wide * low))
    if checkpoint.get("attn_res_block_size"):
        yield plain(f"layers.{layer}.residuals", 4 * hidden)
    if (size := checkpoint.get("hidden_size_per_layer_input")) and kind.startswith(("gemma", "embedding_gemma")):
        yield Part(f"layers.{layer}.per_layer_input_gate", int(size), hidden)
        yield Part(f"layers.{layer}.per_layer_projection", hidden, int(size))
        yield plain(f"layers.{layer}.post_per_layer_input_norm", hidden)
    if kind.startswith("gemma4") and checkpoint.get("enable_moe_block"):
        yield from dense(checkpoint, Traits(), f"layers.{layer}.mlp", checkpoint.count("intermediate_size"), ranks)
        yield plain(f"layers.{layer}.moe_norms", 3 * hidden)
    if kind.startswith("zaya"):
        yield plain(f"layers.{layer}.scales", 8 * hidden)
    if kind.startswith("deepseek_v4") and layer < checkpoint.count("num_hash_layers", default=0):
        elements = checkpoint.count("vocab_size") * checkpoint.count("num_experts_per_tok")
        yield plain(f"layers.{layer}.ffn.gate.tid2eid", elements, SINGLE)


def _single_layers(checkpoint: Checkpoint, traits: Traits, engine: EngineArguments) -> Iterator[Part]:
    """Nemotron-H: a layer is a mixer or a feed-forward part, with one norm."""
    names = checkpoint.get("layers_block_type", "hybrid_override_pattern")
    for layer, kind in enumerate(layer_kinds(checkpoint)):
        name = str(names[layer])
        if kind == "state":
            yield from mixers.mamba2(checkpoint, layer, engine.ranks)
        elif kind == "none" and name in ("moe", "E"):
            yield from feed_forward(checkpoint, traits, layer, engine)
        elif kind == "none":
            yield from dense(
                checkpoint, traits, f"layers.{layer}.mlp", checkpoint.count("intermediate_size"), engine.ranks
            )
        else:
            yield from mixers.attention(checkpoint, traits, layer, kind, engine.ranks, shares=False)
        yield plain(f"layers.{layer}.norm", checkpoint.hidden)


def _double_layers(checkpoint: Checkpoint, traits: Traits, engine: EngineArguments) -> Iterator[Part]:
    """LongCat: two attentions, two dense parts and one set of experts a layer."""
    width = checkpoint.count("ffn_hidden_size")
    for layer in range(checkpoint.layers):
        for half in range(2):
            yield from mixers.latent(checkpoint, layer, engine.ranks, f"layers.{layer}.self_attn.{half}")
            yield from dense(checkpoint, traits, f"layers.{layer}.mlps.{half}", width, engine.ranks)
        yield from feed_forward(checkpoint, traits, layer, engine)
        yield plain(f"layers.{layer}.norms", 4 * checkpoint.hidden)


def _looped_layers(checkpoint: Checkpoint, traits: Traits, engine: EngineArguments) -> Iterator[Part]:
    """HRM-Text: two stacks of layers, run many times."""
    for layer in range(2 * checkpoint.count("num_layers_per_stack")):
        yield from mixers.attention(checkpoint, traits, layer, "full", engine.ranks, shares=False)
        yield from feed_forward(checkpoint, traits, layer, engine)


def _puzzle_layers(checkpoint: Checkpoint, engine: EngineArguments) -> Iterator[Part]:
    """Nemotron-NAS: layers without attention or without a feed-forward part have no norm for it."""
    head, ranks = checkpoint.head_dim, engine.ranks
    for layer, block in enumerate(checkpoint.need("block_configs")):
        section = block.get("attention") or {}
        if not section.get("no_op") and section.get("n_heads_in_group"):
            kv = max(1, checkpoint.heads // int(section["n_heads_in_group"]) // ranks)
            yield Part(
                f"layers.{layer}.self_attn.q_proj", (checkpoint.heads // ranks + 2 * kv) * head, checkpoint.hidden
            )
            yield Part(f"layers.{layer}.self_attn.o_proj", checkpoint.hidden, checkpoint.heads * head // ranks)
            yield plain(f"layers.{layer}.input_layernorm", checkpoint.hidden)
        yield from puzzle(checkpoint, block, layer, ranks)
        yield plain(f"layers.{layer}.post_attention_layernorm", checkpoint.hidden)
