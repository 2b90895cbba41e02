"""Fits the factors: the most likely ones, given the measurements and what is expected of such factors beforehand.

Each factor is a positive number with an expected value and a spread (`PRIORS`). A card's, an engine's or a link's own
factor is expected at the common one, so that a card with few rows stays near it. Errors are logarithms of predicted by
measured; large ones count less (Student's t). Gauss-Newton steps with Levenberg's damping, in plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from modelfleet.infra.catalog.speed import EVERYWHERE, FACTORS, Factors, FactorTable
from modelfleet.infra.planning.speed.inputs import VLLM
from modelfleet.serving.config.catalogs import vllm_version
from tools.speed.cases import Case, predicted

#: Expected value of each factor, and the spread of its logarithm.
PRIORS: Final[Mapping[str, tuple[float, float]]] = {
    "bandwidth": (0.8, 0.15),
    "kv_bandwidth": (0.8, 0.3),
    "packed_bandwidth": (0.85, 0.2),
    "expert_bandwidth": (0.8, 0.3),
    "prefill_flops": (0.55, 0.3),
    "decode_flops": (0.5, 0.3),
    "low_precision_flops": (0.8, 0.2),
    "expert_flops": (0.5, 0.4),
    "expert_half_tokens": (4.0, 0.8),
    "expert_half_mib": (5.0, 0.8),
    "layer_us": (25.0, 0.5),
    "expert_layer_us": (15.0, 0.8),
    "step_ms": (0.8, 0.6),
    "sequence_us": (20.0, 0.8),
    "prefill_layer_us": (300.0, 0.8),
    "expert_prefill_layer_us": (300.0, 0.8),
    "mixing": (0.7, 0.5),
    "request_ms": (8.0, 0.7),
    "all_reduce_us": (15.0, 0.5),
    "link": (0.5, 0.4),
    "queue": (1.5, 0.5),
    "burst": (0.1, 0.4),
    "tail": (1.5, 0.3),
    "sharegpt_tail": (3.0, 0.3),
}
#: Factors that differ by card, engine or link, and the spread around the common value.
BY_CARD: Final[Mapping[str, float]] = {"bandwidth": 0.12, "prefill_flops": 0.25}
BY_ENGINE: Final[Mapping[str, float]] = {
    "step_ms": 0.7, "sequence_us": 0.7, "prefill_layer_us": 0.7, "mixing": 0.4, "request_ms": 0.6, "layer_us": 0.2,
}  # fmt: skip
BY_LINK: Final[Mapping[str, float]] = {"all_reduce_us": 1.5, "link": 0.3}
#: These are shares of something that is there once.
AT_MOST_ONE: Final = ("mixing",)
#: Spread of a measurement around a good model, and the degrees of freedom of Student's t: lower, heavier tails.
SPREAD: Final = 0.15
DEGREES: Final = 3.0
#: What a value costs that the model does not predict: as much as one that is a factor of two off.
UNPREDICTED: Final = math.log(2) / SPREAD
#: How often a measurement of the vLLM that this project pins counts: it is the one that people get.
PINNED_WEIGHT: Final = 3.0
#: Change of a logarithm for a derivative, the longest step of one, and the rounds at most.
STEP, LONGEST, ROUNDS = 0.01, 0.5, 25

Key = tuple[str, str]


@dataclass(frozen=True)
class Residual:
    """One error in spreads, how much it counts, and its derivative by each parameter that it depends on."""

    value: float
    weight: float
    slopes: Mapping[int, float] = field(default_factory=dict)


def fit(cases: Sequence[Case]) -> FactorTable:
    """The factors that make these cases most likely."""
    keys = _keys(cases)
    priors = [_prior(key) for key in keys]
    theta = [mean for mean, _ in priors]
    damping = 1e-2
    for _ in range(ROUNDS):
        residuals = list(_linear(cases, keys, theta))
        cost = _cost(residuals, theta, priors)
        better = None
        while better is None and damping < 1e4:
            step = _step(residuals, theta, priors, damping)
            tried = [old + max(-LONGEST, min(LONGEST, by)) for old, by in zip(theta, step, strict=True)]
            new = _cost(list(_residuals(cases, table_of(keys, tried))), tried, priors)
            better = tried if new < cost else None
            damping = damping / 4 if better else damping * 4
        if better is None:
            break
        theta = better
        if cost - new < 1e-3 * cost:
            break
    return table_of(keys, theta)


def _keys(cases: Sequence[Case]) -> list[Key]:
    """The parameters that these cases decide: the common factors, and the others' distances from them."""
    found: list[Key] = [(name, EVERYWHERE) for name in FACTORS]
    for names, scopes in (
        (BY_CARD, {case.card.name for case in cases}),
        (BY_ENGINE, {case.row.engine for case in cases}),
        (BY_LINK, {case.card.link for case in cases if case.row.gpus > 1}),
    ):
        found += [(name, scope) for name in names for scope in sorted(scopes)]
    return found


