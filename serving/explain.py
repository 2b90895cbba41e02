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


#: The first that matches counts, so a case stands before those whose words it shares. Sources of the words: vLLM 0.32
#: (`v1/core/kv_cache_utils.py`, `v1/worker/gpu_worker.py`, `v1/worker/utils.py`, `v1/engine/utils.py`,
#: `v1/executor/multiproc_executor.py`), torch 2.13 (libc10, libc10_cuda, libtorch_cuda), libcudart 13, Triton 3
#: (`runtime/build.py`, vllm#27890) and FlashInfer (`jit/cpp_ext.py`, vllm#49497).
_CASES = (
    _case(
        r"no available memory for the cache blocks|KV cache .*needed.*memory|larger than the available KV cache",
        "lower engine_config.max_total_tokens, or raise engine_kwargs.gpu_memory_utilization or num_workers",
    ),
    _case(
        r"Could not find nvcc|nvcc: (?:command )?not found|No such file or directory: '\S*nvcc'",
        "the image has no nvcc, with which FlashInfer compiles kernels: build it as serving/Dockerfile does, or set "
        "VLLM_USE_FLASHINFER_SAMPLER: '0' in engine_config.runtime_env.env_vars",
    ),
    _case(
        r"Python\.h: No such file|Failed to find C compiler|No such file or directory: '\S*(?:gcc|clang|cc)'",
        "the image has no C compiler or no Python headers, with which Triton builds its launchers: add gcc and "
        "python3-dev to it",
    ),
    _case(
        r"NVIDIA driver on your system is too old|driver version is insufficient"
        r"|unsupported display driver / cuda driver combination",
        "the node's NVIDIA driver is older than vLLM's CUDA: use a node image with a newer driver (CUDA 13 needs 580)",
    ),
    _case(
        r"no kernel image is available",
        "this vLLM has no kernels for this GPU: use another accelerator or another quantization",
    ),
    _case(
        r"Error in memory profiling",
        "another process gave GPU memory back while vLLM measured it: it starts once that has ended",
    ),
    _case(
        r"low on memory|DefaultCPUAllocator|can(?:'|no)t allocate memory|(?<!OutOf)MemoryError"
        r"|Failed core proc\(s\): \{[^}]*: -9\b|died unexpectedly \(exit code: -9\)",
        "the node's own memory ran out, not the GPU's: raise deployment_config.ray_actor_options.memory, lower what "
        "engine_kwargs keeps in it (cpu_offload_gb, kv_offloading_size, kv_cache_memory_bytes), or use a larger node",
    ),
    _case(
        r"out of memory|OutOfMemoryError|less than desired GPU memory utilization|less than the engine's budget",
        "lower engine_kwargs.gpu_memory_utilization or max_num_seqs, raise num_workers, or use a larger accelerator "
        "or a quantized checkpoint",
    ),
    _case(
        r"Failed core proc\(s\): \{[^}]*: -\d+|died unexpectedly",
        "a process of the engine was ended by a signal; a library that crashes or a lost GPU (Xid in the node's dmesg) "
        "are the usual reasons",
    ),
    _case(
        r"Device string must not be empty|Failed to infer device type",
        "vLLM found no GPU's driver where it started: the node has none, or its device plugin does not hand it on",
    ),
    _case(
        r"No CUDA GPUs are available|Found no NVIDIA driver",
        "the worker got no GPU: check scaling_config.num_gpus_per_worker and the node's device plugin",
    ),
    _case(
        r"NCCL (?:error|WARN)|nccl\w*Error",
        "workers cannot reach each other: check /dev/shm, and set NCCL_DEBUG: INFO in runtime_env.env_vars",
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
#: Lines that tell of a failure. Others name things that work (`backend=nccl`, `trust_remote_code=False`).
_TELLING = re.compile(rf"{_TAIL.pattern}|fatal error:|NCCL (?:error|WARN)|nvcc: .*not found|died unexpectedly")
_SILENT = (
    "a process of the engine ended without a word; most often it was killed because the node's memory ran out: see "
    "`dmesg` of the node, or raise deployment_config.ray_actor_options.memory"
)


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
    root = root_cause(log) if wrapped else None
    cause = root or f"{type(error).__name__}: {own}"
    # pydantic appends the input and a link to each error.
    cause = re.sub(r" \[type=.*", "", " ".join(cause.split()))[:600].rstrip(". ")
    said = "\n".join(line for line in log.splitlines() if _TELLING.search(line))
    unknown = _SILENT if wrapped and root is None and own else "see the replica's log"
    return f"vLLM cannot start {model_id}: {cause}; {way_out(cause) or way_out(said) or unknown}"
