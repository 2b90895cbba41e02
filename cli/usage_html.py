"""The books as one self-contained page, without network or script: one picture of who pays what, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelfleet.cli.page import page_environment
from modelfleet.cli.usage_report import Report

#: The picture has so many names, the dearest; the rest is one bar.
MOST_BARS = 12


@dataclass(frozen=True)
class Bar:
    """A bar of the picture: `width` in percent of the longest, `part` in percent of the bill; `used` by somebody.

    `usd` is None where a price is not known; the bar then has no width, and no bar a part.
    """

    name: str
    usd: float | None
    width: float
    part: float | None
    used: bool


def usage_page(report: Report) -> str:
    """The page as HTML text."""
    environment = page_environment()
    environment.filters["usd"] = lambda usd: "?" if usd is None else f"{usd:,.2f}"
    environment.filters["number"] = lambda number: f"{number:,}"
    environment.filters["percent"] = percent_text
    drawn = bars(report)
    return environment.get_template("usage.html.j2").render(report=report, bars=drawn, headline=headline(report, drawn))


def percent_text(part: float) -> str:
    """`34 %`; what is little is not nothing."""
    return "< 1 %" if 0 < part < 0.5 else f"{part:.0f} %"


def headline(report: Report, drawn: Sequence[Bar]) -> str:
    """What a manager asks first: the bill, and how much of it somebody used. Empty where a price is not known."""
    if not report.usd:
        return ""
    used = sum(bar.usd or 0.0 for bar in drawn if bar.used)
    part = percent_text(100 * used / report.usd)
    return f"The machines cost {report.usd:,.2f} USD. {used:,.2f} USD of it, {part}, was used."


def bars(report: Report) -> list[Bar]:
    """The dearest names first, the others in one, then what nobody used. Together they are the bill."""
    named = sorted(((row["usd"], row[report.by]) for row in report.rows), key=lambda one: (-(one[0] or 0.0), one[1]))
    amounts: list[tuple[str, float | None, bool]] = [(name, usd, True) for usd, name in named[:MOST_BARS]]
    if rest := [usd for usd, _ in named[MOST_BARS:]]:
        amounts.append((f"{len(rest)} others", None if None in rest else sum(rest), True))
    amounts += [(name, usd, False) for name, usd in report.unused()]
    longest, whole = max((usd for _, usd, _ in amounts if usd is not None), default=0.0), report.usd

    def percent(usd: float | None, of: float) -> float:
        return 100 * (usd or 0.0) / of if of else 0.0

    return [
        Bar(name, usd, percent(usd, longest), None if whole is None else percent(usd, whole), used)
        for name, usd, used in amounts
    ]
