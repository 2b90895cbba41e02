"""Model file → arguments of vLLM's engine and OpenAI front end, as plain data. Pure; vLLM itself is not imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelfleet.serving.config.generate_kwargs import ALLOWED
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import data_ranks_of, tensor_ranks_of
from modelfleet.serving.errors import EngineError
from modelfleet.serving.prompt import compile_chat_template
from modelfleet.serving.sampling import generation_overrides

SHUT = {"disable_fastapi_docs": True, "disable_uvicorn_access_log": True, "use_tqdm_on_load": False}
"""Arguments of every model: no docs pages, one access log, the gateway's (Serve adds request ids), and no progress bar:
in a file it is one endless line."""

DEFAULT_ENVIRONMENT = {
    # Limits of a request: RayLLM's 8 stop strings (vLLM's default is 4) and OpenAI's 128 answers.
    "VLLM_MAX_STOP_STRINGS": "8",
    "VLLM_MAX_N_SEQUENCES": "128",
    "VLLM_NO_USAGE_STATS": "1",
    # A host that a model file allows could otherwise send the replica to one that it does not.
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
}
"""Environment of vLLM, unless the node or the model file's `runtime_env` says otherwise."""

NO_MEDIA = "set-allowed-media-domains-in-the-model-file.invalid"
"""A host that never exists (RFC 6761), which clients read in vLLM's refusal.

A request may name the address of an image, a video or a sound. Without a list of hosts vLLM gets it from anywhere,
Ray's dashboard and the cluster's own services included; an empty list counts as none (vLLM 0.32
`multimodal/media/connector.py`).
"""

LONGEST = -1
"""`max_model_len`: the checkpoint's, or the longest that fits (vLLM 0.32 `_auto_fit_max_model_len`)."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of `max_lora_rank` (vLLM 0.32 `vllm/config/lora.py`)."""


def engine_arguments(
    model: ModelConfig,
    path: str,
    adapters: Mapping[str, Path] | None = None,
    *,
    tokenizer: str | None = None,
    draft: str | None = None,
    traces: str | None = None,
) -> dict[str, Any]:
    """vLLM arguments by their Python names; the model file's `engine_kwargs` override our defaults.

    `path` is a folder or s3:// prefix with the weights, `adapters` are LoRA folders by their model ids, `tokenizer` and
    `draft` folders in place of what the file names. `traces` is the URL of an OTLP receiver.
    Sampling is the checkpoint's (`generation_config.json`), as in vLLM; a file that speaks RayLLM keeps temperature
    1.0. Without a length vLLM takes the checkpoint's, or the longest that fits (-1). Without GPUs vLLM runs eagerly:
    the CPU build's compiled kernels gave wrong answers (vLLM 0.32 with torch 2.13 and one OMP thread, SmolLM2: French
    for "What is the capital of France?"),
    and compiling takes minutes.
    """
    engine = model.engine_config
    arguments: dict[str, Any] = {
        "generation_config": engine.generation_config,
        "enable_log_requests": False,
        **SHUT,
        **engine.engine_kwargs,
        "allowed_media_domains": engine.engine_kwargs.get("allowed_media_domains") or [NO_MEDIA],
        "model": path,
        "served_model_name": [engine.model_id],
        "max_model_len": engine.length or LONGEST,
        "tensor_parallel_size": tensor_ranks_of(model),
    }
    if not model.scaling_config.num_gpus_per_worker and "compilation_config" not in arguments:
        arguments.setdefault("enforce_eager", True)
    if traces:
        arguments.setdefault("otlp_traces_endpoint", traces)
    if tokenizer or engine.tokenizer_id:
        arguments["tokenizer"] = tokenizer or engine.tokenizer_id
    if draft and isinstance(section := arguments.get("speculative_config"), dict):
        arguments["speculative_config"] = {**section, "model": draft}
        arguments["speculative_config"].pop("revision", None)  # it named the copy
    if backend := executor_backend(model):
        arguments.setdefault("distributed_executor_backend", backend)
    if engine.model_type == "embedding":
        arguments.setdefault("runner", "pooling")
    if adapters:
        arguments["enable_lora"] = True
        arguments["lora_modules"] = [{"name": name, "path": str(folder)} for name, folder in adapters.items()]
        arguments.setdefault("max_lora_rank", max(lora_rank(folder) for folder in adapters.values()))
    if unknown := sorted(engine.generation.generate_kwargs.keys() - ALLOWED):
        raise EngineError(f"generate_kwargs: found {unknown[0]!r}; allowed are {', '.join(sorted(ALLOWED))}")
    overrides = generation_overrides(engine.generation.generate_kwargs)
    if overrides:
        arguments["override_generation_config"] = {**overrides, **arguments.get("override_generation_config", {})}
    if engine.generation.prompt_format is not None:
        arguments["chat_template"] = compile_chat_template(engine.generation.prompt_format)
        arguments["chat_template_content_format"] = "string"
    return arguments


def lora_rank(folder: Path) -> int:
    """The smallest rank that vLLM knows and the adapter fits into (`max_lora_rank`, vLLM 0.32)."""
    rank = int(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("r", 8))
    return next((known for known in LORA_RANKS if known >= rank), rank)


def executor_backend(model: ModelConfig) -> str | None:
    """How vLLM runs its workers where the file does not say it; None leaves it to vLLM.

    One worker lives in the engine's process, as in `vllm serve` (`uni`). Several are its child processes (`mp`), and
    data parallel ranks are engines with a worker each. Both have to be said: in a placement group vLLM would take Ray
    (vLLM 0.32 `vllm/config/parallel.py`).
    """
    if data_ranks_of(model) > 1:
        return "uni"
    return "mp" if model.scaling_config.num_workers > 1 else None
