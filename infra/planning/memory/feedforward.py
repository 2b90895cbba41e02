"""The tensors of a layer's feed-forward part on one GPU: dense, or a router with experts and shared experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.memory.parts import SINGLE, Part, plain
from modelfleet.infra.planning.memory.traits import Traits

EXPERT_KEYS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
#: Keys of the experts that a token goes through.
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_topk", "moe_k")
#: MXFP4 kernels pad an expert's width and the hidden size: Triton's on Hopper, Marlin's before it, TensorRT's after.
MXFP4_PADDING = {7: (128, 256), 8: (128, 256), 9: (64, 64), 10: (256, 256), 12: (128, 256)}


def experts_of(checkpoint: Checkpoint) -> int:
    """Routed experts; 0 for a dense model."""
    if checkpoint.get("enable_moe_block") is False:
        return 0
    found = checkpoint.get(*EXPERT_KEYS)
    return int(found[0] if isinstance(found, list) else found or 0)


def chosen_experts(checkpoint: Checkpoint) -> int:
    """Experts that a token goes through; 1 for a dense model."""
    found = checkpoint.get(*CHOSEN, default=1)
    return int(found[0] if isinstance(found, list) else found or 1)


def is_sparse(checkpoint: Checkpoint, layer: int) -> bool:
    """Whether a layer's feed-forward part has experts."""
    if not experts_of(checkpoint):
        return False
    if (step := checkpoint.get("interleave_moe_layer_step")) is not None:
        return (layer + 1) % int(step) == 0 if step else False
    if (first := checkpoint.get("moe_layer_start_index")) is not None:
        start = min(first) if isinstance(first, list) else int(first)
        return layer >= start and (layer + 1) % checkpoint.count("moe_layer_interval", default=1) == 0
    if isinstance(named := checkpoint.get("moe_layers_enum"), str):
        return str(layer) in named.split(",")
    every = checkpoint.get("moe_layer_freq")
    if isinstance(every, list):
        return bool(every[layer])
    if checkpoint.given("first_k_dense_replace") or checkpoint.model_type == "kimi_linear":
        return layer >= checkpoint.count("first_k_dense_replace", default=0) and layer % int(every or 1) == 0
    if isinstance(kinds := checkpoint.get("mlp_layer_types"), list):
        return "dense" not in str(kinds[min(layer, len(kinds) - 1)])  # a multi-token layer is like the last
    if (dense := checkpoint.get("num_dense_layers", "first_k_dense_replace")) is not None:
        return layer >= int(dense)
    if layer in (checkpoint.get("mlp_only_layers") or []):
        return False
    return (layer + 1) % checkpoint.count("decoder_sparse_step", "expert_layer_period", default=1) == 0


def feed_forward(checkpoint: Checkpoint, traits: Traits, layer: int, engine: EngineArguments) -> Iterator[Part]:
    """The feed-forward part of a layer."""
    ranks = engine.ranks
    if is_sparse(checkpoint, layer):
        yield from _experts(checkpoint, traits, layer, engine)
    else:
        width = checkpoint.get("intermediate_size_mlp", "dense_intermediate_size", "ffn_hidden_size")
        width = width or checkpoint.get("intermediate_size", "n_inner", "ffn_dim") or 4 * checkpoint.hidden
        width = int(width[layer] if isinstance(width, list) else width)
        if checkpoint.get("use_double_wide_mlp") and layer >= checkpoint.layers - checkpoint.count(
            "num_kv_shared_layers"
        ):
            width *= 2  # Gemma 4: layers that read another's keys and values are wider
        yield from dense(checkpoint, traits, f"layers.{layer}.mlp", _adjusted(checkpoint, width), ranks)


