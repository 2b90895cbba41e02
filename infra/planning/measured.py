"""What was measured on real cards beside what the plan says: a correction for a card, and a comparison for one start.

A model that was measured on a card is counted with that (`fit.measured_row`). Of the card's other models only the
reserve is corrected, and only upwards: that a few models took less than estimated proves nothing of the next.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import median

from modelfleet.infra.catalog import Accelerator, Catalog, Measured
from modelfleet.infra.planning.facts import ModelFacts, facts_from_config
from modelfleet.infra.planning.fit import (
    GIB,
    Setting,
    gpu_memory,
    memory_in,
    reserve_bytes,
    variant,
)
from modelfleet.infra.planning.nodes import MIB
from modelfleet.infra.planning.replica_speed import replica_speed
from modelfleet.infra.planning.speed import Load, Range
from modelfleet.serving.versions import PINNED

#: A plan is off where it promises this much more or less of the KV tokens, or misses any part of memory by so much.
TOKENS_OFF, GIB_OFF = 0.02, 0.3
#: Tokens of the measured prompts and answers, and how many were decoded at once.
PROMPT, ANSWER, AT_ONCE = 1024, 129, (1, 8, 32)


def on_measured(catalog: Catalog) -> Catalog:
    """The catalog with each accelerator's reserve as it was measured; the same for one that has this already."""
    return dataclasses.replace(
        catalog, accelerators={name: as_measured(card, catalog) for name, card in catalog.accelerators.items()}
    )


def as_measured(card: Accelerator, catalog: Catalog) -> Accelerator:
    """The accelerator with what was measured on it: more reserve, and the memory of one that is not in the table."""
    rows = [row for row in catalog.measured if row.accelerator == card.name and row.vllm == PINNED["vllm"]]
    if not rows:
        return card
    usable = card.usable_mib if card.nvml else min(round(row.usable_gib * 1024) for row in rows)
    card = dataclasses.replace(card, usable_mib=usable)
    found: dict[str, float] = {}
    for row in rows:
        if not row.variant and (more := _more_reserve(row, card, catalog)) is not None:
            found[row.model] = max(more, found.get(row.model, more))
    return dataclasses.replace(card, reserve_more_mib=max(0.0, median(found.values()) / MIB) if found else 0.0)


def _more_reserve(row: Measured, card: Accelerator, catalog: Catalog) -> float | None:
    """Bytes of reserve beyond the estimate; None where the catalog does not know the model's shape."""
    known = catalog.model(row.model)
    if known is None or known.config is None:
        return None
    facts = facts_from_config(known.config, known.shape_source, catalog)
    setting = Setting(
        accelerator=card,
        workers=row.gpus,
        length=row.length,
        utilization=row.utilization,
        batched_tokens=row.batched_tokens,
        sequences=row.sequences,
        value_bytes=2.0,
        kv_dtype="auto",
        quantization=facts.quantization,
        eager=False,
    )
    return row.reserve_gib * GIB - reserve_bytes(facts, setting)


@dataclass(frozen=True)
class Taken:
    """What one start of vLLM took: GiB of one card, tokens, milliseconds; None where it was not said or not timed.

    `pretended`: no card did, so that only tokens for the same GiB of cache can be compared.
    """

    usable_gib: float | None = None
    weights_gib: float | None = None
    non_torch_gib: float | None = None
    peak_gib: float | None = None
    kv_gib: float | None = None
    kv_tokens: int | None = None
    graphs_gib: float | None = None
    prefill_1024_ms: float | None = None
    token_ms_1: float | None = None
    token_ms_8: float | None = None
    token_ms_32: float | None = None
    pretended: bool = False


@dataclass(frozen=True)
class Where:
    """On what something was measured: the driver's name of the card and its version, the Hub id, ISO 8601."""

    card: str
    driver: str
    model: str
    date: str
    source: str


