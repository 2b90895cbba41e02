"""vLLM's start-up failures in one line with the fix: the debugging cases that RayLLM's users know. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class _Case:
    pattern: re.Pattern[str]
    way_out: str


def _case(pattern: str, way_out: str) -> _Case:
    return _Case(re.compile(pattern, re.IGNORECASE), way_out)


_CASES = (
    _case(
        r"no available memory for the cache blocks|KV cache .*needed.*memory|larger than the available KV cache",
        "lower engine_config.max_total_tokens, or raise engine_kwargs.gpu_memory_utilization or num_workers",
    ),
    _case(
        r"out of memory|cannot allocate memory|OutOfMemoryError|less than desired GPU memory utilization"
        r"|less than the engine's budget",
        "lower engine_kwargs.gpu_memory_utilization or max_num_seqs, raise num_workers, or use a larger accelerator "
        "or a quantized checkpoint",
    ),
    _case(
        r"No CUDA GPUs are available|Found no NVIDIA driver|Failed to infer device type",
        "the worker got no GPU: check scaling_config.num_gpus_per_worker and the node's device plugin",
    ),
    _case(
        r"NCCL",
        "workers cannot reach each other: use placement_strategy STRICT_PACK, check /dev/shm and set NCCL_DEBUG=INFO",
    ),
    _case(
        r"bfloat16 is only supported|compute capability",
        "this accelerator lacks the number format: set engine_kwargs.dtype: half",
    ),
    _case(
        r"max_model_len .*is greater than|User-specified max_model_len",
        "lower engine_config.max_total_tokens to the checkpoint's own limit",
    ),
    _case(
        r"not supported (?:for now|anymore|in-tree)|not compatible with vLLM"
        r"|Unrecognized model|not recognize this architecture",
        "this vLLM does not know the checkpoint's architecture; use another checkpoint or a newer release",
    ),
    _case(
        r"trust_remote_code|custom code (?:contained in \S+ )?which must be executed",
        "the checkpoint has its own code: set engine_kwargs.trust_remote_code: true if you trust it",
    ),
    _case(
        r"must be divisible by tensor parallel size",
        "choose a scaling_config.num_workers that divides the number of attention heads",
    ),
    _case(r"No space left on device", "give the node a larger disk, or set MODELFLEET_MODEL_CACHE to a folder on one"),
    _case(
        r"SafetensorError|Error while deserializing|HeaderTooSmall",
        "the weights are damaged; fill the mirror again",
    ),
)


def way_out(text: str) -> str | None:
    """The fix for a known failure, or else None."""
    return next((case.way_out for case in _CASES if case.pattern.search(text)), None)


_TAIL = re.compile(r"\b((?:[A-Za-z_]+\.)*[A-Za-z_]*(?:Error|Exception|Interrupt)): (.+)")
_WRAPPERS = ("Engine core initialization failed", "Executor failed", "WorkerProc initialization failed")


def root_cause(log: str) -> str | None:
    """The original exception in the output of vLLM's processes: the first one that does not only report another."""
    for line in log.splitlines():
        match = _TAIL.search(line)
        if match and not any(wrapper in match[2] for wrapper in _WRAPPERS):
            return f"{match[1].split('.')[-1]}: {match[2].strip()}"
    return None


def sentence(model_id: str, error: BaseException, log: str) -> str:
    """One line: which model, what failed, what to do."""
    own = " ".join(str(error).split())
    wrapped = not own or any(wrapper in own for wrapper in _WRAPPERS)
    cause = (root_cause(log) if wrapped else None) or f"{type(error).__name__}: {own}"
    # pydantic appends the input and a link to each error.
    cause = re.sub(r" \[type=.*", "", " ".join(cause.split()))[:600].rstrip(". ")
    advice = way_out(cause) or way_out(log) or "see the replica's log"
    return f"vLLM cannot start {model_id}: {cause}; {advice}"
