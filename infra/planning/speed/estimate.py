"""From a predicted speed to the figures that people see: ranges, what they rest on, and a price per token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelfleet.infra.catalog.speed import Measurement, SpeedRange, fitted_factors, speed_cards, speed_ranges
from modelfleet.infra.planning.speed.inputs import PRECISION_FORMATS, VLLM, Load, Server, SpeedShape, WeightFormat
from modelfleet.infra.planning.speed.serving import serve

#: A measurement stands for a load whose lengths and concurrency differ from its own by no more than this factor.
SAME_LOAD: Final = 1.25


@dataclass(frozen=True)
class Range:
    """An expected value, and bounds that hold four of five values of a source that the fit has not seen."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class SpeedEstimate:
    """What clients of one replica see. `dataclasses.asdict` of it is what `--json` prints.

    The load are `concurrency` clients with mean lengths in tokens. Time to first token and time per output token are
    means in ms, over all clients, with ten requests each; None when `saturated`: such a load is above the replica's
    capacity, which `output_tokens_per_second` then is.
    """

    input_tokens: float
    output_tokens: float
    concurrency: float
    ttft_ms: Range | None
    tpot_ms: Range | None
    output_tokens_per_second: Range
    saturated: bool
    running_sequences: float
    basis: str
    """`estimate`, or `measured: <card>, <date>` where a measurement of the same model, card and load exists."""
    source: str
    usd_per_million_tokens: float | None
    """USD per million output tokens; None where the replica's price is unknown."""


def server_with(
    accelerator: str,
    *,
    gpus: int,
    kv_tokens: float,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    engine: str = VLLM,
) -> Server | None:
    """A replica on this accelerator with the fitted factors; None for one whose peaks are not known."""
    card = speed_cards().get(accelerator)
    if card is None:
        return None
    table = fitted_factors()
    known = table.measured(card)
    return Server(
        card, table.of(card, engine), gpus, kv_tokens, max_num_seqs, max_num_batched_tokens, measured_card=known
    )


def estimate_speed(
    shape: SpeedShape,
    server: Server,
    load: Load,
    *,
    measured: Measurement | None = None,
    ranges: Mapping[tuple[str, str, str, str], SpeedRange] | None = None,
    usd_per_hour: float | None = None,
) -> SpeedEstimate:
    """The speed of one replica under a load; `measured` (of `measurement_of`) takes the place of what it has.

    `usd_per_hour` is what the replica costs.
    """
    speed = serve(shape, server, load)
    card = "measured" if server.measured_card else "other"
    kind = ("single" if load.concurrency <= 1 else "loaded", "experts" if shape.experts else "dense")

    def around(metric: str, value: float, found: float | None) -> Range:
        if found is not None:
            return Range(found, found, found)
        spread = (ranges or speed_ranges())[card, metric, *kind]
        return Range(value * spread.low, value, value * spread.high)

    def latency(metric: str, seconds: float | None, found: float | None) -> Range | None:
        return None if seconds is None and found is None else around(metric, (seconds or 0.0) * 1e3, found)

    per_second = around("throughput", speed.output_tokens_per_s, measured.output_tokens_per_s if measured else None)
    return SpeedEstimate(
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        concurrency=load.concurrency,
        ttft_ms=latency("ttft", speed.ttft_s, measured.ttft_ms if measured else None),
        tpot_ms=latency("tpot", speed.tpot_s, measured.tpot_ms if measured else None),
        output_tokens_per_second=per_second,
        saturated=speed.saturated,
        running_sequences=speed.running,
        basis=f"measured: {measured.accelerator}, {measured.date}" if measured else "estimate",
        source=measured.source if measured else "",
        usd_per_million_tokens=None if usd_per_hour is None else _usd_per_million(usd_per_hour, per_second.expected),
    )


def measurement_of(
    model: str, weight_format: WeightFormat, server: Server, load: Load, rows: Sequence[Measurement]
) -> Measurement | None:
    """The measurement of the same model on as many of the same cards with vLLM, whose load is nearest; None if far."""
    wanted = (model, weight_format, server.card.name, server.gpus)
    same = [
        row
        for row in rows
        if (row.model, PRECISION_FORMATS[row.precision], row.accelerator, row.gpus) == wanted
        and row.engine == VLLM
        and row.load == "clients"
        and row.requests is not None
    ]
    nearest = min(same, key=lambda row: _distance(row, load), default=None)
    return nearest if nearest is not None and _distance(nearest, load) <= math.log(SAME_LOAD) else None


def _distance(row: Measurement, load: Load) -> float:
    pairs = (
        (row.input_tokens, load.input_tokens),
        (row.output_tokens, load.output_tokens),
        (row.requests or 1, load.concurrency),
    )
    return max(abs(math.log(one / other)) for one, other in pairs)


def _usd_per_million(usd_per_hour: float, output_tokens_per_second: float) -> float:
    """What a million output tokens cost at this price and speed."""
    return usd_per_hour / 3600 / output_tokens_per_second * 1e6
