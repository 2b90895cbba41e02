"""Does a model fit its GPUs? Compares weights, KV cache and reserve per GPU with what vLLM may use. Pure arithmetic.

vLLM 0.32 uses the share `gpu_memory_utilization` of a GPU's memory. Weights, the peak of a profiling step, CUDA graphs
and communication buffers come first; the rest is KV cache. vLLM refuses to start when one sequence of `max_model_len`
does not fit in the KV cache. Weights and KV cache are vLLM's own arithmetic (`planning/memory`); the reserve is
estimated from the parts below, and corrected by what was measured on the card (measured.csv).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

from modelfleet.infra.catalog import Accelerator, Catalog, Measured, default_catalog
from modelfleet.infra.planning.batch import batch_of
from modelfleet.infra.planning.drafting import drafting_of
from modelfleet.infra.planning.facts import DTYPE_BYTES, ModelFacts
from modelfleet.infra.planning.memory.answer import ModelMemory
from modelfleet.infra.planning.memory.caches import GROWING, Kind
from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.drafts import Draft
from modelfleet.infra.planning.memory.engine import CONCURRENT_BATCHES, EngineArguments
from modelfleet.infra.planning.memory.feedforward import chosen_experts
from modelfleet.infra.planning.memory.parts import HALF
from modelfleet.infra.planning.memory.slots import slots_bytes
from modelfleet.infra.planning.memory.stored import SECTIONS, stored_as
from modelfleet.infra.planning.nodes import MIB
from modelfleet.infra.planning.plan import GpuMemory
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import data_ranks_of, stages_of, tensor_ranks_of
from modelfleet.serving.versions import PINNED

GIB = 1024 * MIB

#: Default of vLLM 0.32.0: config/cache.py.
DEFAULT_UTILIZATION = 0.92
#: Default of vLLM 0.32.0: config/lora.py.
DEFAULT_ADAPTER_RANK = 16
#: CUDA context and library workspaces of one worker, MiB.
CONTEXT_MIB = 512
#: NCCL and custom all-reduce buffers, MiB, when there is more than one worker.
COMMUNICATION_MIB = 512
#: CUDA graphs, MiB; none with `enforce_eager`.
GRAPHS_MIB = 512
#: The profiling step's batch of images or sound, MiB, of a model with such a tower. Not measured.
ENCODER_MIB = 1024
#: Hidden-size and intermediate-size activations alive at once in the profiling step.
LIVE_HIDDEN, LIVE_INTERMEDIATE = 6, 2
#: Bytes per vocabulary entry of one sampled row: logits, their float32 copy, probabilities, a sort with its indices.
#: Chosen for an H100 with vLLM 0.32.0, 2026-11-27: Llama-3.1-8B, Qwen3-8B, gpt-oss-20b; not measured on other cards.
SAMPLER_BYTES = 24
#: The engine samples this many sequences in its profiling step, whatever `max_num_seqs` allows beyond it.
SAMPLED_ROWS = 256


@dataclass(frozen=True)
class Setting:
    """How a model runs, as far as memory is concerned. `quantization` is the method used, None for plain weights."""

    accelerator: Accelerator
    workers: int
    length: int
    utilization: float
    batched_tokens: int
    sequences: int
    value_bytes: float
    kv_dtype: str
    quantization: str | None
    eager: bool
    prefix_caching: bool = True
    drafts: int = 0
    """Tokens drafted a step."""
    adapters: int = 0
    """Adapters in one batch (`max_loras`), for which room is reserved."""
    adapter_rank: int = 16
    part: float = 1.0
    """Of a card that the worker has (`num_gpus_per_worker`)."""
    draft: Draft | None = None
    """What drafts them, where it takes memory and can be counted."""
    experts_whole: bool = False
    """Each worker has whole experts (`enable_expert_parallel`)."""
    stages: int = 1
    """Nodes of a replica, each with `workers` of them: the stages of its pipeline."""
    stage: int = 0
    """Of which the memory is asked."""
    data_ranks: int = 1
    """Data parallel ranks on a node, each with `workers` of them: they share the experts and nothing else."""

    @property
    def gpus(self) -> int:
        """Cards of one replica on a node."""
        return self.workers * self.data_ranks

    @property
    def engine(self) -> EngineArguments:
        """The engine's arguments of one worker."""
        return EngineArguments(
            length=self.length,
            batched_tokens=self.batched_tokens,
            ranks=self.workers,
            kv_dtype=self.kv_dtype,
            capability=self.accelerator.compute_capability,
            prefix_caching=self.prefix_caching,
            drafts=self.drafts,
            batches=1 if self.accelerator.name == CPU else CONCURRENT_BATCHES,
            experts_whole=self.experts_whole,
            stages=self.stages,
            stage=self.stage,
            data_ranks=self.data_ranks,
        )

    @property
    def shares(self) -> EngineArguments:
        """Of the engine's arguments those that decide what of the weights one worker has."""
        capability = self.accelerator.compute_capability
        return EngineArguments(
            1,
            ranks=self.workers,
            capability=capability,
            experts_whole=self.experts_whole,
            stages=self.stages,
            stage=self.stage,
            data_ranks=self.data_ranks,
        )


