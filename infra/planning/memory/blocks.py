"""Tokens of a block: what the attention backend takes, and what a hybrid's states force.

Source: `update_block_size_for_backend` and `_align_hybrid_block_size` in vllm/platforms/interface.py of vLLM 0.32.0,
and `get_supported_kernel_block_sizes` of the backends that vllm/platforms/cuda.py chooses for a card.
"""

from __future__ import annotations

import math

from modelfleet.infra.planning.memory.checkpoint import Checkpoint

DEFAULT_BLOCK = 16
#: FlashInfer's and FlashMLA's latent kernels, and DeepGEMM's indexer, take pages of 64 tokens.
WIDE_BLOCK = 64
FLASHINFER_MLA_BLOCK = 32
V4_BLOCK = 256
M3_BLOCK = 128
#: DeepGEMM's smallest page of pooled index keys.
POOLED_PAGE = 32
#: A hybrid with latent attention keeps its block a multiple of this, for kernels that split it.
LATENT_HYBRID_BLOCK = 128


def base_block(checkpoint: Checkpoint, dtype: str, capability: tuple[int, int]) -> int:
    """Tokens of a block before a hybrid's states are considered."""
    if checkpoint.get("compress_ratios") is not None:
        return V4_BLOCK
    if checkpoint.get("sparse_attention_config") is not None:
        return M3_BLOCK
    quantized = dtype not in ("auto", "float16", "bfloat16")
    if checkpoint.get("kv_lora_rank") and checkpoint.model_type != "minicpm3":
        if checkpoint.get("index_topk") is not None:
            return WIDE_BLOCK * checkpoint.count("index_kpool", default=1) if pooled(checkpoint) else WIDE_BLOCK
        if capability[0] == 10:
            return FLASHINFER_MLA_BLOCK
        return WIDE_BLOCK if quantized and capability[0] == 9 else DEFAULT_BLOCK
    # FlashAttention 4 reads an FP8 cache of heads of 512 in tiles of 64 tokens (flash_attn.py).
    wide = checkpoint.model_type.startswith("gemma4") or checkpoint.get("global_head_dim")
    return WIDE_BLOCK if wide and quantized and capability[0] == 9 else DEFAULT_BLOCK


def pooled(checkpoint: Checkpoint) -> bool:
    """Whether index keys are pooled over several tokens (GLM-5.3-Flash)."""
    return checkpoint.count("index_kpool", default=1) > 1


def hybrid_block(checkpoint: Checkpoint, state: int, token: int, block: int) -> int:
    """Tokens of a block whose attention page holds a state: `state` bytes, at `token` bytes a token."""
    latent = bool(checkpoint.get("kv_lora_rank"))
    smallest = POOLED_PAGE * checkpoint.count("index_kpool", default=1) if pooled(checkpoint) else DEFAULT_BLOCK
    step = max(smallest if pooled(checkpoint) else block, LATENT_HYBRID_BLOCK if latent else 0)
    needed = step * -(-state // (step * token))
    multiple = math.lcm(DEFAULT_BLOCK, smallest)
    return max(block, multiple * -(-needed // multiple))
