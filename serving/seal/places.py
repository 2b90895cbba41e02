"""Where the compilers of a replica keep what they made: all below one folder, so that it can be packed and copied.

By default they are in four places, and where Triton's is depends on whether the cache was cold (vLLM 0.32
`compilation/compiler_interface.py` gives it a folder of the model when it compiles, and torch another when it loads).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelfleet.serving.mirror.store import SCHEMES, parse_uri
from modelfleet.serving.weights import default_cache

#: vLLM's own below VLLM_CACHE_ROOT (vLLM 0.32 `compilation/decorators.py` and `backends.py`,
#: `model_executor/warmup/flashinfer_autotune_cache.py`, `utils/deep_gemm.py`, `model_executor/models/registry.py`),
#: then those of the variables below. Not in a seal is what tells of one machine: `gpu_p2p_access_cache_for_*.json`.
SEALED: Final = (
    "torch_compile_cache",
    "flashinfer_autotune_cache",
    "deep_gemm",
    "modelinfos",
    "triton",
    "flashinfer",
    "cuda",
)


def cache_environment(root: Path) -> dict[str, str]:
    """The variables that put every compile cache below `root`: vLLM's, Triton's, FlashInfer's and the driver's.

    vLLM leaves out of its key where they are (vLLM 0.32 `envs.compile_factors`), so this never makes a cache foreign.
    """
    return {
        "VLLM_CACHE_ROOT": str(root),
        "TRITON_CACHE_DIR": str(root / "triton"),
        "FLASHINFER_WORKSPACE_BASE": str(root / "flashinfer"),
        "CUDA_CACHE_PATH": str(root / "cuda"),
    }


def seal_root(uri: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of the caches that the seal at `uri` fills, on this node; the warm-up Job compiles into the same.

    Each key has its own, below the node's VLLM_CACHE_ROOT: another model's replica beside it changes nothing there.
    `cache_environment` of what it returns changes that variable, so a process asks before, and once.
    """
    base = environment.get("VLLM_CACHE_ROOT")
    return (Path(base) if base else default_cache().parent / "vllm") / Path(parse_uri(uri, *SCHEMES).prefix).name
