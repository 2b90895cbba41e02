"""RayLLM's names and habits, turned into today's before validation; a notice for each shows the new spelling.

Whatever RayLLM (v0.2 to v0.5) accepted is accepted; `models/README.md` lists where today's meaning differs on purpose.
What cannot be carried over is refused, with what to write instead. Nothing here guesses: a value of an unexpected shape
stays as it is, and validation finds it.
"""

from __future__ import annotations

from typing import Any

from modelfleet.serving.config.accelerators import (
    RESOURCE_PREFIX,
    STEERING_FRACTION,
    accelerators,
    legacy_resources,
    resource_name,
)
from modelfleet.serving.config.catalogs import removed
from modelfleet.serving.config.document import Document, KeyPath
from modelfleet.serving.config.rayllm.rewriting import MISSING, Rewriter

AUTOSCALING = ("deployment_config", "autoscaling_config")
ENGINE = ("engine_config",)
ACTOR_RESOURCES = ("deployment_config", "ray_actor_options", "resources")
WORKER_RESOURCES = ("scaling_config", "resources_per_worker")

TRT_KEYS = (
    "model_local_path", "scheduler_policy", "logger_level", "max_num_sequences", "max_tokens_in_paged_kv_cache",
    "kv_cache_free_gpu_mem_fraction", "enable_trt_overlap",
)  # fmt: skip
EMBEDDING_KEYS = ("optimize", "max_batch_size", "batch_wait_timeout_s")
INERT_GENERATE_KWARGS = {
    "do_sample": "it had no effect; `temperature: 0` is greedy decoding",
    "return_token_type_ids": "it had no effect",
    "ignore_eos_token": "it had no effect; vLLM's name is ignore_eos",
    "add_special_tokens": "it had no effect",
    "num_beams": "it had no effect",
    "min_new_tokens": "it had no effect; vLLM's name is min_tokens",
}


def normalise(document: Document) -> Rewriter:
    """The document with today's names, a notice for each change, and an error for what has no equivalent today."""
    rewriter = Rewriter(document)
    if isinstance(rewriter.data, dict):
        for rule in (_aviary, _top_level, _deployment, _autoscaling, _engine, _generation, _scaling, _resources):
            rule(rewriter)
    return rewriter


def _aviary(doc: Rewriter) -> None:
    """Files of Aviary, RayLLM's predecessor, had `model_config`; RayLLM itself refused them."""
    if doc.get("model_config") is MISSING or doc.get(*ENGINE) is not MISSING:
        return
    doc.refuse(
        ("model_config",),
        "is a section of Aviary, RayLLM's predecessor; write engine_config with model_id, type: VLLMEngine, "
        "max_total_tokens, engine_kwargs and generation (prompt_format with system, user, assistant, "
        "trailing_assistant), see models/README.md; batching, initialization and pipeline have no equivalent",
    )
    del doc.data["model_config"]


def _top_level(doc: Rewriter) -> None:
    if doc.get("multiplex_config") is not MISSING:
        doc.drop(("multiplex_config",), message="RayLLM read it and did nothing with it; leave it out")


def _deployment(doc: Rewriter) -> None:
    section = ("deployment_config",)
    old: KeyPath = (*section, "max_concurrent_queries")
    if (value := doc.get(*map(str, old))) is None:
        doc.drop(
            old,
            message="null meant Ray Serve's default, 100, which is still max_ongoing_requests' default; leave it out",
        )
    elif value is not MISSING:
        doc.rename(old, (*section, "max_ongoing_requests"), message=f"today's name is max_ongoing_requests: {value}")
    for key in ("user_config", "version"):
        if doc.get(*section, key) is not MISSING:
            doc.drop((*section, key), message="had no effect in RayLLM and has none here; leave it out")


def _autoscaling(doc: Rewriter) -> None:
    renames = {
        "target_num_ongoing_requests_per_replica": ("target_ongoing_requests",),
        "smoothing_factor": ("upscaling_factor", "downscaling_factor"),
        "upscale_smoothing_factor": ("upscaling_factor",),
        "downscale_smoothing_factor": ("downscaling_factor",),
    }
    for old, new in renames.items():
        if (value := doc.get(*AUTOSCALING, old)) is not MISSING:
            today = " and ".join(f"{name}: {value}" for name in new)
            doc.rename((*AUTOSCALING, old), *((*AUTOSCALING, name) for name in new), message=f"today's name is {today}")


def _engine(doc: Rewriter) -> None:
    kind = doc.get(*ENGINE, "type")
    if kind == "TRTLLMEngine":
        _refuse_trt(doc)
    elif kind == "TextGenerationInferenceEngine":
        doc.replace((*ENGINE, "type"), "VLLMEngine", message="RayLLM v0.2's engine is gone; today: VLLMEngine")
    elif kind == "EmbeddingEngine":
        _embedding(doc)
    _text_generation_inference(doc)
    for name in list(doc.mapping(*ENGINE, "engine_kwargs")):
        if (gone := removed("arguments").get(name)) is not None and gone.drop:
            doc.drop((*ENGINE, "engine_kwargs", name), message=gone.sentence())


