"""Two looks at metrics pages, and what happened between them: increases of counters, quantiles of histograms. Pure.

A page is Prometheus' text format 0.0.4.
https://prometheus.io/docs/instrumenting/exposition_formats/#text-format-details
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_LINE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?[ \t]+(\S+)')
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")

#: Where a series stands, its name, and its labels in order.
Series = tuple[str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Sample:
    """One number: its name, its labels, and the page on which it stands."""

    name: str
    labels: Mapping[str, str]
    value: float
    page: str = ""


@dataclass(frozen=True)
class Page:
    """A metrics page as text; `place` says where it was read, and no two of a look have the same.

    `pools` are those whose node it is: none for a gateway, and on this machine all.
    """

    place: str
    text: str = field(repr=False)
    pools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """All pages at one moment; `at` is in seconds of a steady clock. `unread` says what did not answer, and why."""

    at: float
    pages: tuple[Page, ...]
    unread: tuple[str, ...] = ()


def samples(page: Page, names: frozenset[str]) -> Iterator[Sample]:
    """The samples of these names. Lines that are none are passed over: whoever looks on asks no more of a page."""
    for line in page.text.splitlines():
        if line.startswith("#") or (found := _LINE.match(line)) is None or found[1] not in names:
            continue
        labels = {name: _plain(value) for name, value in _LABEL.findall(found[2] or "")}
        try:
            value = float(found[3])
        except ValueError:
            continue
        if math.isfinite(value):
            yield Sample(found[1], labels, value, page.place)


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], text)


class Between:
    """What changed from one look to a later one, over the series of some names.

    `seconds` lie between them; 0 when both are the same.
    """

    def __init__(self, before: Look, after: Look, names: Iterable[str]) -> None:
        wanted = frozenset(names)
        self.seconds = after.at - before.at
        self._seen = {page.place for page in before.pages}
        self._before = {_series(one): one.value for page in before.pages for one in samples(page, wanted)}
        self._now: defaultdict[str, list[Sample]] = defaultdict(list)
        for page in after.pages:
            for one in samples(page, wanted):
                self._now[one.name].append(one)

    def now(self, name: str, **labels: str) -> list[Sample]:
        """The samples of the later look that have these labels."""
        return [one for one in self._now[name] if all(one.labels.get(key) == value for key, value in labels.items())]

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum; None without any."""
        found = self.now(name, **labels)
        return sum(one.value for one in found) if found else None

    def increase(self, name: str, **labels: str) -> float:
        """By how much these counters grew together. A counter that fell began again at 0, as in PromQL."""
        return sum(self._growth(one) for one in self.now(name, **labels))

    def rate(self, name: str, **labels: str) -> float:
        """Growth per second; 0 between two looks at the same moment."""
        return self.increase(name, **labels) / self.seconds if self.seconds > 0 else 0.0

    def quantile(self, share: float, name: str, **labels: str) -> float | None:
        """`histogram_quantile` over what was counted between the looks; None when nothing was."""
        counted: defaultdict[float, float] = defaultdict(float)
        for one in self.now(f"{name}_bucket", **labels):
            counted[float(one.labels.get("le", "nan"))] += self._growth(one)
        return quantile(share, counted)

    def _growth(self, one: Sample) -> float:
        """Of a series that is new on a page that was read before, all of it; of a page that is new, nothing."""
        earlier = self._before.get(_series(one))
        if earlier is None:
            return one.value if one.page in self._seen else 0.0
        return one.value - earlier if one.value >= earlier else one.value


def _series(one: Sample) -> Series:
    return one.page, one.name, tuple(sorted(one.labels.items()))


def quantile(share: float, counted: Mapping[float, float]) -> float | None:
    """As PromQL's `histogram_quantile`: `counted` is cumulative, by upper bound, with one at infinity.

    Values are taken to lie evenly in a bucket, which begins at 0 or at the bound before it; above the last finite bound
    that bound is the answer. None without values.
    https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile
    """
    bounds = sorted(bound for bound in counted if not math.isnan(bound))
    total = counted[bounds[-1]] if bounds else 0.0
    if total <= 0 or len(bounds) < 2 or not math.isinf(bounds[-1]):
        return None
    rank, below, start = share * total, 0.0, 0.0
    for bound in bounds[:-1]:
        if counted[bound] >= rank and counted[bound] > below:
            return start + (bound - start) * (rank - below) / (counted[bound] - below)
        below, start = max(below, counted[bound]), bound
    return bounds[-2]
