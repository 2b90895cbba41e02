"""Does a model fit its GPUs? Compares weights, KV cache and reserve per GPU with what vLLM may use. Pure arithmetic.

vLLM 0.32 uses the share `gpu_memory_utilization` of a GPU's memory. Weights, the peak of a profiling step, CUDA graphs
and communication buffers come first; the rest is KV cache. vLLM refuses to start when one sequence of `max_model_len`
does not fit in the KV cache. Weights and KV cache are exact up to padding; the reserve is estimated from the parts
below.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from modelfleet.infra.catalog import Accelerator, Catalog, default_catalog
from modelfleet.infra.planning.facts import DTYPE_BYTES, KvLayers, ModelFacts
from modelfleet.infra.planning.nodes import MIB
from modelfleet.infra.planning.plan import GpuMemory
from modelfleet.serving.config.schema import ModelConfig

GIB = 1024 * MIB

#: Defaults of vLLM 0.32.0: config/cache.py, and engine/arg_utils.py get_batch_defaults for an API server.
DEFAULT_UTILIZATION = 0.92
DEFAULT_BATCHED_TOKENS = 2048
DEFAULT_SEQUENCES = 256
BLOCK_TOKENS = 16
#: CUDA context and library workspaces of one worker, MiB.
CONTEXT_MIB = 512
#: NCCL and custom all-reduce buffers, MiB, when there is more than one worker.
COMMUNICATION_MIB = 512
#: CUDA graphs, MiB; none with `enforce_eager`.
GRAPHS_MIB = 512
#: Hidden-size and intermediate-size activations alive at once in the profiling step.
LIVE_HIDDEN, LIVE_INTERMEDIATE = 6, 2
#: Bytes per vocabulary entry of one sampled row: logits, their float32 copy, probabilities and a sort.
SAMPLER_BYTES = 16


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
    kv_value_bytes: float
    quantization: str | None
    bits: float | None
    eager: bool


def setting_of(model: ModelConfig, facts: ModelFacts, accelerator: Accelerator, catalog: Catalog) -> Setting:
    """The setting that a model file asks for."""
    kwargs = model.engine_config.engine_kwargs
    value_bytes = _value_bytes(kwargs.get("dtype"), facts)
    quantization = facts.quantization or kwargs.get("quantization")
    row = catalog.quantizations.get(str(quantization))
    bits = (
        facts.quantization_bits if row is None or row.bits is None else _with_scales(facts.quantization_bits, row.bits)
    )
    sequences = _count(kwargs.get("max_num_seqs"), DEFAULT_SEQUENCES)
    return Setting(
        accelerator=accelerator,
        workers=model.scaling_config.num_workers,
        length=model.engine_config.max_total_tokens,
        utilization=_fraction(kwargs.get("gpu_memory_utilization"), DEFAULT_UTILIZATION),
        batched_tokens=_count(kwargs.get("max_num_batched_tokens"), max(DEFAULT_BATCHED_TOKENS, sequences)),
        sequences=sequences,
        value_bytes=value_bytes,
        kv_value_bytes=1.0 if str(kwargs.get("kv_cache_dtype", "auto")).startswith("fp8") else value_bytes,
        quantization=str(quantization) if quantization else None,
        bits=bits,
        eager=bool(kwargs.get("enforce_eager", False)),
    )


def _value_bytes(dtype: object, facts: ModelFacts) -> float:
    """Bytes of an unquantized weight in memory: vLLM loads float32 checkpoints in half precision."""
    named = str(dtype).removeprefix("torch.") if dtype not in (None, "auto") else facts.dtype
    if dtype in (None, "auto"):
        return 2.0
    return DTYPE_BYTES.get(named, 2.0)


def _with_scales(bits: float | None, default: float) -> float:
    """Bits per weight of a checkpoint, with the scales that the method's own default includes."""
    return default if bits is None or round(default) == round(bits) else bits + (default - 4 if default < 5 else 0)


def _count(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def _fraction(value: object, default: float) -> float:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1 else default
    )


def weight_bytes(facts: ModelFacts, setting: Setting) -> float:
    """Bytes of all weights, over all workers."""
    if facts.quantization and facts.weight_bytes is not None:
        return float(facts.weight_bytes)
    if setting.quantization and setting.bits:
        plain = facts.parameters - facts.linear_parameters
        return facts.linear_parameters * setting.bits / 8 + plain * setting.value_bytes
    return facts.parameters * setting.value_bytes


def reserve_bytes(facts: ModelFacts, setting: Setting) -> float:
    """Bytes per GPU on top of weights and KV cache: context, communication, graphs, activations, sampler."""
    fixed = CONTEXT_MIB + (COMMUNICATION_MIB if setting.workers > 1 else 0) + (0 if setting.eager else GRAPHS_MIB)
    row = LIVE_HIDDEN * facts.hidden_size + LIVE_INTERMEDIATE * facts.intermediate_size / setting.workers
    activations = setting.batched_tokens * row * setting.value_bytes
    sampler = min(setting.sequences, setting.batched_tokens) * facts.vocab_size * SAMPLER_BYTES
    return fixed * MIB + activations + sampler


def sequence_bytes(facts: ModelFacts, setting: Setting, block_tokens: int = BLOCK_TOKENS) -> float:
    """Bytes per GPU that one sequence of the full length holds, in blocks of `block_tokens`."""
    return sum(_layer_tokens(layers, setting, block_tokens) * _token_bytes(layers, setting) for layers in facts.kv)


def _token_bytes(layers: KvLayers, setting: Setting) -> float:
    return layers.bytes_per_token(setting.workers, setting.kv_value_bytes)


def _layer_tokens(layers: KvLayers, setting: Setting, block_tokens: int) -> int:
    """Tokens that these layers keep of a full-length sequence, in whole blocks (vLLM's SlidingWindowSpec)."""
    blocks = -(-setting.length // block_tokens)
    if layers.window is None:
        return blocks * block_tokens
    kept = min(layers.window - 1 + setting.batched_tokens, setting.length)
    return (-(-kept // block_tokens) + 1) * block_tokens


def gpu_memory(facts: ModelFacts, setting: Setting) -> GpuMemory:
    """How one GPU's memory is used; `full_length_sequences` 0 means that the model does not fit."""
    total = float(setting.accelerator.usable_mib * MIB)
    weights, reserve = weight_bytes(facts, setting) / setting.workers, reserve_bytes(facts, setting)
    cache = max(0.0, total * setting.utilization - weights - reserve)
    one = sequence_bytes(facts, setting)
    return GpuMemory(
        total_mib=setting.accelerator.usable_mib,
        weights_mib=weights / MIB,
        kv_cache_mib=cache / MIB,
        reserve_mib=reserve / MIB,
        free_mib=total * (1 - setting.utilization) / MIB,
        kv_bytes_per_token=round(sum(_token_bytes(layers, setting) for layers in facts.kv)),
        full_length_sequences=int(cache // one) if one else setting.sequences,
    )


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
    return gpu_memory(facts, setting_of(model, facts, accelerator, catalog))
