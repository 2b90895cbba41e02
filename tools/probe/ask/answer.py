"""One row: vLLM builds the model without memory and is asked what its engine asks before it reserves the cache.

    params_b                   10^9 elements as stored (packed 4-bit weights count as the integers that hold them)
    weights_gib                GiB of those, as created: before kernels repack them, with tables that stay in host RAM
    block_size                 tokens of a block, as the attention backend and recurrent states force it
    mamba_mode, kv_dtype       how states are kept; the cache's dtype ("auto": the model's)
    layers_with_cache          cache specs (an indexer's or a convolution's is one too)
    layers_sharing_kv          layers that read another layer's cache
    growing_bytes_per_token    bytes per token of context in all caches that grow with it, before padding
    state_bytes_per_sequence   bytes of one copy of a sequence's recurrent states, before padding
    window_bytes_per_sequence  most bytes of a sequence's bounded caches: windows, chunks, rings
    request_bytes              bytes that vLLM reserves for a request of max_model_len tokens: grouped and padded
    kv_tokens                  the "GPU KV cache size" that vLLM logs when kv_gib GiB are left for the cache

The names of vLLM's inside are those of 0.32: read this file again when vLLM is raised.
"""

from __future__ import annotations

from typing import Any

from tools.probe.ask import ranks
from tools.probe.ask.card import GIB
from tools.probe.ask.questions import Question


def answer(folder: str, question: Question) -> dict[str, Any]:
    """The row of the model whose config.json lies in `folder`, without what names the question."""
    from vllm.config import set_current_vllm_config

    config = _engine_config(folder, question)
    with set_current_vllm_config(config):
        ranks.join(question.ranks, question.rank, question.data_ranks)
        model = _build(config)
        return {
            "arch": config.model_config.architectures,
            **_weights(model),
            **_caches(config, question.kv_gib),
        }


def _engine_config(folder: str, question: Question) -> Any:
    """vLLM's whole config; a model that takes fewer tokens than the question's length gets what it takes."""
    from vllm.engine.arg_utils import EngineArgs

    arguments: dict[str, Any] = {
        "model": folder, "load_format": "dummy", "skip_tokenizer_init": True, "language_model_only": True,
        "enforce_eager": True, "max_num_seqs": 256, "max_num_batched_tokens": question.batched_tokens,
        "tensor_parallel_size": question.ranks, "data_parallel_size": question.data_ranks,
        "enable_expert_parallel": question.experts_whole,
    }  # fmt: skip
    longest = EngineArgs(**arguments).create_model_config().max_model_len
    return EngineArgs(**arguments, max_model_len=min(question.length, longest)).create_engine_config()


def _build(config: Any) -> Any:
    """The model on the meta device: every parameter has its shape and dtype, none has memory."""
    import torch
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype
    from vllm.v1.worker.workspace import init_workspace_manager

    _without_tokenizer(config.model_config.hf_text_config)
    _without_expert_map()
    init_workspace_manager(torch.device("meta"))
    with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"), ranks.on_meta():
        return initialize_model(config)


def _without_expert_map() -> None:
    """vLLM logs which experts a rank has, and reads that from a tensor that has no memory here."""
    from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager

    ExpertMapManager.get_compressed_map_string = lambda self: ""


def _without_tokenizer(text_config: Any) -> None:
    """DeepSeek V4.1 hashes n-grams over its tokenizer's vocabulary; the tables' sizes are in the config alone."""
    if not hasattr(text_config, "engram_compressed_vocab_size"):
        return
    import transformers
    from vllm.models.deepseek_v41.common import engram

    nothing = [0] * text_config.vocab_size
    transformers.AutoTokenizer.from_pretrained = lambda *args, **more: None
    engram.build_compressed_token_map = lambda tokenizer: (nothing, text_config.engram_compressed_vocab_size)


def _weights(model: Any) -> dict[str, float]:
    parameters = list(model.parameters())
    stored = sum(one.numel() * one.element_size() for one in parameters)
    return {
        "params_b": round(sum(one.numel() for one in parameters) / 1e9, 3),
        "weights_gib": round(stored / GIB, 3),
    }


def _caches(config: Any, kv_gib: float) -> dict[str, Any]:
    """The cache of every layer, the groups that vLLM makes of them, and how many tokens they hold in `kv_gib` GiB."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.platforms import current_platform
    from vllm.v1.core.kv_cache_utils import _max_memory_usage_bytes_from_groups, get_kv_cache_capacity
    from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec

    current_platform.update_block_size_for_backend(config)
    specs = get_kv_cache_spec(config)
    layers = get_layers_from_vllm_config(config, AttentionLayerBase).values()
    cache = _grouped(config, specs, int(kv_gib * GIB))
    return {
        "block_size": config.cache_config.block_size,
        "mamba_mode": config.cache_config.mamba_cache_mode,
        "kv_dtype": config.cache_config.cache_dtype,
        "layers_with_cache": len(specs),
        "layers_sharing_kv": sum(bool(getattr(layer, "kv_sharing_target_layer_name", None)) for layer in layers),
        **_sizes(specs, config),
        "max_model_len": config.model_config.max_model_len,
        "request_bytes": _max_memory_usage_bytes_from_groups(config, cache.kv_cache_groups),
        "kv_gib": kv_gib,
        "kv_tokens": get_kv_cache_capacity(config, cache)[0],
    }


def _grouped(config: Any, specs: dict[str, Any], memory: int) -> Any:
    """vLLM's KV cache config for so many bytes, in the layout that its attention backends agree on."""
    from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends
    from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts, resolve_kv_cache_layout
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs

    register_all_kvcache_specs(config)
    layouts = [layout.name for layout in get_supported_kv_cache_layouts(get_current_attn_backends(config))]
    resolve_kv_cache_layout(config, [layouts], specs.values())
    (cache,) = get_kv_cache_configs(config, [specs], [memory])
    return cache


def _sizes(specs: dict[str, Any], config: Any) -> dict[str, float]:
    """Bytes of the caches by what they depend on: the context's length, nothing, or a window."""
    from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec, CircularBufferSpec, MambaSpec, SlidingWindowSpec

    growing, state, window = 0.0, 0, 0
    for spec in specs.values():
        if isinstance(spec, MambaSpec):
            state += spec.real_page_size_bytes
        elif isinstance(spec, SlidingWindowSpec | ChunkedLocalAttentionSpec | CircularBufferSpec):
            window += spec.max_memory_usage_bytes(config)
        else:
            growing += spec.unpadded_page_size_bytes / spec.block_size
    return {
        "growing_bytes_per_token": round(growing, 2),
        "state_bytes_per_sequence": state,
        "window_bytes_per_sequence": window,
    }
