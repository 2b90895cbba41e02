"""Bytes of one copy of a layer's recurrent state, on one GPU.

Source: `MambaStateShapeCalculator` and `MambaStateDtypeCalculator` in vllm/model_executor/layers/mamba/mamba_utils.py
of vLLM 0.32.0. A convolution keeps its last `kernel - 1` inputs, plus those of the drafts, in the model's dtype; the
recurrent part has a dtype of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.engine import EngineArguments

#: Bytes of a value in the model's own dtype: half precision.
MODEL_BYTES = 2
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": MODEL_BYTES}
#: Checkpoints whose class makes vLLM read the recurrent state's dtype from their config (`MODELS_CONFIG_MAP`).
QWEN_STATES = ("Qwen3_5", "Qwen4Exp", "ColQwen3_5")
#: Compute capabilities on which FlashKDA runs; its checkpoint of a prefill is one more copy.
FLASH_KDA_MAJORS = (9, 10, 12)


@dataclass(frozen=True)
class State:
    """Bytes of one copy, and copies that a request holds beyond those that vLLM always keeps."""

    size: int
    checkpoints: int = 0
    replicated: bool = False


def copies(state: State, engine: EngineArguments) -> int:
    """States that a request holds: with prefix caching also the one at the last block's boundary (`MambaSpec`)."""
    return (2 + state.checkpoints if engine.prefix_caching else 1) + engine.drafts


def gated_delta_net(checkpoint: Checkpoint, engine: EngineArguments) -> State:
    """Qwen3-Next, Qwen3.5 and later, Olmo-Hybrid."""
    keys = checkpoint.count("linear_num_key_heads") * checkpoint.count("linear_key_head_dim")
    heads, size = checkpoint.count("linear_num_value_heads"), checkpoint.count("linear_value_head_dim")
    kernel = checkpoint.count("linear_conv_kernel_dim", default=4)
    conv = (2 * keys + heads * size) // engine.ranks * (kernel - 1 + engine.drafts)
    recurrent = heads // engine.ranks * size * checkpoint.count("linear_key_head_dim")
    dtype = checkpoint.get("mamba_ssm_dtype") if checkpoint.architecture.startswith(QWEN_STATES) else None
    return State(conv * MODEL_BYTES + recurrent * DTYPE_BYTES.get(str(dtype or "auto"), MODEL_BYTES))


def kimi_delta(checkpoint: Checkpoint, engine: EngineArguments) -> State:
    """Kimi-Linear, Kimi-K3, GLM-5.3-Flash, Ling 3: the recurrent state is in float32."""
    section = checkpoint.get("linear_attn_config", default={})
    heads = section.get("num_heads") or checkpoint.count("linear_num_heads", "num_attention_heads")
    size = section.get("head_dim") or checkpoint.count("linear_head_dim", "head_dim")
    kernel = section.get("short_conv_kernel_size") or checkpoint.count("linear_conv_kernel_dim", default=4)
    conv = 3 * heads * size // engine.ranks * (kernel - 1 + engine.drafts)
    recurrent = heads // engine.ranks * size * size
    bound = section.get("gate_lower_bound") or checkpoint.get("linear_lower_bound")
    flash = bound is not None and size == 128 and engine.capability[0] in FLASH_KDA_MAJORS
    exported = checkpoint.model_type == "kimi_linear" and checkpoint.architecture.startswith("KimiLinear")
    return State(conv * MODEL_BYTES + recurrent * 4, int(flash and not exported))


def mamba2(checkpoint: Checkpoint, engine: EngineArguments) -> State:
    """Nemotron-H, Falcon-H1, Granite 4, Zamba2, Mamba2. A prefill's checkpoint is one more copy."""
    heads = checkpoint.count("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads")
    size = checkpoint.get("mamba_head_dim", "mamba_d_head", "mamba_headdim")
    inner = checkpoint.get("mamba_d_ssm")
    if inner is None:
        expand = checkpoint.get("mamba_expand", "expand", default=2)
        inner = heads * size if checkpoint.model_type.startswith("nemotron_h") else int(expand * checkpoint.hidden)
    size = inner // heads if size in (None, "auto") else int(size)
    width = checkpoint.count("ssm_state_size", "mamba_d_state", "state_size")
    groups = checkpoint.count("mamba_n_groups", "mamba_ngroups", "n_groups", default=1)
    groups += 0 if groups % engine.ranks == 0 else engine.ranks - groups
    kernel = checkpoint.count("conv_kernel", "mamba_d_conv", default=4)
    conv = (inner + 2 * groups * width) // engine.ranks * (kernel - 1 + engine.drafts)
    dtype = "auto"
    if checkpoint.model_type.startswith("nemotron_h"):
        dtype = str(checkpoint.get("mamba_ssm_cache_dtype", default="float32"))
    recurrent = heads // engine.ranks * size * width
    return State(conv * MODEL_BYTES + recurrent * DTYPE_BYTES.get(dtype, MODEL_BYTES), 1)


def mamba1(checkpoint: Checkpoint, engine: EngineArguments) -> State:
    """Mamba, Falcon-Mamba, Jamba."""
    expand = checkpoint.get("mamba_expand", "expand", default=2)
    inner = checkpoint.get("intermediate_size") if checkpoint.model_type.endswith("mamba") else None
    inner = int(inner or expand * checkpoint.hidden) // engine.ranks
    kernel = checkpoint.count("mamba_d_conv", "conv_kernel", default=4)
    return State(inner * (kernel - 1 + checkpoint.count("mamba_d_state", "state_size", default=16)) * MODEL_BYTES)


def short_convolution(checkpoint: Checkpoint, engine: EngineArguments) -> State:
    """LFM2: a convolution without a recurrent part."""
    width = checkpoint.count("conv_dim", default=checkpoint.hidden)
    kernel = checkpoint.count("conv_L_cache", default=3)
    return State(width // engine.ranks * (kernel - 1 + engine.drafts) * MODEL_BYTES)


def linear_attention(checkpoint: Checkpoint, engine: EngineArguments) -> State:
    """Ling 2.5: one square matrix a head."""
    size = checkpoint.head_dim
    return State(checkpoint.heads // engine.ranks * size * size * MODEL_BYTES)


def ngram_convolution(checkpoint: Checkpoint, engine: EngineArguments) -> State:
    """The convolution behind Qwen3.8-Flash-Next's n-gram embedding, whole on each GPU."""
    width = checkpoint.hidden * checkpoint.count("hc_count", default=1)
    kept = (checkpoint.count("ple_conv_kernel_size") - 1) * checkpoint.count("ngram_size") + engine.drafts
    return State(width * kept * MODEL_BYTES, replicated=True)


StateOf = Callable[[Checkpoint, EngineArguments], State]
