"""`test_kv_bytes.py` runs this in its own process: it starts vLLM on tiny random models and prints its KV cache specs.

    python tests/serving/kv_report.py FOLDER ...

One JSON line per folder: bytes per token of all layers together, of the layers with a window, and of one whole
sequence as vLLM's own admission counts it.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

LENGTH = 512


def report(folder: str) -> dict[str, Any]:
    """Start an engine with random weights and read its workers' KV cache specs."""
    from vllm import LLM

    llm = LLM(
        model=folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=LENGTH,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        enforce_eager=True,
    )
    specs = llm.collective_rpc("get_kv_cache_spec")[0].values()
    config = llm.llm_engine.vllm_config
    answer = {
        "bytes_per_token": sum(spec.page_size_bytes / spec.block_size for spec in specs),
        "windowed": sum(
            spec.page_size_bytes / spec.block_size for spec in specs if getattr(spec, "sliding_window", None)
        ),
        "sequence_bytes": sum(spec.max_memory_usage_bytes(config) for spec in specs),
        "block_tokens": max(spec.block_size for spec in specs),
        "blocks": config.cache_config.num_gpu_blocks,
        "layers": len(specs),
    }
    del llm
    gc.collect()
    return answer


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print("REPORT " + json.dumps(report(path)), flush=True)
