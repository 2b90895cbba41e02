"""A replica under load: what its clients wait for, from the seconds of its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from modelfleet.infra.planning.speed.inputs import Load, Server, SpeedShape
from modelfleet.infra.planning.speed.steps import admission_seconds, decode_seconds, prefill_seconds

#: A queue is predicted for no more than this share of the time spent on prefills.
MOST_BUSY: Final = 0.95


@dataclass(frozen=True)
class Speed:
    """Seconds and tokens per second of one replica; a saturated one has no latency that could be predicted."""

    ttft_s: float | None
    tpot_s: float | None
    output_tokens_per_s: float
    running: float
    """Sequences in the batch."""
    saturated: bool


def running_limit(server: Server, load: Load) -> float:
    """How many requests run at once: vLLM's limit, or as many as the KV cache holds with half of their output."""
    return _limit(server, load.input_tokens + load.output_tokens / 2)


def safe_limit(server: Server, load: Load) -> float:
    """How many requests run at once even when all are at full length: with more, some wait or start again."""
    return _limit(server, load.input_tokens + load.output_tokens)


def _limit(server: Server, tokens: float) -> float:
    return max(1.0, min(float(server.max_num_seqs), server.kv_tokens / tokens))


def mean_context(load: Load) -> float:
    """Tokens that a running sequence has, on average."""
    return load.input_tokens + load.output_tokens / 2


def serve(shape: SpeedShape, server: Server, load: Load) -> Speed:
    """A closed loop of `load.concurrency` clients.

    With more clients than run at once, the others wait for a place: `saturated`, which has a throughput and no latency.
    """
    saturated = load.concurrency > safe_limit(server, load)
    running = min(load.concurrency, running_limit(server, load))
    step = decode_seconds(shape, server, running, mean_context(load))
    taken = admission_seconds(shape, server, load.input_tokens)
    cycle = _seconds_per_request(shape, server, load, running, step, taken)
    speed = Speed(None, None, load.output_tokens / cycle, running, saturated)
    if saturated:
        return speed
    alone = prefill_seconds(shape, server, load.input_tokens)
    waiting = _waiting_seconds(server, load, running, step, taken)
    ttft = server.factors.request_ms * 1e-3 + alone + waiting
    # A token takes a step, and the prefills of the other clients' requests in the meantime.
    tpot = step + (running - 1) * taken / load.output_tokens
    return Speed(ttft, tpot, speed.output_tokens_per_s, running, saturated=False)


def _seconds_per_request(
    shape: SpeedShape, server: Server, load: Load, running: float, step: float, taken: float
) -> float:
    """The replica's time for one request: its prefill, its share of the steps, and the wait for the next one."""
    steps = max(0.0, load.output_tokens - 1)
    request = server.factors.request_ms * 1e-3
    if running <= 1:
        return prefill_seconds(shape, server, load.input_tokens) + steps * step + request
    return taken + (steps * step + request) / running


def _waiting_seconds(server: Server, load: Load, running: float, step: float, taken: float) -> float:
    """What a request waits beside its own prefill: decoding, prefills before it, the first burst of a run.

    It comes half a step late on average, and each chunk of its prefill shares a step with the others' decoding.
    All clients begin at once, as benchmarks do: the mean over ten requests each contains that burst.
    """
    if running <= 1:
        return 0.0
    chunks = math.ceil(load.input_tokens / server.max_num_batched_tokens)
    cycle = taken + max(0.0, load.output_tokens - 1) * step / running
    busy = min(MOST_BUSY, taken / cycle * (running - 1) / running)
    burst = server.factors.burst * (running - 1) / 2 * taken
    return (chunks + 0.5) * step + queue_seconds(server, busy, taken) + burst


def queue_seconds(server: Server, busy: float, taken: float) -> float:
    """The wait for other prefills, which fill the share `busy` of the time with `taken` seconds each (M/D/1)."""
    return server.factors.queue * busy / (2 * (1 - busy)) * taken
