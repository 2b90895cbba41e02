"""The engine's arguments that decide memory, and the KV dtype that a checkpoint chooses by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelfleet.infra.planning.memory.checkpoint import Checkpoint

#: Batches that vLLM keeps in flight: two with asynchronous scheduling, its default on GPUs (`max_concurrent_batches`).
CONCURRENT_BATCHES = 2
#: Bytes of a value of the cache (`STR_DTYPE_TO_TORCH_DTYPE`); the 4-bit types hold two a byte and their scales.
KV_VALUE_BYTES = {"auto": 2.0, "float16": 2.0, "bfloat16": 2.0, "float32": 4.0, "nvfp4": 0.5625}


@dataclass(frozen=True)
class EngineArguments:
    """What vLLM is asked to do on one GPU, as far as memory is concerned.

    `length` is `max_model_len`; `ranks` the tensor-parallel GPUs; `capability` the card's compute capability, which
    chooses the attention backend and with it the block size; `drafts` the tokens that are speculated a step;
    `experts_whole` says that each GPU has whole experts, not a part of each (`enable_expert_parallel`); `stage` is one
    of `stages` of a pipeline, from 0; `data_ranks` share a model's experts and nothing else.
    """

    length: int
    batched_tokens: int = 8192
    ranks: int = 1
    kv_dtype: str = "auto"
    capability: tuple[int, int] = (9, 0)
    prefix_caching: bool = True
    drafts: int = 0
    batches: int = CONCURRENT_BATCHES
    experts_whole: bool = False
    stages: int = 1
    stage: int = 0
    data_ranks: int = 1

    @property
    def expert_ranks(self) -> int:
        """GPUs that share the routed experts."""
        return self.ranks * self.data_ranks

    @property
    def in_flight(self) -> int:
        """Tokens that are scheduled and not yet settled: windows keep them too."""
        return self.batches * self.batched_tokens


def kv_dtype(checkpoint: Checkpoint, asked: str) -> str:
    """The cache's dtype: what is asked, else what the checkpoint chooses (`resolve_kv_cache_dtype_string`)."""
    if checkpoint.model_type in ("deepseek_v4", "deepseek_v41"):
        return "fp8_ds_mla" if asked == "auto" or asked.startswith("fp8") else asked
    if asked != "auto":
        return asked
    section = checkpoint.quantization
    if not str(section.get("quant_method", "")).startswith("modelopt"):
        return "auto"
    inner = section.get("quantization")
    inner = inner if isinstance(inner, Mapping) else section
    chosen = inner.get("kv_cache_scheme") or section.get("kv_cache_scheme")
    chosen = chosen or inner.get("kv_cache_quant_algo") or section.get("kv_cache_quant_algo")
    if isinstance(chosen, Mapping):
        if chosen.get("type") != "float":
            return "auto"
        eight = chosen.get("num_bits") == 8 and chosen.get("dynamic") is False
        chosen = "fp8" if eight else "nvfp4" if chosen.get("num_bits") == 4 else ""
    return {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}.get(str(chosen or "").lower(), "auto")


def kv_value_bytes(dtype: str) -> float:
    """Bytes of one value of a cache of that dtype."""
    return 1.0 if dtype.startswith("fp8") else KV_VALUE_BYTES.get(dtype, 2.0)
