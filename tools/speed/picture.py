"""Draws docs/speed-errors.svg: errors of the estimate on held-out measurements, by card, kind of model and load."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from tools.speed.cases import Metric
from tools.speed.validate import Outcome

#: One row's height, the width of the names, and the pixels of an error of 100 %.
ROW, NAMES, SCALE, WIDTH = 22, 210, 480, 800
#: Errors beyond this are drawn at the edge.
MOST: Final = 1.0
LABEL: Final = "Errors of the speed estimate on held-out measurements"
FIGURES: Final[Mapping[Metric, str]] = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "throughput": "tokens per second",
}
STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.h{font-weight:600}.n{fill:#6e7781;font-size:11px}"
    ".half{fill:#0969da}.source{fill:#bf5b04}.line{stroke:#d0d7de}.bar{stroke-width:6;stroke-opacity:.25}"
    ".half.bar{stroke:#0969da}.source.bar{stroke:#bf5b04}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.n{fill:#8d96a0}.half{fill:#4493f8}.source{fill:#f0883e}"
    ".line{stroke:#3d444d}.half.bar{stroke:#4493f8}.source.bar{stroke:#f0883e}}"
)


@dataclass(frozen=True)
class Group:
    """The errors of one row of the picture, with a random half and with whole sources held out."""

    name: str
    half: Sequence[float]
    source: Sequence[float]


def groups(half: Sequence[Outcome], source: Sequence[Outcome]) -> list[tuple[str, list[Group]]]:
    """The rows of the picture under their headings."""
    by: dict[str, Callable[[Outcome], str]] = {
        "Card": lambda one: one.case.card.name,
        "Model": _model,
        "Load": _load,
        "Figure": lambda one: FIGURES[one.metric],
        "Server": lambda one: one.case.row.engine,
    }
    found = []
    for heading, key in by.items():
        names = sorted({key(one) for one in half})
        rows = [Group(name, _errors(half, key, name), _errors(source, key, name)) for name in names]
        found.append((heading, [row for row in rows if row.half and row.source]))
    return found


def _errors(seen: Sequence[Outcome], key: Callable[[Outcome], str], name: str) -> list[float]:
    return sorted(one.error for one in seen if one.predicted is not None and key(one) == name)


def _model(one: Outcome) -> str:
    if one.case.shape.experts:
        return "mixture of experts"
    billions = one.case.shape.active_parameters / 1e9
    return "dense, under 10B" if billions < 10 else "dense, 10 to 40B" if billions < 40 else "dense, 40B and more"


def _load(one: Outcome) -> str:
    if one.load == "single":
        return "one request at a time"
    return {"batch": "all at once", "rate": "arriving at a rate"}.get(one.case.row.load, "several clients")


def draw(found: Sequence[tuple[str, Sequence[Group]]]) -> str:
    """The picture as SVG text: a dot is the median, a bar reaches from the best to the fourth of five."""
    height = 60 + sum((len(rows) + 1) * ROW + 8 for _, rows in found)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{LABEL}">',
        f"<style>{STYLE}</style>",
        '<circle class="half" cx="16" cy="18" r="5"/><text x="28" y="22">random half held out</text>',
        '<circle class="source" cx="196" cy="18" r="5"/><text x="208" y="22">whole sources held out</text>',
        '<text class="n" x="380" y="22">dot: median error; bar: four of five measurements; n: values</text>',
    ]
    for tenth in range(0, 11, 2):
        x = NAMES + SCALE * tenth / 10
        out.append(f'<line class="line" x1="{x:.0f}" y1="48" x2="{x:.0f}" y2="{height - 8}"/>')
        out.append(f'<text class="n" x="{x:.0f}" y="42" text-anchor="middle">{tenth * 10} %</text>')
    y = 52
    for heading, rows in found:
        y += ROW
        out.append(f'<text class="h" x="8" y="{y}">{heading}</text>')
        for row in rows:
            y += ROW
            out += _row(row, y)
        y += 8
    return "\n".join([*out, "</svg>", ""])


def _row(row: Group, y: int) -> list[str]:
    out = [f'<text x="20" y="{y}">{escape(row.name)}</text>']
    for kind, errors, shift in (("half", row.half, -8), ("source", row.source, 0)):
        middle, most = (NAMES + SCALE * min(MOST, value) for value in (statistics.median(errors), _fourth(errors)))
        out.append(f'<line class="{kind} bar" x1="{NAMES}" y1="{y + shift}" x2="{most:.1f}" y2="{y + shift}"/>')
        out.append(f'<circle class="{kind}" cx="{middle:.1f}" cy="{y + shift}" r="4"/>')
    out.append(f'<text class="n" x="{WIDTH - 8}" y="{y}" text-anchor="end">n = {len(row.source)}</text>')
    return out


def _fourth(errors: Sequence[float]) -> float:
    return errors[round(0.8 * (len(errors) - 1))]
