"""Errors on measurements that the fit did not see: a random half, a whole source, a whole card."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelfleet.infra.catalog.speed import FactorTable, SpeedRange
from tools.speed.cases import METRICS, Case, Metric, predicted, with_factors
from tools.speed.fit import fit

#: Seeds of the random halves; each is fitted on one half and on the other.
SEEDS: Final = (1, 2, 3)
#: Shares of the measurements below and above a range. Nine of ten in the tables are four of five in a source that the
#: ranges have not seen either (`within_unseen`): sources differ from each other.
TAIL: Final = 0.05
#: A group of fewer values has the range of all models together.
FEWEST: Final = 30


#: Card, metric, load, model.
RangeKey = tuple[str, str, str, str]


@dataclass(frozen=True)
class Outcome:
    """One measured value and what was predicted for it; None where the model says that the load is saturated."""

    case: Case
    metric: Metric
    measured: float
    predicted: float | None

    @property
    def error(self) -> float:
        """Relative error."""
        return abs(self.share - 1)

    @property
    def share(self) -> float:
        """Predicted by measured."""
        assert self.predicted is not None
        return self.predicted / self.measured

    @property
    def load(self) -> str:
        """`single` or `loaded`, as in speed-ranges.csv."""
        return "single" if self.case.row.requests == 1 and self.case.row.load != "rate" else "loaded"

    @property
    def model(self) -> str:
        """`dense` or `experts`, as in speed-ranges.csv."""
        return "experts" if self.case.shape.experts else "dense"


def outcomes(cases: Iterable[Case], table: FactorTable) -> Iterator[Outcome]:
    """What these factors say of the cases."""
    for case in cases:
        said = predicted(with_factors(case, table))
        yield from (Outcome(case, metric, value, said.get(metric)) for metric, value in case.truth.items())


def halves(cases: Sequence[Case], seeds: Sequence[int] = SEEDS) -> list[Outcome]:
    """Each half of the measurements, predicted from the other, for several random halves."""
    found: list[Outcome] = []
    for seed in seeds:
        mixed = list(cases)
        random.Random(seed).shuffle(mixed)
        middle = len(mixed) // 2
        for seen, unseen in ((mixed[:middle], mixed[middle:]), (mixed[middle:], mixed[:middle])):
            found += outcomes(unseen, fit(seen))
    return found


def left_out(cases: Sequence[Case], group: Callable[[Case], str]) -> list[Outcome]:
    """Each group of measurements, predicted from all others."""
    found: list[Outcome] = []
    for name in sorted({group(case) for case in cases}):
        found += outcomes([c for c in cases if group(c) == name], fit([c for c in cases if group(c) != name]))
    return found


def ranges(sources: Sequence[Outcome], cards: Sequence[Outcome]) -> dict[RangeKey, SpeedRange]:
    """Ranges by card (`measured`, `other`), metric, load and model, from the errors of what was left out.

    On a card that nobody measured both may be wrong, so its range is the wider one on each side.
    """
    found: dict[RangeKey, SpeedRange] = {}
    for metric in METRICS:
        for load in ("single", "loaded"):
            for model in ("dense", "experts"):
                source, card = (_range(_like(seen, metric, load, model)) for seen in (sources, cards))
                found["measured", metric, load, model] = source
                wider = SpeedRange(min(source.low, card.low), max(source.high, card.high))
                found["other", metric, load, model] = wider
    return found


def _like(seen: Sequence[Outcome], metric: Metric, load: str, model: str) -> Sequence[Outcome]:
    both = [one for one in seen if one.predicted is not None and (one.metric, one.load) == (metric, load)]
    own = [one for one in both if one.model == model]
    return own if len(own) >= FEWEST else both


def _range(seen: Sequence[Outcome]) -> SpeedRange:
    shares = sorted(1 / one.share for one in seen)
    last = len(shares) - 1
    low, high = shares[math.floor(TAIL * last)], shares[math.ceil((1 - TAIL) * last)]
    return SpeedRange(min(1.0, low), max(1.0, high))


def within(seen: Sequence[Outcome], known: Mapping[RangeKey, SpeedRange], card: str) -> float:
    """The share of measured values inside their ranges."""
    hits = []
    for one in seen:
        if one.predicted is not None:
            around = known[card, one.metric, one.load, one.model]
            hits.append(one.predicted * around.low <= one.measured <= one.predicted * around.high)
    return statistics.mean(hits)


def within_unseen(seen: Sequence[Outcome]) -> float:
    """As `within`, for each source with ranges from the errors of all other sources."""
    hits = 0.0
    for name in {one.case.source for one in seen}:
        others = [one for one in seen if one.case.source != name]
        own = [one for one in seen if one.case.source == name and one.predicted is not None]
        hits += len(own) * within(own, ranges(others, others), "measured") if own else 0.0
    return hits / sum(one.predicted is not None for one in seen)


def median_error(seen: Iterable[Outcome]) -> float:
    """The median relative error of what is predicted."""
    return statistics.median(one.error for one in seen if one.predicted is not None)


def decode_of_one(seen: Iterable[Outcome]) -> list[Outcome]:
    """Decoding with one request at a time."""
    return [one for one in seen if one.load == "single" and one.metric != "ttft"]
