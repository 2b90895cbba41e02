"""What alerts of a model's goals rest on: burn rates of an error budget, and the bounds of vLLM's histograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from modelfleet.serving.config.catalogs import csv_rows

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class BurnRate:
    """An alert fires above `factor` times the allowed share, over both windows (Prometheus durations)."""

    long: str
    short: str
    factor: float
    severity: str


@dataclass(frozen=True)
class Histogram:
    """A histogram in Ray's scrape: its name without `_bucket`, its upper bounds in seconds, vLLM's name of these."""

    metric: str
    family: str
    bounds_s: tuple[float, ...]


@cache
def burn_rates() -> tuple[BurnRate, ...]:
    """The rows of burn-rates.csv, the fastest first."""
    rows = csv_rows(FOLDER / "burn-rates.csv")
    return tuple(BurnRate(row["long"], row["short"], float(row["factor"]), row["severity"]) for row in rows)


@cache
def latency_histograms() -> Mapping[str, Histogram]:
    """By objective, `ttft` and `tpot`: the rows of latency-buckets.csv."""
    return {
        row["objective"]: Histogram(row["metric"], row["family"], tuple(float(one) for one in row["bounds_s"].split()))
        for row in csv_rows(FOLDER / "latency-buckets.csv")
    }
