"""Which caches each layer of a decoder has: from a config.json to a list of `Cache`, as vLLM builds its layers.

Source: the model classes of vLLM 0.32.0 (vllm/model_executor/models, vllm/models) and transformers' rules for a missing
`layer_types`. What a layer keeps follows from features of the config (a latent rank, an indexer, a window, a state), so
a new model of a known kind needs no line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelfleet.infra.planning.memory import states
from modelfleet.infra.planning.memory.blocks import base_block, hybrid_block
from modelfleet.infra.planning.memory.caches import Cache, Kind
from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.engine import EngineArguments, kv_dtype, kv_value_bytes
from modelfleet.infra.planning.memory.kinds import (
    EXPANDED_LATENTS,
    STATES_ONLY,
    head_shape,
    index_leader,
    latent_kinds,
    layer_kinds,
)
from modelfleet.infra.planning.memory.stages import layers_of
from modelfleet.infra.planning.memory.traits import traits_of

#: Bytes of one token in the packed 8-bit and 4-bit latent caches (mla_attention.py, deepseek_v4/attention.py).
PACKED_LATENT = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
COMPRESSED_TOKEN = 584
#: Pages of DeepGEMM's indexer, in stored keys.
INDEX_PAGES = (32, 64)
#: Tokens of a block of DeepSeek V4's window, and of its compressors' states by ratio.
V4_WINDOW_BLOCK = 64
V4_STATE_BLOCKS = {4: 4, 128: 8}
#: Page multiples of DeepSeek V4's layout.
V4_ALIGNMENT = 576


@dataclass(frozen=True)
class Layout:
    """All caches of a model in the order of its layers; `sharing` layers read another layer's cache."""

    caches: tuple[Cache, ...]
    block: int
    packed: bool
    sharing: int
    mamba_mode: str
    kv_dtype: str


