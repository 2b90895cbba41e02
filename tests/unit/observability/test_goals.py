"""Goals of a model file: what counts as bad, what the plan expects, and that an edit restarts nobody."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelfleet.infra.catalog.slo import burn_rates, latency_histograms
from modelfleet.infra.planning.slo import PERCENTILE, Objective, objectives, weighted
from modelfleet.serving.config.errors import InputErrors, Severity
from modelfleet.serving.config.schema import Slo
from tests.unit.observability.models import watched, with_slo

BOUNDS = latency_histograms()["ttft"].bounds_s


def test_the_bounds_are_those_of_the_vllm_that_is_pinned() -> None:
    """A bucket that vLLM does not have is an empty series, and its alert is silent for ever."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed, so its buckets cannot be compared")
    file = Path(found.submodule_search_locations[0]) / "v1/metrics/buckets.py"
    spec = importlib.util.spec_from_file_location("vllm_buckets", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for histogram in latency_histograms().values():
        assert list(histogram.bounds_s) == module.histogram_buckets(histogram.family), histogram.family


def quantile(share: float, bounds: tuple[float, ...], counts: list[int]) -> float:
    """PromQL's `histogram_quantile` over the counts of each bucket (promql/quantile.go, bucketQuantile)."""
    rank, seen, start = share * sum(counts), 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if seen + count >= rank and count:
            return start + (bound - start) * (rank - seen) / count
        seen, start = seen + count, bound
    return bounds[-1]


@given(
    st.lists(st.integers(0, 1000), min_size=len(BOUNDS), max_size=len(BOUNDS)).filter(any),
    st.floats(0.0005, BOUNDS[-1]),
)
def test_too_many_requests_are_bad_exactly_when_the_95th_percentile_is_above_the_limit(
    counts: list[int], limit_s: float
) -> None:
    at_most = {bound: sum(counts[: place + 1]) for place, bound in enumerate(BOUNDS)}
    good = sum(at_most[bound] * weight for bound, weight in weighted(limit_s, BOUNDS)) / sum(counts)
    if abs(good - PERCENTILE) > 1e-6:
        assert (good < PERCENTILE) == (quantile(PERCENTILE, BOUNDS, counts) > limit_s)


def test_a_limit_at_a_bound_takes_that_bucket_alone_and_one_above_all_none() -> None:
    assert weighted(0.75, BOUNDS) == ((0.75, 1.0),)
    assert weighted(0.8, BOUNDS) == ((0.75, 0.8), (1.0, 0.2))
    assert weighted(0.0005, BOUNDS) == ((0.001, 0.5),)
    assert weighted(2561, BOUNDS) == ()


def test_a_file_with_buckets_of_its_own_is_watched_by_these() -> None:
    own = {"observability_config": {"custom_histogram_buckets": {"time_to_first_token": [0.2, 0.8, 3.0]}}}
    (goal,) = objectives(with_slo({"ttft_p95_ms": 800}, engine_kwargs=own).config)
    assert goal.bounds == ((0.8, 1.0),)


def test_every_alert_can_fire_for_the_loosest_goal() -> None:
    """Nothing is above a share of 1."""
    loosest = Slo.model_json_schema()["properties"]["availability"]["anyOf"][0]["minimum"]
    goal = Objective("availability", loosest, burn_rates())
    assert all(0 < goal.bad_share(burn) < 1 for burn in burn_rates())
    assert all(fast.factor > slow.factor for fast, slow in pairwise(burn_rates()))


@pytest.mark.parametrize(
    "slo", [{}, {"availability": 99.9}, {"availability": 1}, {"ttft_p95_ms": 0}, {"ttft_p99_ms": 9}]
)
def test_goals_that_mean_nothing_are_refused(slo: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Slo.model_validate(slo)


def test_the_plan_warns_of_a_goal_that_its_own_estimate_misses_and_names_a_load_that_meets_it() -> None:
    plan = watched(with_slo({"ttft_p95_ms": 800, "tpot_p95_ms": 30}, at_once=40))
    ttft, tpot = [one for one in plan.notices if ".slo." in one.path]
    assert ttft.severity is Severity.WARNING and ttft.line and "more work than it can do" in ttft.message
    fewer = int(ttft.message.split("target_ongoing_requests: ")[1].split(",")[0])
    assert not [one for one in watched(with_slo({"ttft_p95_ms": 800}, at_once=fewer)).notices if ".slo." in one.path]
    assert [one for one in watched(with_slo({"ttft_p95_ms": 800}, at_once=fewer + 1)).notices if ".slo." in one.path]
    assert "one request alone misses it too" in tpot.message


def test_the_plan_is_silent_where_a_goal_is_met_and_where_it_knows_no_speed() -> None:
    for chosen in (with_slo({"ttft_p95_ms": 5000, "availability": 0.999}), with_slo({"ttft_p95_ms": 1}, name="a/b")):
        assert not [one for one in watched(chosen).notices if ".slo." in one.path]


def test_goals_that_no_metric_shows_are_refused_at_their_line() -> None:
    pooling = with_slo({"ttft_p95_ms": 800}, engine_kwargs={"runner": "pooling"})
    beyond = with_slo({"tpot_p95_ms": 90_000}, name="org/other")
    with pytest.raises(InputErrors) as caught:
        watched(pooling, beyond)
    said = [(one.file, one.path, one.message) for one in caught.value.findings]
    assert [path for _, path, _ in said] == ["deployment_config.slo.ttft_p95_ms", "deployment_config.slo.tpot_p95_ms"]
    assert "writes no tokens" in said[0][2] and "ends at 80000 ms" in said[1][2]


def test_an_edit_of_goals_restarts_no_replica() -> None:
    """They are the stack's, not the engine's: what Serve gets is the same to the byte."""
    before, after = (watched(with_slo(slo)) for slo in (None, {"ttft_p95_ms": 900}))
    assert before.serve_config == after.serve_config
    assert not before.models[0].slo and after.models[0].slo
