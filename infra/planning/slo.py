"""A model's goals (`deployment_config.slo`) as what can be measured: which requests count as bad, and how many may be.

A latency goal names a percentile; the histogram only knows its own bounds. Between two of them requests are taken to
be spread evenly, which is what PromQL's `histogram_quantile` does: the 95th percentile is above the limit exactly when
more than 5 % of the requests count as bad here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from modelfleet.infra.catalog.slo import BurnRate, burn_rates, latency_histograms
from modelfleet.serving.config.schema import ModelConfig

ObjectiveName = Literal["ttft", "tpot", "availability"]
#: What `p95` promises.
PERCENTILE: Final = 0.95
#: The key of each latency goal in the model file.
LATENCY_KEYS: Final[Mapping[ObjectiveName, str]] = {"ttft": "ttft_p95_ms", "tpot": "tpot_p95_ms"}
MS_PER_S: Final = 1e3


@dataclass(frozen=True)
class Objective:
    """One goal of a model: at least `good_share` of its requests are good.

    Of a latency goal `limit_ms` is the most that a good request takes, and `bounds` says how many were good: the
    counts of `metric`'s buckets up to these bounds (seconds), each times its weight. Both are empty for availability,
    which the gateway counts. `burns` are its alerts.
    """

    name: ObjectiveName
    good_share: float
    burns: tuple[BurnRate, ...]
    limit_ms: float | None = None
    metric: str = ""
    bounds: tuple[tuple[float, float], ...] = ()

    @property
    def windows(self) -> tuple[str, ...]:
        """Every window of its alerts, once."""
        return tuple(dict.fromkeys(window for burn in self.burns for window in (burn.short, burn.long)))

    @property
    def sentence(self) -> str:
        """`95 % of requests have their first token within 800 ms`."""
        share = f"{self.good_share * 100:.6g} % of requests"
        if self.name == "availability":
            return f"{share} get no 5xx status"
        what = "have their first token within" if self.name == "ttft" else "get a token at least every"
        return f"{share} {what} {self.limit_ms:g} ms"

    def bad_share(self, burn: BurnRate) -> float:
        """The share of bad requests above which an alert fires; below 1, or it could not."""
        return round(burn.factor * (1 - self.good_share), 6)


def objectives(model: ModelConfig) -> tuple[Objective, ...]:
    """The goals of a model file; none for a latency beyond the histogram's bounds, which `slo_findings` refuses."""
    slo, found = model.deployment_config.slo, []
    for name, key in LATENCY_KEYS.items():
        limit_ms = getattr(slo, key, None)
        if limit_ms is None or not (weights := weighted(limit_ms / MS_PER_S, bounds_of(model, name))):
            continue
        metric = latency_histograms()[name].metric
        found.append(Objective(name, PERCENTILE, burn_rates(), limit_ms, metric, weights))
    if slo is not None and slo.availability is not None:
        found.append(Objective("availability", slo.availability, burn_rates()))
    return tuple(found)


def bounds_of(model: ModelConfig, name: str) -> tuple[float, ...]:
    """Upper bounds, in seconds, of the model's histogram: those of its file, or vLLM's."""
    histogram = latency_histograms()[name]
    observed: Any = model.engine_config.engine_kwargs.get("observability_config")
    custom = observed.get("custom_histogram_buckets") if isinstance(observed, Mapping) else None
    own = custom.get(histogram.family) if isinstance(custom, Mapping) else None
    return tuple(float(one) for one in own) if isinstance(own, Sequence) and own else histogram.bounds_s


def weighted(limit_s: float, bounds_s: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Bounds around a limit, each with the weight of its cumulative count; none where the limit is above all bounds.

    >>> weighted(0.8, (0.75, 1.0))
    ((0.75, 0.8), (1.0, 0.2))
    """
    place = bisect_left(bounds_s, limit_s)
    if place == len(bounds_s):
        return ()
    above = bounds_s[place]
    below = bounds_s[place - 1] if place else 0.0
    share = round((limit_s - below) / (above - below), 9)
    parts = ((below, round(1 - share, 9)), (above, share))
    return tuple((bound, weight) for bound, weight in parts if bound and weight)