@dataclass(frozen=True)
class Reading:
    """A checkpoint with the engine's arguments, as the rules below need them."""

    checkpoint: Checkpoint
    engine: EngineArguments
    dtype: str
    block: int

    @property
    def value(self) -> float:
        """Bytes of one cached value."""
        return kv_value_bytes(self.dtype)

    def heads(self, total: int) -> int:
        """KV heads on one GPU: divided until one is left on each, then copied."""
        return max(1, total // self.engine.ranks)


#: The caches of what drafts for a model: they lie in the model's own pool.
DraftCaches = Callable[[Reading], Sequence[Cache]]


def layout_of(checkpoint: Checkpoint, engine: EngineArguments, draft: DraftCaches = lambda _: ()) -> Layout:
    """The caches of a model under these arguments. Raises `UnknownShapeError`."""
    traits_of(checkpoint)  # refuses families whose layers are not known
    if checkpoint.model_type in STATES_ONLY:
        engine = dataclasses.replace(engine, prefix_caching=False)
    dtype = kv_dtype(checkpoint, engine.kv_dtype)
    if encoder_only(checkpoint):
        return Layout((), base_block(checkpoint, dtype, engine.capability), False, 0, "none", dtype)
    block = base_block(checkpoint, dtype, engine.capability)
    reading = Reading(checkpoint, engine, dtype, block)
    found, sharing = caches_of(reading)
    if engine.stages > 1 and len(found) == checkpoint.layers:  # `fit.uncounted_by_stage` refuses other models
        found = [found[layer] for layer in layers_of(checkpoint.layers, engine.stages)[engine.stage]]
    found += draft(reading)
    layered = [cache for cache in found if cache.kind is Kind.STATE]
    if layered:
        found, block = _aligned(found, checkpoint, block)
    mode = "align" if layered and engine.prefix_caching else "none"
    return Layout(tuple(found), block, _packed(checkpoint), sharing, mode, dtype)


def encoder_only(checkpoint: Checkpoint) -> bool:
    """Whether the model keeps no cache at all: encoders for embedding, ranking and classification."""
    return checkpoint.model_type in {
        "bert", "roberta", "xlm-roberta", "xlm_roberta", "modernbert", "nomic_bert", "new", "gte", "clip", "siglip",
        "distilbert", "deberta-v2", "electra", "mpnet", "eurobert", "ettin",
    } or checkpoint.get("is_causal") is False or checkpoint.get("use_bidirectional_attention") is True  # fmt: skip


def _packed(checkpoint: Checkpoint) -> bool:
    """Whether a layer's backend asks for a layout whose blocks hold pages of different sizes."""
    kpool = checkpoint.get("index_kpool") is not None
    return (
        kpool or checkpoint.get("compress_ratios") is not None or checkpoint.get("indexer_compress_ratio") is not None
    )


def _aligned(caches: Sequence[Cache], checkpoint: Checkpoint, block: int) -> tuple[list[Cache], int]:
    """The caches with pages of states and attention made equal (`_align_hybrid_block_size`)."""
    largest = max(cache.page for cache in caches if cache.kind is Kind.STATE)
    attention = [cache for cache in caches if cache.kind in (Kind.FULL, Kind.LATENT)]
    if not attention:
        return list(caches), block
    token = round(attention[0].per_token)
    new = hybrid_block(checkpoint, largest, token, block)
    page = new * token
    found = []
    for cache in caches:
        if cache.kind is Kind.STATE:
            found.append(dataclasses.replace(cache, block=new, padded=page))
        elif cache.block == block:
            found.append(dataclasses.replace(cache, block=new))
        else:
            found.append(cache)
    return found, new


def caches_of(reading: Reading) -> tuple[list[Cache], int]:
    """The caches of all layers, and how many layers share another's."""
    checkpoint = reading.checkpoint
    if checkpoint.get("compress_ratios") is not None:
        return _compressed(reading), 0
    if checkpoint.model_type.startswith("inkling"):
        return _inkling(reading), 0
    if checkpoint.get("kv_lora_rank") and checkpoint.model_type not in EXPANDED_LATENTS:
        return _latent(reading), 0
    if checkpoint.get("block_configs") is not None:
        return _puzzle(reading), 0
    own = _own_layers(checkpoint)
    kinds = layer_kinds(checkpoint)
    found = [cache for layer, name in enumerate(kinds[:own]) for cache in plain_caches(reading, layer, name)]
    if checkpoint.get("ple_layer_ids"):
        at = int(checkpoint.get("ple_layer_ids")[0])
        found.insert(min(at, len(found)), _state_cache(reading, states.ngram_convolution, "ngram"))
    return found, max(0, len(kinds) - own)


def _own_layers(checkpoint: Checkpoint) -> int:
    """Layers with a cache of their own: the last `num_kv_shared_layers` read an earlier layer's (Gemma 3n, 4)."""
    total = len(layer_kinds(checkpoint))
    return total - checkpoint.count("num_kv_shared_layers", default=0)


def plain_caches(reading: Reading, layer: int, kind: str) -> Iterator[Cache]:
    """The caches of one layer with ordinary keys and values, or with a state."""
    if kind == "none":
        return
    if kind in ("state", "both"):
        yield _state_cache(reading, state_rule(reading.checkpoint))
    if kind == "state":
        return
    heads, key, value = head_shape(reading.checkpoint, layer, kind)
    cell = round((key + value) * reading.value)
    cache = Cache(Kind.FULL, reading.block, cell, reading.heads(heads))
    if kind == "window":
        yield _windowed(reading, cache)
    elif kind == "chunk":
        yield dataclasses.replace(cache, kind=Kind.CHUNK, bound=reading.checkpoint.count("attention_chunk_size"))
    else:
        yield cache
    yield from _indexers(reading, layer)


def _windowed(reading: Reading, cache: Cache) -> Cache:
    """The cache with the model's window."""
    bound = reading.checkpoint.count("sliding_window", "sliding_window_size")
    if reading.checkpoint.model_type in ("cohere2", "cohere2_moe"):
        bound += 1  # Cohere's window counts the tokens before the present one (commandr.py)
    return dataclasses.replace(cache, kind=Kind.WINDOW, bound=bound)


def state_rule(checkpoint: Checkpoint) -> states.StateOf:
    """How the states of this model are computed."""
    kind = checkpoint.model_type
    if checkpoint.get("linear_attn_config") is not None or checkpoint.get("linear_head_dim") is not None:
        return states.kimi_delta
    if checkpoint.get("linear_num_value_heads") is not None:
        return states.gated_delta_net
    if checkpoint.get("conv_L_cache") is not None:
        return states.short_convolution
    if kind in ("mamba", "falcon_mamba", "jamba"):
        return states.mamba1
    if kind.startswith("bailing"):
        return states.linear_attention
    return states.mamba2


def _state_cache(reading: Reading, rule: states.StateOf, role: str = "") -> Cache:
    state = rule(reading.checkpoint, reading.engine)
    held = states.copies(state, reading.engine)
    return Cache(Kind.STATE, reading.block, state.size, copies=held, role=role or ("r" if state.replicated else ""))


def _indexers(reading: Reading, layer: int) -> Iterator[Cache]:
    """Caches of a sparse attention beside ordinary keys and values: MiniMax-M3, Qwen3.8-Flash-Next."""
    checkpoint = reading.checkpoint
    sparse = checkpoint.get("sparse_attention_config")
    if isinstance(sparse, Mapping) and sparse.get("sparse_attention_freq", [0])[layer]:
        yield Cache(Kind.INDEX, reading.block, int(sparse["sparse_index_dim"]) * states.MODEL_BYTES)
    if (ratio := checkpoint.get("indexer_compress_ratio")) is not None:
        cell = checkpoint.count("indexer_head_dim") * states.MODEL_BYTES
        span = -(-(int(ratio) + reading.engine.drafts) // int(ratio)) * int(ratio)
        yield Cache(Kind.RING, span, cell)
        yield Cache(Kind.INDEX, reading.block, cell, ratio=int(ratio))


def _latent(reading: Reading) -> list[Cache]:
    """Multi-head latent attention, with states in between."""
    checkpoint = reading.checkpoint
    found: list[Cache] = []
    for layer, kind in enumerate(latent_kinds(checkpoint)):
        if kind == "state":
            found.append(_state_cache(reading, state_rule(checkpoint)))
        else:
            found += latent_caches(reading, layer)
    return found


def latent_caches(reading: Reading, layer: int) -> list[Cache]:
    """One vector a token, whole on each GPU, and DSA's index caches."""
    checkpoint, dtype = reading.checkpoint, reading.dtype
    width = checkpoint.count("kv_lora_rank") + checkpoint.count("qk_rope_head_dim", default=0)
    cell = PACKED_LATENT.get(dtype) or round(width * reading.value)
    leads = index_leader(checkpoint, layer)
    sparse = checkpoint.get("index_topk") is not None
    latent = Cache(Kind.LATENT, reading.block, cell, role="leader" if leads else "", kernel=int(sparse))
    return [latent, *_latent_index(reading)] if leads else [latent]


def _latent_index(reading: Reading) -> list[Cache]:
    """An indexer's keys in FP8 with one FP32 scale per 128, and the ring in which a group of tokens is pooled."""
    size = reading.checkpoint.count("index_head_dim", default=128)
    pool = reading.checkpoint.count("index_kpool", default=1)
    largest = INDEX_PAGES[-1] * pool
    index = Cache(Kind.INDEX, reading.block, size + size // 128 * 4, ratio=pool, kernel=largest)
    if pool == 1:
        return [index]
    groups = -(-(pool + reading.engine.drafts) // pool)
    ring = pool * (1 << (groups - 1).bit_length())
    return [index, Cache(Kind.RING, ring, size * states.MODEL_BYTES, heads=2, sharded=False)]


def _compressed(reading: Reading) -> list[Cache]:
    """DeepSeek V4: a window in every layer, compressed keys of every 4th or 128th token, the compressors' states."""
    checkpoint = reading.checkpoint
    packed = reading.dtype == "fp8_ds_mla"
    align = V4_ALIGNMENT if packed else 512
    head, index = checkpoint.head_dim, checkpoint.count("index_head_dim", default=128)
    cell = COMPRESSED_TOKEN if packed else round(head * reading.value)
    window = Cache(
        Kind.WINDOW, V4_WINDOW_BLOCK, cell, bound=checkpoint.count("sliding_window"), alignment=align, role="window"
    )
    found: list[Cache] = []
    for ratio in list(checkpoint.need("compress_ratios"))[: checkpoint.layers]:
        found.append(window)
        if ratio <= 1:
            continue
        found.append(Cache(Kind.LATENT, reading.block, cell, ratio=ratio, alignment=align, role="compressed"))
        found.append(_compressor(ratio, head, align))
        if ratio == 4:
            found.append(Cache(Kind.INDEX, reading.block, index + index // 128 * 4, ratio=ratio, alignment=align))
            found.append(_compressor(ratio, index, align))
    return found


def _compressor(ratio: int, head: int, align: int) -> Cache:
    """A compressor's open group: key and score of its tokens in FP32; groups of four overlap."""
    overlap = 2 if ratio == 4 else 1
    return Cache(Kind.WINDOW, V4_STATE_BLOCKS[ratio], 2 * overlap * head * 4, bound=overlap * ratio, alignment=align)


def _inkling(reading: Reading) -> list[Cache]:
    """Inkling: attention of two shapes, and in each layer a window of its short convolutions' inputs."""
    checkpoint = reading.checkpoint
    kernel = checkpoint.count("sconv_kernel_size", "conv_kernel_size", default=4)
    found: list[Cache] = []
    for layer, kind in enumerate(layer_kinds(checkpoint)):
        heads, key, value = head_shape(checkpoint, layer, kind)
        cache = Cache(Kind.FULL, reading.block, round((key + value) * reading.value), reading.heads(heads))
        if kind == "window":
            cache = _windowed(reading, cache)
        raw = 2 * key + 2 * (checkpoint.hidden // heads)
        width = 1 << (raw - 1).bit_length()
        found += [
            cache,
            Cache(Kind.WINDOW, kernel, width * states.MODEL_BYTES, heads // reading.engine.ranks, bound=kernel),
        ]
    return found


def _puzzle(reading: Reading) -> list[Cache]:
    """Nemotron-NAS (DeciLM): each layer has its own number of KV heads, or no attention."""
    checkpoint = reading.checkpoint
    cell = round(2 * checkpoint.head_dim * reading.value)
    found = []
    for block in checkpoint.need("block_configs"):
        attention = block.get("attention") or {}
        if attention.get("no_op") or attention.get("replace_with_linear") or not attention.get("n_heads_in_group"):
            continue
        heads = checkpoint.heads // int(attention["n_heads_in_group"])
        found.append(Cache(Kind.FULL, reading.block, cell, reading.heads(heads)))
    return found
