"""What a replica takes of its node's memory: one figure, which the plan packs with, Ray reserves and vLLM gets.

A file that says it itself (`ray_actor_options.memory`, `kv_cache_memory_bytes`, `VLLM_CPU_KVCACHE_SPACE`) is left as
it is, where it reserves enough.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import host_weight_bytes, sequence_bytes, setting_of, weight_bytes, widest_stage
from modelfleet.serving.config.accelerators import CPU, Accelerator, known_gpus
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import tensor_ranks_of, workers_are_ray_actors

GIB = 1024**3
#: Replica and engine, with Python, torch, Ray and vLLM (2.2 GiB resident, SmolLM2 on CPUs), and each worker that is a
#: process of its own (0.92 GiB after its imports): a single one is the engine itself, unless Ray has it. Of data
#: parallel ranks each is an engine, and one process more coordinates them: as many as of workers and an engine.
PROCESSES_BYTES = 2 * GIB
WORKER_BYTES = GIB
#: The least key-value cache of a worker without a GPU.
CACHE_BYTES = GIB
#: vLLM's older way to say `kv_cache_memory_bytes`, in GiB (vLLM 0.32 `vllm/platforms/cpu.py`).
CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
#: The processor as an accelerator, for arithmetic that asks for one.
PROCESSOR = Accelerator(CPU, 0, 0, (0, 0), 2048, 256)


def with_host_memory(config: ModelConfig, facts: ModelFacts | None, *, reserve: bool) -> ModelConfig:
    """The model with the bytes that vLLM may use for its cache, and with `reserve` those that Ray keeps for it.

    Without a figure, vLLM's CPU build wants 92 % of the pod's memory free when it starts, and Ray alone holds more
    than the rest (vLLM 0.32 `vllm/v1/worker/cpu_worker.py`).
    """
    if config.accelerator == CPU and own_cache_bytes(config) is None:
        cache = _cache_bytes(config, facts)
        config = _with(config, "engine_config", engine_kwargs={**_arguments(config), "kv_cache_memory_bytes": cache})
    needed = host_bytes(config, facts)
    options = config.deployment_config.ray_actor_options
    if reserve and needed > (options.memory or 0):
        changed = options.model_copy(update={"memory": needed})
        config = _with(config, "deployment_config", ray_actor_options=changed)
    return config


def host_bytes(model: ModelConfig, facts: ModelFacts | None) -> int:
    """The bytes of its node's memory that a replica takes; 0 where they depend on a model of which nothing is known.

    With GPUs weights and cache are in theirs. Here is only what the file moves off them, and the n-gram tables that
    vLLM itself keeps here.
    """
    workers = model.scaling_config.num_workers
    apart = workers if workers > 1 or workers_are_ray_actors(model) else 0
    processes = PROCESSES_BYTES + apart * WORKER_BYTES
    arguments = _arguments(model)
    if model.accelerator != CPU:
        moved = _number(arguments.get("kv_offloading_size")) + workers * _number(arguments.get("cpu_offload_gb"))
        return round(processes + moved * GIB + _tables_bytes(model, facts))
    if facts is None:
        return 0
    cache = own_cache_bytes(model)
    cache = _cache_bytes(model, facts) if cache is None else cache
    setting = dataclasses.replace(setting_of(model, facts, PROCESSOR), workers=1, stages=1)
    return round(weight_bytes(facts, setting) + workers * cache + processes)


def _tables_bytes(model: ModelConfig, facts: ModelFacts | None) -> float:
    """The n-gram tables of all workers (vLLM 0.32 `config/engram.py`: `cpu_offload` is the default)."""
    card = known_gpus().get(model.accelerator)
    if facts is None or card is None:
        return 0.0
    return model.scaling_config.num_workers * host_weight_bytes(facts, setting_of(model, facts, card))


def own_cache_bytes(model: ModelConfig) -> int | None:
    """The key-value cache of one worker as the file gives it; None when it does not."""
    if (given := _arguments(model).get("kv_cache_memory_bytes")) is not None:
        return int(_number(given))
    space = (model.engine_config.runtime_env.get("env_vars") or {}).get(CACHE_VARIABLE)
    return int(str(space)) * GIB if str(space).isdigit() else None


def _cache_bytes(model: ModelConfig, facts: ModelFacts | None) -> int:
    """Room for one sequence of the longest length on one worker, and at least `CACHE_BYTES`."""
    if facts is None:
        return CACHE_BYTES
    setting = widest_stage(facts, dataclasses.replace(setting_of(model, facts, PROCESSOR), workers=1))
    return max(CACHE_BYTES, math.ceil(sequence_bytes(facts, setting) / tensor_ranks_of(model)))


def _arguments(model: ModelConfig) -> dict[str, Any]:
    return model.engine_config.engine_kwargs


def _with(config: ModelConfig, section: str, **changes: Any) -> ModelConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
