"""Turns many noisy measurements into a table: medians with their spread, and ratios to the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tools.bench.load import Outcome, p99
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
    round: int = 0

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
class Idle:
    """CPU ms a second of one server without requests, by kind of process."""

    server: str
    cpu_ms: dict[str, float]


@dataclass(frozen=True)
class Row:
    """The results of one target under one load, over all restarts and rounds. Times are in ms.

    `first_p99_ms` is of the answers of all samples together.
    """

    target: str
    stream: bool
    concurrency: int
    samples: int
    per_second: tuple[float, float, float]
    first_ms: tuple[float, float, float]
    around_ms: tuple[float, float, float]
    front_ms: float
    failed: int
    first_p99_ms: float = 0.0


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
        1000 * p99(second for one in group for second in one.outcome.firsts),
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
            "first_p99": row.first_p99_ms / other.first_p99_ms,
        }
    return result


def paired(samples: Sequence[Sample], baseline: str) -> dict[tuple[str, bool, int], tuple[float, float, float]]:
    """Each target's requests a second against the baseline's of the same round: smallest, median, largest ratio.

    Loads of one round are neighbours in time where the servers run together, and minutes apart where they take turns.
    """
    base = {
        (one.stream, one.concurrency, one.restart, one.round): one.outcome.per_second
        for one in samples
        if one.target == baseline
    }
    found: dict[tuple[str, bool, int], list[float]] = {}
    for one in samples:
        other = base.get((one.stream, one.concurrency, one.restart, one.round))
        if other and one.target != baseline:
            found.setdefault((one.target, one.stream, one.concurrency), []).append(one.outcome.per_second / other)
    return {key: _spread(values) for key, values in found.items()}


def table(
    found: Sequence[Row],
    baseline: str,
    pairs: Mapping[tuple[str, bool, int], tuple[float, float, float]] | None = None,
) -> str:
    """The rows as text, each followed by its ratios to the baseline; `pairs` are those of single rounds."""
    compared = ratios(found, baseline)
    head = f"{'':44}{'req/s':>20}{'first event, ms':>22}{'p99':>8}{'CPU ms/req outside engine':>28}{'failed':>8}"
    spread = "least/median/most"
    lines = [head, f"{'':44}{spread:>20}{spread:>22}{'':8}{spread:>28}"]
    for row in found:
        key = (row.target, row.stream, row.concurrency)
        load = f"{'stream' if row.stream else 'plain'} c{row.concurrency}"
        cells = [_triple(row.per_second, 1), _triple(row.first_ms, 1), _triple(row.around_ms, 2)]
        lines.append(
            f"{row.target[:33]:34}{load:10}{cells[0]:>20}{cells[1]:>22}{row.first_p99_ms:8.1f}{cells[2]:>28}{row.failed:>8}"
        )
        if against := compared.get(key):
            rounds = f" (single rounds {_triple(pairs[key], 2)})" if pairs and key in pairs else ""
            lines.append(
                f"{'':4}against {baseline}: x{against['per_second']:.2f} req/s, "
                f"best {against['per_second_best']:.2f}{rounds}, "
                f"{against['first_ms_more']:+.1f} ms to the first event (best {against['first_ms_more_best']:+.1f}), "
                f"p99 x{against['first_p99']:.2f}, "
                f"{against['around_ms_more']:+.2f} CPU ms (best {against['around_ms_more_best']:+.2f})"
            )
    return "\n".join(lines)


def idle_table(idle: Sequence[Idle]) -> str:
    """What each server costs that nobody asks anything: medians over its starts, the kinds that cost most first."""
    by_server: dict[str, list[Idle]] = {}
    for one in idle:
        by_server.setdefault(one.server, []).append(one)
    lines = ["", "idle, CPU ms a second"]
    for server, starts in by_server.items():
        kinds = {kind for one in starts for kind in one.cpu_ms}
        spent = {kind: statistics.median(one.cpu_ms.get(kind, 0.0) for one in starts) for kind in kinds}
        parts = ", ".join(f"{kind} {ms:.1f}" for kind, ms in sorted(spent.items(), key=lambda part: -part[1]))
        lines.append(f"  {server:32}{sum(spent.values()):8.1f}  {parts}")
    return "\n".join(lines)


def _triple(values: tuple[float, float, float], digits: int) -> str:
    return "/".join(f"{value:.{digits}f}" for value in values)