def _prior(key: Key) -> tuple[float, float]:
    name, scope = key
    if scope == EVERYWHERE:
        mean, spread = PRIORS[name]
        return math.log(mean), spread
    return 0.0, {**BY_CARD, **BY_ENGINE, **BY_LINK}[name]


def table_of(keys: Sequence[Key], theta: Sequence[float]) -> FactorTable:
    """Parameters as factors."""
    pairs = list(zip(keys, theta, strict=True))
    base = {name: value for (name, scope), value in pairs if scope == EVERYWHERE}
    values = {
        (name, scope): math.exp(value if scope == EVERYWHERE else base[name] + value) for (name, scope), value in pairs
    }
    return FactorTable({key: min(1.0, value) if key[0] in AT_MOST_ONE else value for key, value in values.items()})


def expected() -> FactorTable:
    """The factors before any measurement."""
    return FactorTable({(name, EVERYWHERE): mean for name, (mean, _) in PRIORS.items()})


def _errors(case: Case, factors: Factors) -> list[float]:
    """Logarithms of predicted by measured, in spreads; nan where nothing is predicted."""
    said = predicted(replace(case, server=replace(case.server, factors=factors)))
    return [
        math.log(said[metric] / value) / SPREAD if metric in said else math.nan for metric, value in case.truth.items()
    ]


def _weight(case: Case) -> float:
    pinned = case.row.engine == VLLM and case.row.engine_version == vllm_version()
    return PINNED_WEIGHT if pinned else 1.0


def _residuals(cases: Sequence[Case], table: FactorTable) -> Iterator[Residual]:
    for case in cases:
        yield from (Residual(error, _weight(case)) for error in _errors(case, table.of(case.card, case.row.engine)))


def _linear(cases: Sequence[Case], keys: Sequence[Key], theta: Sequence[float]) -> Iterator[Residual]:
    table, index = table_of(keys, theta), {key: place for place, key in enumerate(keys)}
    for case in cases:
        factors = table.of(case.card, case.row.engine)
        now = _errors(case, factors)
        slopes: list[dict[int, float]] = [{} for _ in now]
        scopes = (EVERYWHERE, case.card.name, case.row.engine, case.card.link)
        for name in FACTORS:
            moved = replace(factors, **{name: getattr(factors, name) * math.exp(STEP)})
            places = [index[name, scope] for scope in scopes if (name, scope) in index]
            for mine, before, after in zip(slopes, now, _errors(case, moved), strict=True):
                slope = (after - before) / STEP
                if not math.isnan(slope) and slope:
                    mine.update(dict.fromkeys(places, slope))
        yield from (Residual(error, _weight(case), slope) for error, slope in zip(now, slopes, strict=True))


def _cost(residuals: Sequence[Residual], theta: Sequence[float], priors: Sequence[tuple[float, float]]) -> float:
    """Minus the logarithm of the likelihood, up to a constant."""
    values = ((one.weight, UNPREDICTED if math.isnan(one.value) else one.value) for one in residuals)
    misfit = sum(weight * (DEGREES + 1) / 2 * math.log1p(value**2 / DEGREES) for weight, value in values)
    return misfit + sum(((t - mean) / spread) ** 2 / 2 for t, (mean, spread) in zip(theta, priors, strict=True))


def _step(
    residuals: Sequence[Residual], theta: Sequence[float], priors: Sequence[tuple[float, float]], damping: float
) -> list[float]:
    """The change of all parameters that the linear model wants."""
    size = len(theta)
    normal, right = [[0.0] * size for _ in range(size)], [0.0] * size
    for one in residuals:
        if math.isnan(one.value):
            continue
        weight = one.weight * (DEGREES + 1) / (DEGREES + one.value**2)
        for row, slope in one.slopes.items():
            right[row] -= weight * slope * one.value
            for column, other in one.slopes.items():
                normal[row][column] += weight * slope * other
    for place, (t, (mean, spread)) in enumerate(zip(theta, priors, strict=True)):
        right[place] -= (t - mean) / spread**2
        normal[place][place] = (normal[place][place] + 1 / spread**2) * (1 + damping)
    return _solved(normal, right)


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss's elimination; a positive definite matrix needs no pivots. Changes its arguments."""
    size = len(right)
    for top in range(size):
        for row in range(top + 1, size):
            factor = matrix[row][top] / matrix[top][top]
            if factor:
                right[row] -= factor * right[top]
                for column in range(top, size):
                    matrix[row][column] -= factor * matrix[top][column]
    found = [0.0] * size
    for row in reversed(range(size)):
        known = sum(matrix[row][column] * found[column] for column in range(row + 1, size))
        found[row] = (right[row] - known) / matrix[row][row]
    return found
