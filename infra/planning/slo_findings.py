"""Goals that cannot be watched, and goals that the plan's own estimate does not expect to be met."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.planning.applications import kind_of
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.replica_speed import model_speed, target_requests
from modelfleet.infra.planning.slo import LATENCY_KEYS, MS_PER_S, ObjectiveName, bounds_of
from modelfleet.infra.planning.speed import Range, SpeedEstimate
from modelfleet.serving.config.document import KeyPath
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig

SLO: KeyPath = ("deployment_config", "slo")
TARGET = "deployment_config.autoscaling_config.target_ongoing_requests"


def slo_findings(
    models: Iterable[LoadedModel], facts: Mapping[str, ModelFacts | None], catalog: Catalog
) -> list[Finding]:
    """Errors for goals that no metric shows, warnings for goals that a replica misses at its usual load."""
    return [found for model in models for found in _of(model, facts.get(model.config.model_id), catalog)]


def _of(model: LoadedModel, facts: ModelFacts | None, catalog: Catalog) -> Iterator[Finding]:
    config, slo = model.config, model.config.deployment_config.slo
    for name, key in LATENCY_KEYS.items():
        limit_ms: float | None = getattr(slo, key, None)
        if limit_ms is None:
            continue
        if reason := _unwatched(config, name, limit_ms):
            yield model.document.finding((*SLO, key), f"found {limit_ms:g}; {reason}")
        elif reason := _missed(config, facts, catalog, name, limit_ms):
            yield model.document.finding((*SLO, key), f"found {limit_ms:g}; {reason}", Severity.WARNING)


def _unwatched(config: ModelConfig, name: ObjectiveName, limit_ms: float) -> str:
    """Why no metric shows a goal; empty where one does."""
    kind = kind_of(config.engine_config)
    if kind != "text":
        article = "an" if kind[0] in "aeiou" else "a"
        return f"{article} {kind} model writes no tokens, so nothing measures it; take it out, or use availability"
    most = bounds_of(config, name)[-1] * MS_PER_S
    if limit_ms > most:
        return f"vLLM's histogram ends at {most:g} ms, so nothing measures it; choose at most {most:g}"
    return ""


def _missed(
    config: ModelConfig, facts: ModelFacts | None, catalog: Catalog, name: ObjectiveName, limit_ms: float
) -> str:
    """Why a replica misses a goal at its `target_ongoing_requests`, and what would meet it; empty where it does not."""
    target = target_requests(config)
    estimate = model_speed(config, facts, catalog, None)
    if estimate is None or _meets(estimate, name, limit_ms):
        return ""
    range_of = _latency(estimate, name)
    expected = (
        f"a mean of {_ms(range_of.expected)} ms ({_ms(range_of.low)} to {_ms(range_of.high)}), and a 95th percentile "
        "is seldom below the mean"
        if range_of and not estimate.saturated
        else "more work than it can do"
    )
    said = f"at {target:g} requests a replica the plan expects {expected}"
    fewer = _most_that_meets(config, facts, catalog, name, limit_ms)
    if fewer is None:
        return f"{said}; one request alone misses it too: take a faster accelerator, more num_workers, or raise it"
    return f"{said}; write {TARGET}: {fewer}, take a faster accelerator, or raise it"


def _most_that_meets(
    config: ModelConfig, facts: ModelFacts | None, catalog: Catalog, name: ObjectiveName, limit_ms: float
) -> int | None:
    """The most requests at once, below the target, that meet a goal; None where not even one does."""

    def meets(requests: int) -> bool:
        estimate = model_speed(config, facts, catalog, None, requests=requests)
        return estimate is not None and _meets(estimate, name, limit_ms)

    low, high = 0, math.ceil(target_requests(config))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low or None


def _meets(estimate: SpeedEstimate, name: ObjectiveName, limit_ms: float) -> bool:
    range_of = _latency(estimate, name)
    return not estimate.saturated and range_of is not None and range_of.expected <= limit_ms


def _latency(estimate: SpeedEstimate, name: ObjectiveName) -> Range | None:
    return estimate.ttft_ms if name == "ttft" else estimate.tpot_ms


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