def _refuse_trt(doc: Rewriter) -> None:
    doc.refuse(
        (*ENGINE, "type"),
        "found 'TRTLLMEngine'; allowed is VLLMEngine, with hf_model_id of the Hugging Face checkpoint and "
        "max_total_tokens; remove s3_mirror_config, because its bucket holds TensorRT engines and not weights",
    )
    doc.data["engine_config"]["type"] = "VLLMEngine"
    for key in TRT_KEYS:
        doc.data["engine_config"].pop(key, None)


def _embedding(doc: Rewriter) -> None:
    doc.replace(
        (*ENGINE, "type"),
        "VLLMEngine",
        message="today vLLM makes embeddings too: VLLMEngine with model_type: embedding",
    )
    if doc.get(*ENGINE, "model_type") is MISSING:
        doc.put(
            (*ENGINE, "model_type"), "embedding", message="added model_type: embedding", because_of=(*ENGINE, "type")
        )
    if doc.get(*ENGINE, "max_total_tokens") is MISSING:
        message = "added max_total_tokens: 512, the embedding engine's default"
        doc.put((*ENGINE, "max_total_tokens"), 512, message=message, because_of=(*ENGINE, "type"))
    for key in EMBEDDING_KEYS:
        if doc.get(*ENGINE, key) is not MISSING:
            doc.drop((*ENGINE, key), message="belonged to the embedding engine; vLLM batches by itself, leave it out")


def _text_generation_inference(doc: Rewriter) -> None:
    """`scheduler.policy` and `model_init_kwargs` of RayLLM up to v0.2."""
    policy = ("scheduler", "policy")
    moves = {
        "max_total_tokens": ("max_total_tokens",),
        "max_batch_prefill_tokens": ("engine_kwargs", "max_num_batched_tokens"),
    }
    for old, new in moves.items():
        if (value := doc.get(*ENGINE, *policy, old)) is not MISSING:
            message = f"today: engine_config.{'.'.join(new)}: {value}"
            doc.rename((*ENGINE, *policy, old), (*ENGINE, *new), message=message)
    if doc.get(*ENGINE, "scheduler") is not MISSING:
        message = "vLLM schedules by itself, from engine_kwargs.gpu_memory_utilization; leave it out"
        doc.drop((*ENGINE, "scheduler"), message=message)
    for key, value in list(doc.mapping(*ENGINE, "model_init_kwargs").items()):
        message = f"today: engine_config.engine_kwargs.{key}: {value}"
        doc.rename((*ENGINE, "model_init_kwargs", key), (*ENGINE, "engine_kwargs", key), message=message)
    if doc.get(*ENGINE, "model_init_kwargs") in ({}, None):
        doc.drop((*ENGINE, "model_init_kwargs"), message="is empty; leave it out")


def _generation(doc: Rewriter) -> None:
    section = (*ENGINE, "generation")
    if doc.get(*section, "prompt_format") == {}:
        doc.replace(
            (*section, "prompt_format"), None, message="an empty prompt_format is none; today: null, or leave it out"
        )
    kwargs = doc.mapping(*section, "generate_kwargs")
    for key, why in INERT_GENERATE_KWARGS.items():
        if key in kwargs:
            doc.drop((*section, "generate_kwargs", key), message=f"{why}; leave it out")


def _scaling(doc: Rewriter) -> None:
    scaling = doc.mapping("scaling_config")
    if "pg_timeout_s" in scaling:
        doc.drop(("scaling_config", "pg_timeout_s"), message="RayLLM read it and did nothing with it; leave it out")


def _resources(doc: Rewriter) -> None:
    for path in (ACTOR_RESOURCES, WORKER_RESOURCES):
        for name, value in list(doc.mapping(*path).items()):
            if (accelerator := _meant(name)) is None:
                continue
            _rename_resource(doc, path, name, value, accelerator)
    _one_kind_of_node(doc)


def _rename_resource(doc: Rewriter, path: KeyPath, name: str, value: Any, accelerator: str) -> None:
    today = resource_name(accelerator)
    if name != today:
        message = f"today's name is {today}: {STEERING_FRACTION}"
        if name == "accelerator_type_a100":
            message += f", or {resource_name('A100-80G')} if it meant the larger one"
        doc.rename((*path, name), (*path, today), message=message, value=STEERING_FRACTION)
    elif isinstance(value, float) and value in (0.01, 0.1):
        message = f"today's value is {today}: {STEERING_FRACTION}"
        doc.replace((*path, name), STEERING_FRACTION, message=message)


def _meant(name: str) -> str | None:
    """The accelerator that a resource's old name means, in any case; None for another resource."""
    if name in legacy_resources():
        return legacy_resources()[name]
    if not name.startswith(RESOURCE_PREFIX):
        return None
    return next(
        (known for known in accelerators() if known.lower() == name.removeprefix(RESOURCE_PREFIX).lower()), None
    )


def _one_kind_of_node(doc: Rewriter) -> None:
    """Old files put the replica on a CPU node and its workers on GPU nodes; today they share a pool."""
    cpu = resource_name("CPU")
    workers = [name for name in doc.mapping(*WORKER_RESOURCES) if _meant(name) not in (None, "CPU")]
    if len(workers) != 1 or cpu not in doc.mapping(*ACTOR_RESOURCES):
        return
    doc.rename(
        (*ACTOR_RESOURCES, cpu),
        (*ACTOR_RESOURCES, workers[0]),
        message=f"the replica runs in its workers' pool today: {workers[0]}: {STEERING_FRACTION}",
        value=STEERING_FRACTION,
    )
