"""From a model's memory on one GPU to the shape that its speed is computed from, over all GPUs of a replica."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from modelfleet.infra.planning.memory.answer import ModelMemory
from modelfleet.infra.planning.memory.caches import BOUNDED, Kind
from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.feedforward import chosen_experts, experts_of
from modelfleet.infra.planning.memory.kinds import EXPANDED_LATENTS, head_shape, latent_kinds, layer_kinds
from modelfleet.infra.planning.memory.mixers import query_heads
from modelfleet.infra.planning.memory.parts import format_of
from modelfleet.infra.planning.memory.stored import stored_as
from modelfleet.infra.planning.memory.weights import HOST_TABLE, parts_of
from modelfleet.infra.planning.speed.inputs import SpeedShape, WeightFormat

#: Tables of which a step reads a row a token: nothing beside the layers. A tied embedding is also the head.
LOOKED_UP: Final = ("embed_tokens_per_layer", "positions", "embeddings", HOST_TABLE)
#: How each kind of `Format` multiplies.
FORMATS: Final[dict[str, WeightFormat]] = {
    "": "16bit", "fp8-blocks": "fp8", "fp8-channels": "fp8", "int8-channels": "int8", "8-bit": "fp8", "mxfp8": "fp8",
    "packed": "packed", "mxfp4": "mxfp4", "nvfp4": "nvfp4",
}  # fmt: skip


#: Where a config has the tokens that a layer of that kind attends to.
WINDOWS: Final = {"window": ("sliding_window", "sliding_window_size"), "chunk": ("attention_chunk_size",)}


@dataclass(frozen=True)
class _Weights:
    """Over all GPUs: bytes that every step reads, the experts' bytes, and the elements that a token meets."""

    dense_bytes: float
    expert_bytes: float
    active: float


def shape_of(memory: ModelMemory, tokens: float = math.inf, ratio: float = 1.0) -> SpeedShape:
    """The shape of a model under `memory.engine`, for requests of so many tokens: a window above them is no window.

    `ratio` is what its headers hold of the counted bytes.
    """
    checkpoint, ranks = memory.checkpoint, memory.engine.ranks
    weights, experts, caches = _weights(memory), experts_of(memory.checkpoint), memory.layout.caches
    bounded = [cache for cache in caches if cache.kind in BOUNDED]
    growing = memory.growing_bytes + sum(cache.per_token for cache in bounded if cache.bound >= tokens)
    fixed = memory.state_bytes + sum(cache.bound * cache.per_token for cache in bounded if cache.bound < tokens)
    return SpeedShape(
        layers=checkpoint.layers,
        hidden_size=checkpoint.hidden,
        active_parameters=weights.active,
        dense_bytes=weights.dense_bytes * ratio,
        attention_width=sum(_widths(checkpoint, tokens)),
        kv_bytes_per_token=growing * ranks,
        weight_format=weight_format(checkpoint),
        kv_bytes_per_sequence=(fixed + sum(c.content for c in caches if c.kind is Kind.RING)) * ranks,
        expert_bytes=weights.expert_bytes * ratio,
        experts=experts,
        experts_per_token=chosen_experts(checkpoint) if experts else 0,
    )


def weight_format(checkpoint: Checkpoint) -> WeightFormat:
    """How the most of the weights are stored: that of the experts where they have one of their own."""
    form = format_of(checkpoint)
    if form.experts_only and not experts_of(checkpoint):
        return "16bit"
    return FORMATS[form.experts or form.kind]


def in_precision(checkpoint: Checkpoint, precision: str) -> Checkpoint:
    """The checkpoint stored in that precision: itself where it is already, as its own section says more."""
    stored = stored_as(checkpoint, precision)
    own, asked = format_of(checkpoint), format_of(stored)
    same = weight_format(checkpoint) == weight_format(stored) and own.bits == asked.bits
    return checkpoint if same else stored


def _weights(memory: ModelMemory) -> _Weights:
    checkpoint, engine = memory.checkpoint, memory.engine
    form, experts = format_of(checkpoint), experts_of(checkpoint)
    dense = routed = active = 0.0
    for part in parts_of(checkpoint, engine):
        if (
            part.name in LOOKED_UP
            or part.name.endswith("tid2eid")
            or (part.name == "embed_tokens" and not checkpoint.tied)
        ):
            continue
        size = form.size(part).bytes
        if part.expert and part.copies > 1:
            routed += size
            active += part.elements * chosen_experts(checkpoint) / experts
        else:
            dense += size
            active += part.elements
    return _Weights(dense * engine.ranks, routed * engine.ranks, active * engine.ranks)


def _widths(checkpoint: Checkpoint, tokens: float) -> Iterator[float]:
    """Heads times head size of each layer that attends to all of so many tokens, divided where keys are compressed."""
    if checkpoint.get("block_configs") is not None:  # Nemotron-NAS: layers without attention have no section for it
        for block in checkpoint.need("block_configs"):
            if (block.get("attention") or {}).get("n_heads_in_group"):
                yield checkpoint.heads * checkpoint.head_dim
    elif (ratios := checkpoint.get("compress_ratios")) is not None:
        for ratio in ratios[: checkpoint.layers]:
            yield checkpoint.heads * checkpoint.head_dim / ratio if ratio > 1 else 0.0
    elif checkpoint.get("kv_lora_rank") and checkpoint.model_type not in EXPANDED_LATENTS:
        head = checkpoint.count("qk_nope_head_dim") + checkpoint.count("qk_rope_head_dim", default=0)
        for kind in latent_kinds(checkpoint):
            yield checkpoint.heads * head if kind == "full" else 0.0
    else:
        for layer, kind in enumerate(layer_kinds(checkpoint)):
            if kind in ("full", "both") or (kind in WINDOWS and checkpoint.count(*WINDOWS[kind], default=0) >= tokens):
                yield query_heads(checkpoint, layer, kind) * head_shape(checkpoint, layer, kind)[1]
