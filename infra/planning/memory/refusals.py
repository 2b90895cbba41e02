"""What vLLM 0.32 refuses before it loads anything: a card without the kernels, a number of GPUs that does not divide.

Each rule names its place in vLLM; the compute capabilities were asked of vLLM itself where the comment says so.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.engine import EngineArguments, kv_dtype
from modelfleet.infra.planning.memory.feedforward import experts_of, shared_width
from modelfleet.infra.planning.memory.kinds import head_shape, layer_kinds
from modelfleet.infra.planning.memory.parts import format_of

HOPPER = (9, 0)
#: Least compute capability of a number format (`get_min_capability`, and the schemes of compressed-tensors). FP8
#: weights run from 7.5 on: below 8.9 vLLM multiplies them in 16 bit (`CompressedTensorsW8A16Fp8`, Marlin).
FORMAT_CAPABILITY = {"mxfp4": (8, 0), "mxfp8": (8, 0), "nvfp4": (7, 5)}
FORMAT_NAMES = {"mxfp4": "MXFP4", "mxfp8": "MXFP8", "nvfp4": "NVFP4"}


def refusals(checkpoint: Checkpoint, engine: EngineArguments, capability: tuple[int, int]) -> list[str]:
    """Why vLLM would not start on a card of that compute capability; empty when nothing is known against it."""
    return [*_formats(checkpoint, capability), *_attention(checkpoint, engine, capability)]


def _formats(checkpoint: Checkpoint, capability: tuple[int, int]) -> Iterator[str]:
    form = format_of(checkpoint)
    for kind in {form.kind, form.experts}:
        least = FORMAT_CAPABILITY.get(kind)
        if least is not None and capability < least:
            yield f"{FORMAT_NAMES[kind]} needs compute capability {_dotted(least)}"


def _attention(checkpoint: Checkpoint, engine: EngineArguments, capability: tuple[int, int]) -> Iterator[str]:
    dtype = kv_dtype(checkpoint, engine.kv_dtype)
    sparse = checkpoint.get("index_topk") is not None and checkpoint.get("compress_ratios") is None
    if sparse and capability < HOPPER:
        # Asked of vLLM for DeepSeek-V3.2 and GLM-5.3-Flash on 7.5, 8.0, 8.9: "No valid attention backend".
        yield "its sparse latent attention has kernels for compute capability 9.0 and later only"
    elif sparse and dtype == "fp8_e4m3" and capability[0] == HOPPER[0]:
        yield (
            "the checkpoint chooses an fp8_e4m3 KV cache, for which compute capability 9.0 has no sparse latent "
            "kernel; set `kv_cache_dtype: bfloat16` or take its FP8 checkpoint"
        )
    elif dtype.startswith("fp8") and dtype != "fp8_ds_mla" and capability < (8, 9):
        yield f"an FP8 KV cache ({dtype}) needs compute capability 8.9; set `kv_cache_dtype: auto`"
    if checkpoint.model_type.startswith("qwen4_exp") and capability < (8, 0):
        yield "its sparse attention computes in bfloat16, which needs compute capability 8.0"


def undivided(checkpoint: Checkpoint, ranks: int, *, experts_whole: bool = False, data_ranks: int = 1) -> str:
    """Why a model cannot be split over so many GPUs (vllm/distributed/utils.py: `divide`); empty when it can.

    Each of `data_ranks` has all of it but the experts, which they share.

    With `experts_whole` an expert's width is not split (`fused_moe/config.py`, `FusedMoEParallelConfig.make` sets its
    `tp_size` to 1), and experts need not divide: `determine_expert_map` gives the first GPUs one more.
    """
    if ranks == 1:
        return "" if experts_whole or data_ranks == 1 else _undivided_experts(checkpoint, data_ranks)
    if checkpoint.heads and checkpoint.heads % ranks:
        return f"{checkpoint.heads} attention heads do not divide evenly"
    for layer, kind in enumerate(layer_kinds(checkpoint)):
        if kind in ("full", "window", "chunk", "both") and not checkpoint.get("kv_lora_rank"):
            heads = head_shape(checkpoint, layer, kind)[0]
            if heads % ranks and ranks % heads:
                return f"{heads} key-value heads neither divide nor multiply to {ranks}"
    for key in (
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_num_heads",
        "mamba_num_heads",
        "mamba_n_heads",
    ):
        if (heads := checkpoint.get(key)) and heads % ranks:
            return f"{heads} heads of its states ({key}) do not divide evenly"
    width = checkpoint.get("moe_intermediate_size" if experts_of(checkpoint) else "intermediate_size")
    width = width[0] if isinstance(width, list) else width
    if experts_whole and experts_of(checkpoint):
        shared = shared_width(checkpoint, int(width or 0))
        return f"a width of {shared} of its shared experts does not divide evenly" if shared % ranks else ""
    if width and width % ranks:
        return f"a width of {width} does not divide evenly"
    block = checkpoint.quantization.get("weight_block_size")
    if block and width and not experts_of(checkpoint) and (width // ranks) % int(block[0]):
        return f"a width of {width} over {ranks} GPUs is no multiple of the FP8 blocks of {block[0]}"
    return ""


def _undivided_experts(checkpoint: Checkpoint, ranks: int) -> str:
    width = checkpoint.get("moe_intermediate_size", "expert_ffn_hidden_size") or checkpoint.get("intermediate_size")
    width = int((width[0] if isinstance(width, list) else width) or 0)
    if not experts_of(checkpoint) or width % ranks == 0:
        return ""
    return f"an expert's width of {width} does not divide evenly; enable_expert_parallel: true gives each whole experts"


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
