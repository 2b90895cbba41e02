"""Fits the speed model to infra/catalog/measurements.csv and says how well it predicts what it did not see.

    python -m tools.speed            # prints the errors on held-out measurements; takes a few minutes
    python -m tools.speed --write    # and writes speed-factors.csv, speed-ranges.csv and docs/speed-errors.svg

Add a measurement as a row of measurements.csv, then write. Its model must be in models.csv with its shape.
"""

from __future__ import annotations

import csv
import datetime
import io
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from modelfleet.infra.catalog.speed import EVERYWHERE, FOLDER, FactorTable, SpeedRange
from tools.speed.cases import cases
from tools.speed.fit import expected, fit
from tools.speed.picture import draw, groups
from tools.speed.validate import (
    Outcome,
    RangeKey,
    decode_of_one,
    halves,
    left_out,
    outcomes,
    ranges,
    within,
    within_unseen,
)

PICTURE: Final = Path(__file__).parents[2] / "docs" / "speed-errors.svg"
FACTORS_HEAD: Final = (
    "# How far servers stay below their GPUs' peaks. factor: see infra/catalog/speed.py Factors; scope: * for all, or "
    "the card, engine or link whose value differs. Source: {count} rows of measurements.csv, by "
    "`python -m tools.speed --write` on {date}; not edited by hand."
)
RANGES_HEAD: Final = (
    "# Between which shares of the predicted value nine of ten measurements lay, with their source left out of the "
    "fit (card: measured), or their source or their whole card, whichever is wider (card: other, which nobody "
    "measured). Made by `python -m tools.speed --write` on {date}; not edited by hand."
)


def main(arguments: Sequence[str]) -> None:
    """Fit, validate, print; write with `--write`."""
    every = cases(expected())
    table = fit(every)
    half, source, card = halves(every), left_out(every, lambda c: c.source), left_out(every, lambda c: c.card.name)
    known = ranges(source, card)
    print(f"{len(every)} measurements, {sum(len(case.truth) for case in every)} values")
    report(list(outcomes(every, table)), half, source, card, known)
    if "--write" in arguments:
        write(table, known, len(every))
        PICTURE.write_text(draw(groups(half, source)), encoding="utf-8")
        print("wrote infra/catalog/speed-factors.csv, speed-ranges.csv and docs/speed-errors.svg")


def report(
    seen: Sequence[Outcome],
    half: Sequence[Outcome],
    source: Sequence[Outcome],
    card: Sequence[Outcome],
    known: Mapping[RangeKey, SpeedRange],
) -> None:
    """Print median errors, and the fourth of five, for each way of holding out and each group."""
    ways = (("fitted", seen), ("half", half), ("source", source), ("card", card))
    print(f"\n{'held out: median (80 %)':30}" + "".join(f"{name:>14}" for name, _ in ways))
    print(f"{'all':30}" + "".join(f"{_text(part):>14}" for _, part in ways))
    print(f"{'decode of one request':30}" + "".join(f"{_text(decode_of_one(part)):>14}" for _, part in ways))
    keys: tuple[Callable[[Outcome], str], ...] = (
        lambda o: o.metric, lambda o: f"{o.load} {o.metric}", lambda o: f"{o.model} {o.metric}",
        lambda o: o.case.row.load, lambda o: o.case.card.name, lambda o: o.case.row.engine, lambda o: o.case.source,
    )  # fmt: skip
    for key in keys:
        print()
        for name in sorted({key(o) for o in seen}):
            print(f"{name:30}" + "".join(f"{_text([o for o in part if key(o) == name]):>14}" for _, part in ways))
    print(
        f"\nin their range: {within(half, known, 'measured'):.0%} of a random half, "
        f"{within(source, known, 'measured'):.0%} of left-out sources, {within(card, known, 'other'):.0%} of cards; "
        f"with ranges that have not seen the source either: {within_unseen(source):.0%}"
    )
    silent = [o for o in source if o.predicted is None and o.metric == "ttft" and o.case.row.load == "clients"]
    print("above capacity, not predicted: " + ", ".join(f"{o.case.row.id} ({o.measured:.0f} s)" for o in silent))


def _text(part: Iterable[Outcome]) -> str:
    errors = sorted(one.error for one in part if one.predicted is not None)
    if not errors:
        return "-"
    return f"{statistics.median(errors):.0%} ({errors[round(0.8 * (len(errors) - 1))]:.0%})"


def write(table: FactorTable, known: Mapping[RangeKey, SpeedRange], count: int) -> None:
    """Write both tables."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    values = sorted(table.values.items(), key=lambda pair: (pair[0][0], pair[0][1] != EVERYWHERE, pair[0][1]))
    rows = [(name, scope, f"{value:.4g}") for (name, scope), value in values]
    _csv("speed-factors", FACTORS_HEAD.format(count=count, date=today), ("factor", "scope", "value"), rows)
    spans = [(*key, f"{around.low:.2f}", f"{around.high:.2f}") for key, around in known.items()]
    _csv("speed-ranges", RANGES_HEAD.format(date=today), ("card", "metric", "load", "model", "low", "high"), spans)


def _csv(name: str, head: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    (FOLDER / f"{name}.csv").write_text(f"{head}\n{text.getvalue()}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