def setting_of(model: ModelConfig, facts: ModelFacts, accelerator: Accelerator) -> Setting:
    """The setting that a model file asks for; one without a length asks for the checkpoint's."""
    kwargs = model.engine_config.engine_kwargs
    quantization = facts.quantization or kwargs.get("quantization")
    length = model.engine_config.length or default_length(facts)
    batch = batch_of(model, accelerator, length)
    drafting = drafting_of(model, facts.checkpoint, facts.draft)
    return Setting(
        accelerator=accelerator,
        workers=tensor_ranks_of(model),
        length=length,
        utilization=utilization_of(model),
        batched_tokens=batch.tokens,
        sequences=batch.sequences,
        value_bytes=_value_bytes(kwargs.get("dtype")),
        kv_dtype=str(kwargs.get("kv_cache_dtype", "auto")),
        quantization=str(quantization) if quantization else None,
        eager=bool(kwargs.get("enforce_eager", False)),
        prefix_caching=kwargs.get("enable_prefix_caching") is not False,
        drafts=drafting.tokens,
        draft=drafting.draft,
        part=model.scaling_config.num_gpus_per_worker or 1.0,
        adapters=int(kwargs.get("max_loras") or 1) if kwargs.get("enable_lora") is True else 0,
        adapter_rank=int(kwargs.get("max_lora_rank") or DEFAULT_ADAPTER_RANK),
        experts_whole=experts_are_whole(model),
        stages=stages_of(model),
        data_ranks=data_ranks_of(model),
    )


def experts_are_whole(model: ModelConfig) -> bool:
    """Whether each worker has whole experts instead of a part of each."""
    return model.engine_config.engine_kwargs.get("enable_expert_parallel") is True


def utilization_of(model: ModelConfig) -> float:
    """The share of each GPU's memory that vLLM takes: the engine's argument, or vLLM's default."""
    return _fraction(model.engine_config.engine_kwargs.get("gpu_memory_utilization"), DEFAULT_UTILIZATION)


def default_length(facts: ModelFacts) -> int:
    """The length that vLLM takes by itself: with LongRoPE the shorter one, which has the better answers.

    vLLM 0.32 `vllm/config/model.py`, `_get_and_verify_max_len`.
    """
    return facts.checkpoint.default_length


def _value_bytes(dtype: object) -> float:
    """Bytes of an unquantized weight in memory: vLLM loads float32 checkpoints in half precision."""
    return 2.0 if dtype in (None, "auto") else DTYPE_BYTES.get(str(dtype).removeprefix("torch."), 2.0)


def _fraction(value: object, default: float) -> float:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1 else default
    )


@lru_cache(maxsize=512)
def _loaded(checkpoint: Checkpoint, method: str) -> Checkpoint:
    """The checkpoint as a quantization at load leaves it."""
    return stored_as(checkpoint, method)


@lru_cache(maxsize=2048)
def _memory(checkpoint: Checkpoint, engine: EngineArguments, draft: Draft | None = None) -> ModelMemory:
    return ModelMemory(checkpoint, engine, draft)


@lru_cache(maxsize=512)
def _weight_bytes(checkpoint: Checkpoint, shares: EngineArguments) -> tuple[float, float]:
    """Bytes on one GPU and, of these, in host memory."""
    weights = _memory(checkpoint, shares).weights
    return weights.bytes, weights.host_bytes


def memory_in(facts: ModelFacts, setting: Setting) -> ModelMemory:
    """The model's caches and weights under a setting."""
    checkpoint = facts.checkpoint
    if setting.quantization in SECTIONS and facts.quantization is None:
        checkpoint = _loaded(checkpoint, setting.quantization or "")
    return _memory(checkpoint, setting.engine, setting.draft)


@lru_cache(maxsize=512)
def _draft_bytes(checkpoint: Checkpoint, draft: Draft, shares: EngineArguments) -> float:
    """Bytes of a draft's weights on one GPU."""
    return _memory(checkpoint, shares, draft).draft_bytes


def draft_bytes(facts: ModelFacts, setting: Setting) -> float:
    """Bytes of the weights of what drafts, on one GPU: it has the model's dtype where it is not quantized."""
    if (draft := setting.draft) is None:
        return 0.0
    checkpoint = memory_in(facts, setting).checkpoint
    held = _draft_bytes(checkpoint, draft, setting.shares)
    quantized = (draft.checkpoint or checkpoint).quantization
    return held if quantized else held * setting.value_bytes / 2


