"""What clients of one replica wait for, from a model's facts and the setting it runs under. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.catalog.speed import Measurement, measurements, speed_cards
from modelfleet.infra.planning.applications import kind_of
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import Setting, gpu_memory, memory_in, setting_of
from modelfleet.infra.planning.memory.caches import Demand
from modelfleet.infra.planning.memory.layers import encoder_only
from modelfleet.infra.planning.nodes import MIB
from modelfleet.infra.planning.speed import (
    Load,
    SpeedEstimate,
    estimate_speed,
    measurement_of,
    server_with,
)
from modelfleet.infra.planning.speed.inputs import ASSUMED_INPUT, ASSUMED_OUTPUT, VLLM
from modelfleet.infra.planning.speed.shape import shape_of
from modelfleet.serving.config.schema import ModelConfig


def replica_speed(
    facts: ModelFacts,
    setting: Setting,
    load: Load,
    *,
    model: str = "",
    engine: str = VLLM,
    room: float | None = None,
    rows: Sequence[Measurement] = (),
    usd_per_hour: float | None = None,
) -> SpeedEstimate | None:
    """The speed of a replica under a load; None where `why_no_speed` says why.

    `room` are the bytes of KV cache on one GPU, where they are not what the setting leaves. A row of `rows` for the
    same `model`, card and load takes the place of the estimate. `usd_per_hour` is what the replica costs.
    """
    if why_no_speed(facts, setting, load, room):
        return None
    server = server_with(
        setting.accelerator.name,
        gpus=setting.workers,
        kv_tokens=_capacity(facts, setting, load, room),
        max_num_seqs=setting.sequences,
        max_num_batched_tokens=setting.batched_tokens,
        engine=engine,
    )
    if server is None:
        return None
    shape = shape_of(memory_in(facts, setting), load.input_tokens + load.output_tokens, facts.header_ratio)
    measured = measurement_of(model, shape.weight_format, server, load, rows) if engine == VLLM else None
    return estimate_speed(shape, server, load, measured=measured, usd_per_hour=usd_per_hour)


def target_requests(model: ModelConfig) -> float:
    """Requests at once for which a replica's speed is told: what its autoscaler aims for, at least one."""
    scaling = model.deployment_config.autoscaling_config
    return max(1.0, scaling.target_ongoing_requests if scaling else 1.0)


def model_speed(
    model: ModelConfig,
    facts: ModelFacts | None,
    catalog: Catalog,
    usd_per_hour: float | None,
    *,
    requests: float | None = None,
) -> SpeedEstimate | None:
    """One replica of a model file at so many `requests` at once, by default its `target_ongoing_requests`.

    `usd_per_hour` is what the replica costs. None for a model that writes no tokens, and where its shape or its card's
    peaks are not known.
    """
    accelerator = catalog.accelerators.get(model.accelerator)
    if facts is None or accelerator is None or kind_of(model.engine_config) != "text":
        return None
    setting = setting_of(model, facts, accelerator)
    prompt = min(ASSUMED_INPUT, setting.length * ASSUMED_INPUT // (ASSUMED_INPUT + ASSUMED_OUTPUT))
    answer = min(ASSUMED_OUTPUT, setting.length - prompt)
    load = Load(prompt, answer, target_requests(model) if requests is None else requests)
    name = model.engine_config.weights_id
    return replica_speed(facts, setting, load, model=name, rows=measurements(), usd_per_hour=usd_per_hour)


def why_no_speed(facts: ModelFacts, setting: Setting, load: Load, room: float | None = None) -> str:
    """Why a replica has no speed under a load; empty when it has one."""
    tokens = load.input_tokens + load.output_tokens
    if encoder_only(memory_in(facts, setting).checkpoint):
        return "the model writes no tokens"
    if setting.stages > 1:
        return "pipelines over nodes are not in the estimate"
    if setting.data_ranks > 1:
        return "data parallel ranks are not in the estimate"
    if setting.accelerator.name not in speed_cards():
        return f"the peaks of {setting.accelerator.name} are not known"
    if tokens > setting.length:
        return f"a request of {tokens:,.0f} tokens is longer than max_model_len {setting.length:,}"
    if _capacity(facts, setting, load, room) < tokens:
        return f"not one request of {tokens:,.0f} tokens has room in the KV cache"
    return ""


def _capacity(facts: ModelFacts, setting: Setting, load: Load, room: float | None) -> float:
    """Tokens of requests with these lengths that the replica's caches hold: each GPU has its part of every request.

    A running request holds its window and the token that it writes, not a whole batch in flight, which vLLM reserves
    for the longest request alone.
    """
    pool = memory_in(facts, setting).pool
    if not pool.groups:
        return float("inf")
    held = gpu_memory(facts, setting).kv_cache_mib * MIB if room is None else room
    demand = Demand(max(1, round(load.input_tokens + load.output_tokens)), in_flight=1)
    return float(pool.tokens(max(0, int(held) - pool.block_bytes), demand))