def _adjusted(checkpoint: Checkpoint, width: int) -> int:
    """LFM2 takes two thirds of its width, in multiples (lfm2.py: `block_auto_adjust_ff_dim`)."""
    if not checkpoint.get("block_auto_adjust_ff_dim"):
        return width
    width = int(int(2 * width / 3) * checkpoint.get("block_ffn_dim_multiplier", default=1.0))
    multiple = checkpoint.count("block_multiple_of", default=256)
    return multiple * -(-width // multiple)


def dense(checkpoint: Checkpoint, traits: Traits, name: str, width: int, ranks: int, inputs: int = 0) -> Iterator[Part]:
    """Gate, up and down; without a gate two matrices."""
    hidden, local = inputs or _inputs(checkpoint), width // ranks
    rows = 2 * local if traits.gated else local
    biased = bool(checkpoint.get("mlp_bias", "use_mlp_bias")) or (traits.norm_bias and not traits.gated)
    yield Part(f"{name}.gate_proj", rows, hidden, bias=rows if biased else 0, pieces=1 + traits.gated)
    yield Part(f"{name}.down_proj", hidden, local, bias=hidden if biased else 0)


def _inputs(checkpoint: Checkpoint) -> int:
    """Width of the feed-forward part's input; LFM2's config has one of its own."""
    return (
        checkpoint.count("block_dim", default=checkpoint.hidden)
        if checkpoint.model_type == "lfm2"
        else checkpoint.hidden
    )


def _experts(checkpoint: Checkpoint, traits: Traits, layer: int, engine: EngineArguments) -> Iterator[Part]:
    """Router, experts and shared experts. Whole experts are dealt out; the first GPUs have those that do not divide.

    Only the experts are: attention, router and shared experts stay as tensor parallel has them (vLLM 0.32
    `fused_moe/config.py`, `FusedMoEParallelConfig.make`; `expert_map_manager.py`, `determine_expert_map`).
    """
    name, hidden, count, ranks = f"layers.{layer}.mlp", checkpoint.hidden, experts_of(checkpoint), engine.ranks
    width = checkpoint.get("moe_intermediate_size", "expert_ffn_hidden_size")
    width = width[0] if isinstance(width, list) else width or checkpoint.need("intermediate_size")
    inner = checkpoint.count("moe_latent_size", "routed_expert_hidden_size", default=hidden)
    yield from _router(checkpoint, traits, layer, count)
    among = engine.expert_ranks
    own, local = (-(-count // among), int(width)) if engine.experts_whole else (count, int(width) // among)
    padded, wide = local, inner
    if str(checkpoint.quantization.get("quant_method")) in ("mxfp4", "gpt_oss_mxfp4"):
        step, step_hidden = MXFP4_PADDING.get(engine.capability[0], (64, 64))
        padded, wide = step * -(-local // step), step_hidden * -(-inner // step_hidden)
    biased = checkpoint.model_type == "gpt_oss"
    rows = (2 if traits.gated else 1) * padded
    experts = f"layers.{layer}.experts" if checkpoint.model_type.startswith("gemma4") else f"{name}.experts"
    yield Part(experts, rows, wide, own, rows if biased else 0, expert=True, pieces=1 + traits.gated)
    yield Part(experts, wide, padded, own, wide if biased else 0, expert=True)
    if inner != hidden:
        yield Part(f"{name}.fc1_latent_proj", inner, hidden)
        yield Part(f"{name}.fc2_latent_proj", hidden, inner)
        if checkpoint.get("latent_moe_use_norm"):
            yield plain(f"{name}.latent_norm", inner)
    yield from _shared(checkpoint, traits, name, int(width), ranks)


def _router(checkpoint: Checkpoint, traits: Traits, layer: int, count: int) -> Iterator[Part]:
    name, hidden = f"layers.{layer}.mlp.gate", checkpoint.hidden
    rows = count + checkpoint.count("zero_expert_num", default=0)
    if checkpoint.model_type.startswith("inkling"):
        rows += checkpoint.count("n_shared_experts", default=0)
        rows = 8 * -(-rows // 8)
    if checkpoint.model_type.startswith("zaya"):
        yield from _zaya_router(checkpoint, layer, count)
        return
    yield plain(name, rows * hidden, traits.router_bytes)
    if checkpoint.model_type == "gpt_oss":
        yield plain(f"{name}.bias", rows)
    if checkpoint.model_type.startswith("gemma4"):
        yield plain(f"{name}.scales", hidden + count)
    topk = checkpoint.get("topk_method", default="noaux_tc")
    if traits.correction and topk == "noaux_tc":
        yield plain(f"{name}.correction", rows, SINGLE)


def _zaya_router(checkpoint: Checkpoint, layer: int, count: int) -> Iterator[Part]:
    """A small network with a state that passes from layer to layer, and one more choice: no expert."""
    size, hidden = checkpoint.count("router_hidden_size", default=256), checkpoint.hidden
    own = size * hidden + size + size + 2 * (size * size + size) + (count + 1) * size
    yield plain(f"layers.{layer}.mlp.gate", own + (size if layer else 0))


def shared_width(checkpoint: Checkpoint, width: int) -> int:
    """Width of all shared experts together, which are one matrix; `width` is an expert's. 0 without any."""
    named = checkpoint.get(
        "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "share_expert_dim",
        "shared_intermediate_size",
    )  # fmt: skip
    count = checkpoint.get("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
    count = count[0] if isinstance(count, list) else count
    if checkpoint.model_type.startswith("llama4"):
        return checkpoint.count("intermediate_size")
    if named is not None and checkpoint.model_type != "minimax_m3":
        return int(named)
    return int(count or 0) * width


def _shared(checkpoint: Checkpoint, traits: Traits, name: str, width: int, ranks: int) -> Iterator[Part]:
    """Shared experts, which every GPU has a part of."""
    if not (total := shared_width(checkpoint, width)):
        return
    if checkpoint.model_type.startswith("inkling"):
        local = total // ranks
        yield Part(f"{name}.shared_experts", 2 * local, checkpoint.hidden, expert=True)
        yield Part(f"{name}.shared_experts", checkpoint.hidden, local, expert=True)
        return
    yield from dense(checkpoint, traits, f"{name}.shared_experts", total, ranks, inputs=checkpoint.hidden)
    if checkpoint.model_type.startswith(("qwen2_moe", "qwen3_next", "qwen3_5", "qwen4_exp")):
        yield plain(f"{name}.shared_expert_gate", checkpoint.hidden)


def puzzle(checkpoint: Checkpoint, block: Mapping[str, object], layer: int, ranks: int) -> Iterator[Part]:
    """Nemotron-NAS: each layer has its own width (nemotron_nas.py: `_ffn_mult_to_intermediate_size`)."""
    section = block.get("ffn")
    if not isinstance(section, Mapping) or section.get("no_op"):
        return
    multiplier = float(section.get("ffn_mult") or 0)
    width = int(2 * multiplier * checkpoint.hidden / 3)
    width += -width % 256
    yield from dense(checkpoint, Traits(), f"layers.{layer}.mlp", width, ranks)