def measured_of(taken: Taken, facts: ModelFacts, setting: Setting, where: Where) -> Measured | None:
    """The row of measured.csv; None where no card was measured, or vLLM did not say what a row needs."""
    needed = (taken.usable_gib, taken.weights_gib, taken.kv_gib, taken.kv_tokens)
    if taken.pretended or None in needed:
        return None
    found = dataclasses.asdict(taken)
    del found["pretended"]
    return Measured(
        accelerator=setting.accelerator.name,
        gpus=setting.gpus,
        variant=variant(facts, setting),
        length=setting.length,
        batched_tokens=setting.batched_tokens,
        sequences=setting.sequences,
        utilization=setting.utilization,
        vllm=PINNED["vllm"],
        **dataclasses.asdict(where),
        **found,
    )


@dataclass(frozen=True)
class Line:
    """One figure of a comparison: what the plan says, what vLLM took, in `unit`; None where one side has none.

    `off` says that the plan missed by more than it may; `low` and `high` are the bounds of an estimate that has some.
    """

    what: str
    unit: str
    ours: float | None
    real: float | None
    off: bool = False
    low: float | None = None
    high: float | None = None

    @property
    def difference(self) -> float | None:
        """`real` less `ours`."""
        return None if self.ours is None or self.real is None else self.real - self.ours


def compared(facts: ModelFacts, setting: Setting, taken: Taken) -> list[Line]:
    """The plan's figures beside those of a start under the same setting, in the order of a table.

    `setting` is the plan's. Rows of earlier measurements count on the plan's side, as they do in plans.
    """
    held, blocks = gpu_memory(facts, setting), memory_in(facts, setting)
    cache_gib = held.kv_cache_mib / 1024
    reserve = None
    if taken.usable_gib is not None and taken.weights_gib is not None and taken.kv_gib is not None:
        reserve = taken.usable_gib * setting.utilization - taken.weights_gib - taken.kv_gib
    same_room = taken.kv_gib if taken.pretended and taken.kv_gib is not None else cache_gib
    tokens = blocks.pool.tokens(int(same_room * GIB), blocks.demand)
    lines = [
        _gib("weights", held.weights_mib / 1024, taken.weights_gib),
        _gib("reserve", held.reserve_mib / 1024, reserve),
        _gib("  non-torch memory", None, taken.non_torch_gib),
        _gib("  profiling peak", None, taken.peak_gib),
        _gib("KV cache", None if taken.pretended else cache_gib, taken.kv_gib),
        _tokens(tokens, taken.kv_tokens),
        _gib("CUDA graphs, beside its share", None, taken.graphs_gib),
        *_speeds(facts, setting, taken),
    ]
    return [line for line in lines if line.real is not None]


def _tokens(ours: int, real: int | None) -> Line:
    off = real is not None and abs(real - ours) > TOKENS_OFF * ours
    return Line("KV cache", "tokens", ours, real, off=off)


def _gib(what: str, ours: float | None, real: float | None) -> Line:
    off = ours is not None and real is not None and abs(real - ours) > GIB_OFF
    return Line(what, "GiB", ours, real, off=off)


def _speeds(facts: ModelFacts, setting: Setting, taken: Taken) -> list[Line]:
    """First token of one prompt, and a token at several at once; an estimate's own bounds say how sure it is.

    The estimate is of clients that keep asking, so it has the prefills of others in it; the measurement has one wave.
    """
    found = []
    for count, real in zip(AT_ONCE, (taken.token_ms_1, taken.token_ms_8, taken.token_ms_32), strict=True):
        estimate = None if taken.pretended else replica_speed(facts, setting, Load(PROMPT, ANSWER, count))
        if count == 1:
            first = estimate.ttft_ms if estimate else None
            found.append(_ms(f"first token, {PROMPT:,} in", first, taken.prefill_1024_ms))
        found.append(_ms(f"a token, {count} at once", estimate.tpot_ms if estimate else None, real))
    return found


def _ms(what: str, ours: Range | None, real: float | None) -> Line:
    if ours is None:
        return Line(what, "ms", None, real)
    return Line(what, "ms", ours.expected, real, low=ours.low, high=ours.high)