def weight_bytes(facts: ModelFacts, setting: Setting) -> float:
    """Bytes of the weights on one GPU, with towers for images and sound, what drafts and the adapters' slots."""
    memory = memory_in(facts, setting)
    held, host = _weight_bytes(memory.checkpoint, setting.shares)
    plain = setting.value_bytes / 2 if facts.quantization is None and setting.quantization is None else 1.0
    decoder = (held - host) * plain * facts.header_ratio
    extras = draft_bytes(facts, setting) + adapter_bytes(facts, setting)
    return decoder + facts.encoder_bytes / setting.workers + extras


@lru_cache(maxsize=512)
def _slots_bytes(checkpoint: Checkpoint, shares: EngineArguments) -> float:
    """Bytes of one adapter's slot of rank 1 on one GPU."""
    return slots_bytes(checkpoint, shares, 1, 1)


def adapter_bytes(facts: ModelFacts, setting: Setting) -> float:
    """Bytes that vLLM reserves on one GPU for adapters."""
    if not setting.adapters:
        return 0.0
    one = _slots_bytes(facts.checkpoint, setting.shares)
    return one * setting.adapters * setting.adapter_rank * setting.value_bytes / 2


def host_weight_bytes(facts: ModelFacts, setting: Setting) -> float:
    """Bytes of the weights that a worker keeps in its node's memory instead: vLLM's pinned n-gram tables."""
    memory = memory_in(facts, setting)
    _, host = _weight_bytes(memory.checkpoint, setting.shares)
    return host


def reserve_bytes(facts: ModelFacts, setting: Setting) -> float:
    """Bytes per GPU on top of weights and KV cache: context, communication, graphs, activations, sampler.

    The estimate, whatever was measured: a measurement is kept as its difference from this.
    """
    fixed = (
        CONTEXT_MIB
        + (COMMUNICATION_MIB if setting.gpus * setting.stages > 1 else 0)
        + (0 if setting.eager else GRAPHS_MIB)
    )
    fixed += ENCODER_MIB if facts.encoder_bytes else 0
    row = LIVE_HIDDEN * facts.hidden_size + LIVE_INTERMEDIATE * facts.intermediate_size / setting.workers
    row += _others_rows(facts, setting)
    activations = setting.batched_tokens * row * setting.value_bytes
    rows = min(setting.sequences, setting.batched_tokens, SAMPLED_ROWS)
    return fixed * MIB + activations + rows * facts.vocab_size * SAMPLER_BYTES


def _others_rows(facts: ModelFacts, setting: Setting) -> int:
    """Values per token of the batch that a data parallel rank keeps for those of the other ranks.

    Its experts take and give the hidden states of all batches (vLLM 0.32 `AgRsAll2AllManager`), and their two
    workspaces hold each token once per chosen expert, for all batches at once (`fused_moe/modular_kernel.py`,
    `_allocate_buffers`; `experts/triton_moe.py`, `workspace_shapes`). An upper bound: DeepGEMM's take a quarter less.
    Not measured.
    """
    return 2 * (1 + chosen_experts(facts.checkpoint)) * facts.hidden_size * (setting.data_ranks - 1)


def sequence_bytes(facts: ModelFacts, setting: Setting) -> int:
    """Bytes per GPU that vLLM reserves for one sequence of the full length."""
    memory = memory_in(facts, setting)
    return memory.pool.request_bytes(memory.demand)


def token_bytes(facts: ModelFacts, setting: Setting) -> int:
    """Bytes per GPU of one token in all layers that keep tokens, windows included."""
    kept = (*GROWING, Kind.WINDOW, Kind.CHUNK)
    return round(sum(cache.per_token for cache in memory_in(facts, setting).layout.caches if cache.kind in kept))


def uncounted_by_stage(facts: ModelFacts, setting: Setting) -> bool:
    """Whether a pipeline's caches are not counted: only equal caches, one a layer, divide as its layers do."""
    whole = memory_in(facts, dataclasses.replace(setting, stages=1, stage=0))
    caches = whole.layout.caches
    equal = all(caches[0].shares_block_table(cache) for cache in caches)
    return not equal or len(caches) != whole.checkpoint.layers


def widest_stage(facts: ModelFacts, setting: Setting) -> Setting:
    """The setting at the stage whose caches take most: a sequence needs room in each."""
    stages = (dataclasses.replace(setting, stage=stage) for stage in range(setting.stages))
    return max(stages, key=lambda one: sequence_bytes(facts, one))


def gpu_memory(facts: ModelFacts, setting: Setting) -> GpuMemory:
    """How one GPU's memory is used; `full_length_sequences` 0 means that the model does not fit.

    Of a pipeline's stages it is the one with the fewest sequences: vLLM takes as many blocks in all (vLLM 0.32
    `v1/core/kv_cache_utils.py`, `get_kv_cache_configs`).
    """
    stages = [dataclasses.replace(setting, stage=stage) for stage in range(setting.stages)]
    return min((_stage_memory(facts, one) for one in stages), key=lambda one: one.full_length_sequences)


