"""What clients of one replica wait for, from a model's facts and the setting it runs under. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from modelfleet.infra.catalog.speed import Measurement
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import Setting, gpu_memory, memory_in
from modelfleet.infra.planning.memory.caches import Demand
from modelfleet.infra.planning.memory.layers import encoder_only
from modelfleet.infra.planning.nodes import MIB
from modelfleet.infra.planning.speed import Load, SpeedEstimate, estimate_speed, measurement_of, server_with
from modelfleet.infra.planning.speed.inputs import VLLM
from modelfleet.infra.planning.speed.shape import shape_of


def replica_speed(
    facts: ModelFacts,
    setting: Setting,
    load: Load,
    *,
    model: str = "",
    engine: str = VLLM,
    room: float | None = None,
    rows: Sequence[Measurement] = (),
) -> SpeedEstimate | None:
    """The speed of a replica under a load.

    `room` are the bytes of KV cache on one GPU, where they are not what the setting leaves. A row of `rows` for the
    same `model`, card and load takes the place of the estimate. None: the card's peaks are not known, the model writes
    no tokens, or not one request of these lengths has room.
    """
    memory = memory_in(facts, setting)
    if encoder_only(memory.checkpoint):
        return None
    held = gpu_memory(facts, setting).kv_cache_mib * MIB if room is None else room
    capacity = _capacity(facts, setting, load, held)
    server = server_with(
        setting.accelerator.name,
        gpus=setting.workers,
        kv_tokens=capacity,
        max_num_seqs=setting.sequences,
        max_num_batched_tokens=setting.batched_tokens,
        engine=engine,
    )
    if server is None or capacity < load.input_tokens + load.output_tokens:
        return None
    shape = shape_of(memory, facts.header_ratio)
    measured = measurement_of(model, shape.weight_format, server, load, rows) if engine == VLLM else None
    return estimate_speed(shape, server, load, measured=measured)


def _capacity(facts: ModelFacts, setting: Setting, load: Load, room: float) -> float:
    """Tokens of requests with these lengths that the replica's caches hold: each GPU has its part of every request.

    A running request holds its window and the token that it writes, not a whole batch in flight, which vLLM reserves
    for the longest request alone.
    """
    pool = memory_in(facts, setting).pool
    if not pool.groups:
        return float("inf")
    demand = Demand(max(1, round(load.input_tokens + load.output_tokens)), in_flight=1)
    return float(pool.tokens(max(0, int(room) - pool.block_bytes), demand))
