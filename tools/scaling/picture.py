"""Draws the course of several policies over one trace: replicas, requests that wait, and time to first token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from tools.scaling.simulate import Outcome

#: Pixels: the whole width, the room for the scale, and a panel's height with and without its heading.
WIDTH, LEFT, RIGHT, HEIGHT, PANEL = 800, 60, 30, 130, 185
TOP = 40
#: Above this a mark every ten minutes is enough, below it is one every two.
LONG_S = 2400.0
COLOURS: Final = ("one", "two", "three")
STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.h{font-weight:600}.n{fill:#6e7781;font-size:11px}"
    ".grid{stroke:#d0d7de}.busy{fill:#afb8c1;fill-opacity:.2}.line{fill:none;stroke-width:1.6}"
    ".one.line{stroke:#bf5b04}.two.line{stroke:#0969da}.three.line{stroke:#1a7f37}"
    "text.one{fill:#bf5b04}text.two{fill:#0969da}text.three{fill:#1a7f37}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.n{fill:#8d96a0}.grid{stroke:#3d444d}"
    ".one.line{stroke:#f0883e}.two.line{stroke:#4493f8}.three.line{stroke:#3fb950}"
    "text.one{fill:#f0883e}text.two{fill:#4493f8}text.three{fill:#3fb950}}"
)
Line = Sequence[tuple[float, float]]


def draw(found: Mapping[str, Outcome]) -> str:
    """An SVG of the outcomes by policy, all of the same trace; seconds from left to right."""
    panels: tuple[tuple[str, Callable[[Outcome], Line]], ...] = (
        ("replicas that answer", lambda one: [(point.at, point.ready) for point in one.course]),
        ("requests that wait", lambda one: [(point.at, point.waiting) for point in one.course]),
        ("seconds to the first token: 95th percentile of each minute", _minutes),
    )
    seconds = max(point.at for one in found.values() for point in one.course)
    label = f"Replicas, queue and time to first token of {' and '.join(found)}"
    height = TOP + PANEL * len(panels)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}">']
    parts.append(f"<style>{STYLE}</style>")
    x = LEFT
    for colour, name in zip(COLOURS, found, strict=False):
        parts.append(f'<text class="h {colour}" x="{x}" y="20">{escape(name)}</text>')
        x += 30 + 8 * len(name)
    for number, (heading, of) in enumerate(panels):
        parts += _panel(TOP + PANEL * number, heading, {name: of(one) for name, one in found.items()}, found, seconds)
    return "\n".join([*parts, "</svg>\n"])


def _minutes(outcome: Outcome) -> Line:
    """The 95th percentile of those that came in each minute, at its middle."""
    by_minute: dict[int, list[float]] = {}
    for arrival, wait in zip(outcome.trace.arrivals, outcome.ttft_s, strict=True):
        by_minute.setdefault(int(arrival.at // 60), []).append(wait)
    return [
        (60.0 * minute + 30.0, sorted(waits)[int(0.95 * (len(waits) - 1))])
        for minute, waits in sorted(by_minute.items())
    ]


def _panel(
    top: int, heading: str, lines: Mapping[str, Line], found: Mapping[str, Outcome], seconds: float
) -> list[str]:
    most = _round_up(max((value for line in lines.values() for _, value in line), default=1.0))
    bottom = top + 25 + HEIGHT
    across = (WIDTH - LEFT - RIGHT) / seconds
    parts = [f'<text class="h" x="{LEFT}" y="{top + 15}">{escape(heading)}</text>']
    for start, end in next(iter(found.values())).trace.busy:
        width = (min(end, seconds) - start) * across
        parts.append(
            f'<rect class="busy" x="{LEFT + start * across:.1f}" y="{top + 25}" width="{width:.1f}" height="{HEIGHT}"/>'
        )
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * HEIGHT
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="n" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * most:g}</text>')
    for colour, line in zip(COLOURS, lines.values(), strict=False):
        points = " ".join(f"{LEFT + at * across:.1f},{bottom - value / most * HEIGHT:.1f}" for at, value in line)
        parts.append(f'<polyline class="line {colour}" points="{points}"/>')
    for minute in range(0, int(seconds // 60) + 1, 10 if seconds > LONG_S else 2):
        x = LEFT + minute * 60 * across
        parts.append(f'<text class="n" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{minute} min</text>')
    return parts


def _round_up(value: float) -> float:
    """To 1, 2, 4 or 10 times a power of ten: its half is a round number too."""
    power = 1.0
    while power * 10 < value:
        power *= 10
    return next(power * step for step in (1, 2, 4, 10) if power * step >= value)