def _stage_memory(facts: ModelFacts, setting: Setting) -> GpuMemory:
    total = float(setting.accelerator.usable_mib * MIB)
    weights, reserve = weight_bytes(facts, setting), reserve_bytes(facts, setting)
    if row := measured_row(facts, setting):
        at = setting_at(row, setting)
        weights += row.weights_gib * GIB - weight_bytes(facts, at)
        reserve = max(0.0, reserve + row.reserve_gib * GIB - reserve_bytes(facts, at))
    else:
        reserve = max(0.0, reserve + setting.accelerator.reserve_more_mib * MIB)
    cache = max(0.0, total * setting.utilization - weights - reserve)
    return GpuMemory(
        total_mib=setting.accelerator.usable_mib,
        weights_mib=weights / MIB,
        kv_cache_mib=cache / MIB,
        reserve_mib=reserve / MIB,
        free_mib=total * (1 - setting.utilization) / MIB,
        kv_bytes_per_token=token_bytes(facts, setting),
        full_length_sequences=_sequences(facts, setting, cache, weights + reserve <= total * setting.utilization),
        measured=row.where_and_when if row else None,
    )


def variant(facts: ModelFacts, setting: Setting) -> str:
    """What decides memory beside the numbers of a measured row, as words: `kv_cache_dtype=fp8 eager`."""
    words = {
        f"kv_cache_dtype={setting.kv_dtype}": setting.kv_dtype != "auto",
        f"quantization={setting.quantization}": bool(setting.quantization) and facts.quantization is None,
        f"bytes={setting.value_bytes:g}": setting.value_bytes != HALF,
        "eager": setting.eager,
        f"drafts={setting.drafts}": bool(setting.drafts),
        f"adapters={setting.adapters}x{setting.adapter_rank}": bool(setting.adapters),
        "experts_whole": setting.experts_whole and setting.gpus > 1,
        f"data_ranks={setting.data_ranks}": setting.data_ranks > 1,
        f"stages={setting.stages}": setting.stages > 1,
    }
    return " ".join(word for word, applies in words.items() if applies)


def measured_row(facts: ModelFacts, setting: Setting) -> Measured | None:
    """What this vLLM took of this model on this card, in as many parts; of several starts the one that took most.

    A first start, which compiles, leaves less for the cache than a later one, and a plan must hold for both.
    """
    own = variant(facts, setting)
    rows = [
        row
        for row in facts.measured
        if (row.accelerator, row.gpus, row.variant) == (setting.accelerator.name, setting.gpus, own)
        and row.vllm == PINNED["vllm"]
    ]
    return max(rows, key=lambda row: (row.weights_gib + row.reserve_gib, row.date), default=None)


def setting_at(row: Measured, setting: Setting) -> Setting:
    """The setting under which a row was measured."""
    return dataclasses.replace(
        setting,
        length=row.length,
        utilization=row.utilization,
        batched_tokens=row.batched_tokens,
        sequences=row.sequences,
    )


def _sequences(facts: ModelFacts, setting: Setting, cache: float, starts: bool) -> int:
    """Full-length sequences of a replica: a model without a cache takes as many as its engines schedule."""
    memory = memory_in(facts, setting)
    blocks = memory.pool.request_blocks(memory.demand)
    if not blocks:
        return setting.sequences * setting.data_ranks if starts else 0
    one = (int(cache) // memory.pool.block_bytes - 1) // blocks  # one block stays vLLM's null block
    return max(0, one) * setting.data_ranks


def fits(facts: ModelFacts, setting: Setting) -> bool:
    """Whether vLLM would start: one full-length sequence has room."""
    return gpu_memory(facts, setting).full_length_sequences >= 1


def shortened(facts: ModelFacts, setting: Setting) -> Setting | None:
    """The setting with the longest length that fits, in steps of 256 tokens; None when not even 256 fit."""
    low, high = 0, setting.length // 256
    while low < high:
        middle = (low + high + 1) // 2
        if fits(facts, dataclasses.replace(setting, length=middle * 256)):
            low = middle
        else:
            high = middle - 1
    return dataclasses.replace(setting, length=low * 256) if low else None


def memory_of(model: ModelConfig, facts: ModelFacts | None, catalog: Catalog | None = None) -> GpuMemory | None:
    """A model's memory on its own accelerator; None on CPUs and for unknown models."""
    catalog = catalog or default_catalog()
    accelerator = catalog.accelerators.get(model.accelerator)
    if facts is None or accelerator is None:
        return None
    return gpu_memory(facts, setting_of(model, facts, accelerator))
