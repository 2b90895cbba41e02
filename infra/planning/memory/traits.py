"""What a config.json does not say about a family: which norms, biases and gates its layers have.

Each row is read from the model's class in vLLM 0.32.0 (vllm/model_executor/models). A family without a row is an
ordinary decoder: two norms a layer, gated feed-forward, no norm on queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelfleet.infra.planning.memory.checkpoint import Checkpoint, UnknownShapeError


@dataclass(frozen=True)
class Traits:
    """`qk_norm`: none, head (one of a head's size) or full (over all heads). `norms` are those of a layer."""

    qk_norm: str = "none"
    norms: int = 2
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool | None = None
    """None: as `attention_bias`."""
    router_bytes: int = 2
    correction: bool = False
    """A score correction per expert, in single precision."""
    sinks: str = "none"
    """none, all or window: one value a head in those layers."""
    norm_bias: bool = False
    final_norms: int = 1


HEAD = Traits(qk_norm="head")
FULL = Traits(qk_norm="full")
ENCODER = Traits(gated=False, qkv_bias=True, out_bias=True, norm_bias=True, final_norms=0)
SINGLE_ROUTER = Traits(router_bytes=4, correction=True)

_FAMILIES: dict[str, Traits] = {
    "qwen2": Traits(qkv_bias=True, out_bias=False),
    "qwen2_moe": Traits(qkv_bias=True, out_bias=False),
    "qwen2_vl": Traits(qkv_bias=True, out_bias=False),
    "qwen2_5_vl": Traits(qkv_bias=True, out_bias=False),
    "qwen2_audio": Traits(qkv_bias=True, out_bias=False),
    "mimo": Traits(qkv_bias=True, out_bias=False),
    "internlm2": Traits(),
    "qwen3": HEAD,
    "qwen3_moe": HEAD,
    "qwen3_vl": HEAD,
    "qwen3_vl_moe": HEAD,
    "qwen3_omni_moe": HEAD,
    "qwen3_asr": HEAD,
    "qwen3_next": HEAD,
    "qwen3_5": HEAD,
    "qwen3_5_moe": HEAD,
    "qwen4_exp": HEAD,
    "minimax_m2": Traits(qk_norm="full", router_bytes=4, correction=True),
    "minimax_m3": Traits(qk_norm="head", router_bytes=4, correction=True),
    "hy_v3": Traits(qk_norm="head", router_bytes=4, correction=True),
    "hy_v4": Traits(router_bytes=4, correction=True),
    "hunyuan_v1_dense": HEAD,
    "hunyuan_v1_moe": HEAD,
    "glm4_moe": Traits(router_bytes=4, correction=True, out_bias=False),
    "glm4v_moe": Traits(router_bytes=4, correction=True, out_bias=False),
    "glm4_moe_lite": SINGLE_ROUTER,
    "glm4": Traits(norms=4, out_bias=False),
    "glm4v": Traits(norms=4, out_bias=False),
    "glm_moe_dsa": Traits(correction=True),
    "glm5_next": Traits(correction=True),
    "deepseek_v3": Traits(correction=True),
    "deepseek_v32": Traits(correction=True),
    "kimi_k2": Traits(correction=True),
    "kimi_linear": Traits(correction=True),
    "axk1": Traits(norms=3, correction=True),
    "longcat_flash": SINGLE_ROUTER,
    "mimo_v2_flash": Traits(router_bytes=4, correction=True, sinks="window"),
    "mimo_v2": Traits(router_bytes=4, correction=True, sinks="window"),
    "ernie4_5_moe": SINGLE_ROUTER,
    "laguna": Traits(qk_norm="head", correction=True),
    "exaone4": HEAD,
    "exaone_moe": Traits(qk_norm="head", correction=True),
    "olmo2": FULL,
    "olmo3": FULL,
    "flex_olmo": FULL,
    "olmoe": FULL,
    "olmo_hybrid": FULL,
    "gemma": Traits(),
    "gemma2": Traits(norms=4),
    "gemma3": Traits(qk_norm="head", norms=4),
    "gemma4": Traits(qk_norm="head", norms=4),
    "gemma4_unified": Traits(qk_norm="head", norms=4),
    "diffusion_gemma": Traits(qk_norm="head", norms=4),
    "embedding_gemma2": Traits(qk_norm="head", norms=4),
    "muse_glimmer": Traits(norms=4),
    "cohere": Traits(norms=1),
    "cohere2": Traits(norms=1),
    "cohere2_moe": Traits(norms=1),
    "gpt_oss": Traits(sinks="all"),
    "granite_swa": Traits(sinks="all"),
    "granitemoe_swa": Traits(sinks="all"),
    "seed_oss": Traits(),
    "jais2": Traits(gated=False, norm_bias=True),
    "nanochat": Traits(norms=0, gated=False, final_norms=0),
    "hrm_text": Traits(norms=0, final_norms=0),
    "nemotron": Traits(gated=False, norm_bias=True),
    "nemotron_h": Traits(norms=1, gated=False, correction=True),
    "bert": ENCODER,
    "roberta": ENCODER,
    "xlm-roberta": ENCODER,
    "arcee": Traits(gated=False),
    "mamba": Traits(norms=1),
    "mamba2": Traits(norms=1),
    "falcon_mamba": Traits(norms=1),
    "starcoder2": Traits(gated=False, qkv_bias=True, out_bias=True, norm_bias=True),
    "mellum": HEAD,
    "lfm2": HEAD,
    "lfm2_moe": HEAD,
    "step3p5": Traits(qk_norm="head", router_bytes=4),
    "step3p7": Traits(qk_norm="head", router_bytes=4),
    "dots1": Traits(qk_norm="head", correction=True),
    "bailing_moe": Traits(),
    "bailing_hybrid": Traits(correction=True),
    "falcon": Traits(gated=False, norms=1, norm_bias=True),
    "gptj": Traits(gated=False, norms=1, norm_bias=True),
    "gpt2": Traits(gated=False, qkv_bias=True, out_bias=True, norm_bias=True),
    "gpt_bigcode": Traits(gated=False, qkv_bias=True, out_bias=True, norm_bias=True),
    "gpt-sw3": Traits(gated=False, qkv_bias=True, out_bias=True, norm_bias=True),
    "gpt_neox": Traits(gated=False, qkv_bias=True, out_bias=True, norm_bias=True),
    "opt": Traits(gated=False, qkv_bias=True, out_bias=True, norm_bias=True),
    "phi": Traits(gated=False, qkv_bias=True, out_bias=True, norms=1, norm_bias=True),
    "stablelm": Traits(norm_bias=True),
    "apertus": Traits(qk_norm="head", gated=False),
}


#: Families that were compared with vLLM's own answers and need no row of their own.
_ORDINARY = {
    "llama", "mistral", "ministral3", "mixtral", "phi3", "phimoe", "granite", "granitemoe", "granitemoehybrid", "cwm",
    "granitemoeshared", "smollm3", "ernie4_5", "solar_open", "mistral4", "youtu", "minicpm3", "falcon_h1", "glm",
    "deepseek_v2", "deepseek_v4", "olmo", "gemma", "hyperclovax", "llama4", "nemotron-nas", "inkling",
    "zaya", "vaultgemma",
}  # fmt: skip
#: Families whose layers this arithmetic does not know: planning them would be a guess.
_UNKNOWN = {"jamba", "zamba2", "whisper", "dbrx", "bloom", "mllama", "t5", "bart", "rwkv", "deepseek_v41"}


def compared(checkpoint: Checkpoint) -> bool:
    """Whether a model of this family was compared with vLLM; else it is counted as an ordinary decoder."""
    kind = checkpoint.model_type.removesuffix("_text")
    return kind in _FAMILIES or kind in _ORDINARY


def traits_of(checkpoint: Checkpoint) -> Traits:
    """The family's row; an ordinary decoder without one."""
    kind = checkpoint.model_type.removesuffix("_text")
    if kind in _UNKNOWN:
        raise UnknownShapeError(f"the layers of a {kind} are not known here, so its memory would be a guess")
    return _FAMILIES.get(kind, Traits())
