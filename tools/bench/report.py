"""Turns many noisy measurements into a table: medians with their spread, and ratios to the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tools.bench.load import Outcome
from tools.bench.processes import AROUND


@dataclass(frozen=True)
class Sample:
    """One load on one target in one restart."""

    target: str
    stream: bool
    concurrency: int
    restart: int
    outcome: Outcome
    cpu_ms: dict[str, float]

    @property
    def around_ms(self) -> float:
        """CPU ms per request outside the engine: application, proxies and gateway, without Ray's own idle work."""
        return sum(ms for kind, ms in self.cpu_ms.items() if kind in AROUND)

    def line(self) -> str:
        """The sample in one line, as progress."""
        load = f"{'stream' if self.stream else 'plain'} c{self.concurrency}"
        rate, first_ms = self.outcome.per_second, 1000 * self.outcome.first_s
        return f"{self.target:40}{load:10}{rate:8.1f} req/s{first_ms:9.1f} ms{self.around_ms:7.2f} CPU ms"


@dataclass(frozen=True)
class Row:
    """The results of one target under one load, over all restarts and rounds. Times are in ms."""

    target: str
    stream: bool
    concurrency: int
    samples: int
    per_second: tuple[float, float, float]
    first_ms: tuple[float, float, float]
    around_ms: tuple[float, float, float]
    front_ms: float
    failed: int


def rows(samples: Iterable[Sample]) -> list[Row]:
    """One row per target and load, in the order in which they first appear."""
    groups: dict[tuple[bool, int, str], list[Sample]] = {}
    for one in samples:
        groups.setdefault((one.stream, one.concurrency, one.target), []).append(one)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[Sample]) -> Row:
    first = group[0]
    return Row(
        first.target,
        first.stream,
        first.concurrency,
        len(group),
        _spread(one.outcome.per_second for one in group),
        _spread(one.outcome.first_s * 1000 for one in group),
        _spread(one.around_ms for one in group),
        statistics.median(one.cpu_ms.get("front", 0.0) for one in group),
        sum(one.outcome.failed for one in group),
    )


def _spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Smallest, median, largest."""
    ordered = sorted(values)
    return ordered[0], statistics.median(ordered), ordered[-1]


def ratios(found: Sequence[Row], baseline: str) -> dict[tuple[str, bool, int], dict[str, float]]:
    """Each row against the baseline at the same load: req/s (median, best), CPU and first event (median, least)."""
    base = {(row.stream, row.concurrency): row for row in found if row.target == baseline}
    result = {}
    for row in found:
        other = base.get((row.stream, row.concurrency))
        if other is None or row.target == baseline:
            continue
        result[row.target, row.stream, row.concurrency] = {
            "per_second": row.per_second[1] / other.per_second[1],
            "per_second_best": row.per_second[2] / other.per_second[2],
            "first_ms_more": row.first_ms[1] - other.first_ms[1],
            "first_ms_more_best": row.first_ms[0] - other.first_ms[0],
            "around_ms_more": row.around_ms[1] - other.around_ms[1],
            "around_ms_more_best": row.around_ms[0] - other.around_ms[0],
        }
    return result


def table(found: Sequence[Row], baseline: str) -> str:
    """The rows as text, each followed by its ratios to the baseline."""
    compared = ratios(found, baseline)
    head = f"{'':44}{'req/s':>20}{'first event, ms':>22}{'CPU ms/req outside engine':>28}{'failed':>8}"
    lines = [head, f"{'':44}{'least/median/most':>20}{'least/median/most':>22}{'least/median/most':>28}"]
    for row in found:
        load = f"{'stream' if row.stream else 'plain'} c{row.concurrency}"
        cells = [_triple(row.per_second, 1), _triple(row.first_ms, 1), _triple(row.around_ms, 2)]
        lines.append(f"{row.target[:33]:34}{load:10}{cells[0]:>20}{cells[1]:>22}{cells[2]:>28}{row.failed:>8}")
        if against := compared.get((row.target, row.stream, row.concurrency)):
            lines.append(
                f"{'':4}against {baseline}: x{against['per_second']:.2f} req/s, best {against['per_second_best']:.2f}, "
                f"{against['first_ms_more']:+.1f} ms to the first event (best {against['first_ms_more_best']:+.1f}), "
                f"{against['around_ms_more']:+.2f} CPU ms (best {against['around_ms_more_best']:+.2f})"
            )
    return "\n".join(lines)


def _triple(values: tuple[float, float, float], digits: int) -> str:
    return "/".join(f"{value:.{digits}f}" for value in values)
