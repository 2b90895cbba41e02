"""The findings of the memory check, each at the key of the model file that has to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from modelfleet.infra.catalog import Accelerator, Catalog, Quantization, default_catalog
from modelfleet.infra.planning.cards import LEAST_SHARE, UTILIZATION, WHOLE_CARD, Card, share_of_part
from modelfleet.infra.planning.drafting import drafting_of, section_of
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import (
    Setting,
    experts_are_whole,
    gpu_memory,
    memory_in,
    sequence_bytes,
    setting_of,
    utilization_of,
)
from modelfleet.infra.planning.length import with_length
from modelfleet.infra.planning.memory.feedforward import experts_of
from modelfleet.infra.planning.memory.refusals import refusals, undivided
from modelfleet.infra.planning.nodes import MIB
from modelfleet.infra.planning.ways_out import ways_out, workers_allowed
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.document import KeyPath
from modelfleet.serving.config.errors import Finding, Severity, errors_in
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.serve_options import data_ranks_of, stages_of, tensor_ranks_of

KWARGS: KeyPath = ("engine_config", "engine_kwargs")
LENGTH: KeyPath = ("engine_config", "max_total_tokens")
WORKERS: KeyPath = ("scaling_config", "num_workers")
#: Architectures that vLLM 0.32 refuses in float16: vllm/config/model.py.
NO_FLOAT16 = {"gemma2", "gemma3", "gemma3_text", "glm4"}
#: Methods whose weights come quantized in the checkpoint.
CHECKPOINT_METHODS = {"awq", "auto_awq", "awq_marlin", "gptq", "auto_gptq", "gptq_marlin"}


def fit_findings(
    models: Iterable[LoadedModel],
    facts: Mapping[str, ModelFacts | None],
    catalog: Catalog | None = None,
    here: Sequence[Card] = (),
) -> list[Finding]:
    """Findings of all models. `facts` are by `model_id`; a model whose facts are None or absent gets a notice.

    `here` are the cards of this machine that serve.
    """
    tables = catalog or default_catalog()
    return sorted(
        finding for model in models for finding in model_findings(model, facts.get(model.config.model_id), tables, here)
    )


def model_findings(
    model: LoadedModel, facts: ModelFacts | None, catalog: Catalog, here: Sequence[Card] = ()
) -> list[Finding]:
    """Findings of one model."""
    model = dataclasses.replace(model, config=with_length(model.config, facts, catalog))
    accelerator = catalog.accelerators.get(model.config.accelerator)
    if facts is None:
        if model.config.accelerator == CPU:
            return []
        message = (
            f"nothing is known about {model.config.engine_config.weights_id}, so its memory is not checked; "
            "facts come from infra/catalog/models.csv, or from config.json and safetensors files in a local folder, "
            "the mirror or the Hub"
        )
        notice = model.document.finding(("engine_config", "model_id"), message, Severity.NOTICE)
        return [notice, *_part(model, accelerator)]
    found = [*_length(model, facts), *_division(model, facts), *_part(model, accelerator)]
    if accelerator is None:
        return found
    setting = setting_of(model.config, facts, accelerator)
    found += [*_dtype(model, facts, accelerator, catalog), *_kernels(model, facts, setting, catalog)]
    if errors_in(found):
        return found
    return [*found, *_memory(model, facts, setting, catalog, here), *_drafts(model, facts)]


def _length(model: LoadedModel, facts: ModelFacts) -> list[Finding]:
    engine = model.config.engine_config
    asked, limit = engine.length, facts.max_positions
    environment = engine.runtime_env.get("env_vars") or {}
    longer = environment.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1" or "hf_overrides" in engine.engine_kwargs
    if limit is None or asked is None or asked <= limit or longer:
        return []
    return [
        model.document.finding(LENGTH, f"found {asked}; the checkpoint has {limit} positions; allowed is up to {limit}")
    ]


def _division(model: LoadedModel, facts: ModelFacts) -> list[Finding]:
    workers, whole = tensor_ranks_of(model.config), experts_are_whole(model.config)
    if (ranks := data_ranks_of(model.config)) > 1:
        return _ranks(model, facts, ranks, experts_whole=whole)
    if workers_allowed(facts, workers, experts_whole=whole):
        return []
    allowed = [str(count) for count in (1, 2, 4, 8, 16) if workers_allowed(facts, count, experts_whole=whole)]
    fault = undivided(facts.checkpoint, workers, experts_whole=whole)
    message = f"found {workers}{_a_stage(model)}, but {fault}; allowed are {', '.join(allowed)}"
    return [model.document.finding(WORKERS, message)]


def _ranks(model: LoadedModel, facts: ModelFacts, ranks: int, *, experts_whole: bool) -> list[Finding]:
    """Data parallel ranks share experts: without any they are what replicas are, which come and go one by one."""
    if not experts_of(facts.checkpoint):
        fault = (
            "the model has no experts that its ranks could share; raise deployment_config.num_replicas or max_replicas"
        )
    elif not (fault := undivided(facts.checkpoint, 1, experts_whole=experts_whole, data_ranks=ranks)):
        return []
    return [model.document.finding((*KWARGS, "data_parallel_size"), f"found {ranks}, but {fault}")]


def _a_stage(model: LoadedModel) -> str:
    return " in each stage" if stages_of(model.config) > 1 else ""


def _part(model: LoadedModel, accelerator: Accelerator | None) -> list[Finding]:
    """A share of a part of a card that leaves its replicas no room for their contexts, which vLLM counts in none."""
    part = model.config.scaling_config.num_gpus_per_worker
    if accelerator is None or not 0 < part < 1:
        return []
    most = share_of_part(part, WHOLE_CARD, accelerator.usable_mib)
    share = utilization_of(model.config)
    if share <= max(LEAST_SHARE, most):
        return []
    message = (
        f"found {share:g} with num_gpus_per_worker {part:g}: with their CUDA contexts the replicas on a "
        f"{accelerator.name} would take more than it has; allowed is up to {most:g}. Leave it out, and it follows"
    )
    return [model.document.finding((*KWARGS, UTILIZATION), message)]


def _dtype(model: LoadedModel, facts: ModelFacts, accelerator: Accelerator, catalog: Catalog) -> list[Finding]:
    if accelerator.bfloat16:
        return []
    asked = str(model.config.engine_config.engine_kwargs.get("dtype", "auto"))
    name, path = accelerator.name, (*KWARGS, "dtype")
    if asked == "bfloat16":
        return [model.document.finding(path, f"found 'bfloat16', which a {name} does not have; write `dtype: half`")]
    if facts.architecture in NO_FLOAT16:
        able = ", ".join(one.name for one in catalog.accelerators.values() if one.bfloat16)
        message = f"{facts.architecture} does not run in float16, and a {name} has no bfloat16; choose one of {able}"
        return [model.document.finding(("scaling_config", "resources_per_worker"), message)]
    if asked == "auto" and facts.dtype == "bfloat16":
        message = (
            f"the checkpoint is bfloat16, which a {name} does not have; vLLM falls back to half; write `dtype: half`"
        )
        return [model.document.finding(KWARGS, message, Severity.WARNING)]
    return []


def _kernels(model: LoadedModel, facts: ModelFacts, setting: Setting, catalog: Catalog) -> list[Finding]:
    path = (*KWARGS, "quantization")
    asked = model.config.engine_config.engine_kwargs.get("quantization")
    if asked in CHECKPOINT_METHODS and facts.quantization is None:
        message = (
            f"found {asked!r}, but {model.config.engine_config.weights_id} is not quantized; name a checkpoint that is"
        )
        return [model.document.finding(path, message)]
    row = catalog.quantizations.get(setting.quantization or "")
    accelerator = setting.accelerator
    if row is not None and accelerator.compute_capability < row.min_compute_capability:
        return [model.document.finding(path, _too_old(row, accelerator, catalog))]
    checkpoint = memory_in(facts, setting).checkpoint
    faults = refusals(checkpoint, setting.engine, accelerator.compute_capability)
    others = catalog.accelerators.values()
    able = [a.name for a in others if not refusals(checkpoint, setting.engine, a.compute_capability)]
    has = ".".join(map(str, accelerator.compute_capability))
    return [
        model.document.finding(
            ("scaling_config", "resources_per_worker"),
            f"vLLM would not start: {fault}, but a {accelerator.name} has {has}; choose one of {', '.join(able)}",
        )
        for fault in faults
    ]


def _drafts(model: LoadedModel, facts: ModelFacts) -> list[Finding]:
    """A draft that cannot be counted may take the room by which the plan fits; its gain in speed is never estimated."""
    if section_of(model.config) is None:
        return []
    drafting = drafting_of(model.config, facts.checkpoint, facts.draft)
    path = (*KWARGS, "speculative_config")
    speed = "what drafts gain or cost in speed is not in the estimate"
    if not drafting.unknown:
        return [model.document.finding(path, speed, Severity.NOTICE)]
    message = (
        "drafts have weights and a cache of their own, which the plan does not count: "
        f"{drafting.unknown}; leave them room; {speed}"
    )
    return [model.document.finding(path, message, Severity.WARNING)]


def _too_old(row: Quantization, accelerator: Accelerator, catalog: Catalog) -> str:
    able = [one.name for one in catalog.accelerators.values() if one.compute_capability >= row.min_compute_capability]
    least, has = (".".join(map(str, pair)) for pair in (row.min_compute_capability, accelerator.compute_capability))
    found = f"{row.method} needs compute capability {least}, but a {accelerator.name} has {has}"
    return f"{found}; choose one of {', '.join(able)}"


def _memory(
    model: LoadedModel, facts: ModelFacts, setting: Setting, catalog: Catalog, here: Sequence[Card]
) -> list[Finding]:
    memory = gpu_memory(facts, setting)
    if memory.full_length_sequences >= 1:
        return []
    usable = setting.accelerator.usable_mib * setting.utilization / 1024
    one = sequence_bytes(facts, setting) / MIB / 1024
    ways = "; ".join(way.sentence() for way in ways_out(facts, setting, catalog, here)[:3])
    none = (
        "none on this machine's cards; serve a smaller model" if here else "none, for no known accelerator carries it"
    )
    message = (
        f"does not fit: of {usable:.1f} GiB usable on a {setting.accelerator.name}, weights take "
        f"{memory.weights_mib / 1024:.1f} GiB and the reserve {memory.reserve_mib / 1024:.1f} GiB; one sequence of "
        f"{setting.length} tokens needs {one:.1f} GiB of KV cache. "
        f"Fixes: {ways or none}"
    )
    return [model.document.finding(LENGTH, message)]
