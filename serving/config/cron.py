"""Lines of cron that repeat every week, and names of time zones, as a schedule in a model or stack file has them.

A library for cron answers which date comes next. A schedule needs every minute of a week, so that a table of them can
travel to Serve's controller, which has no library (`serving/scaling.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import AfterValidator

from modelfleet.serving.config.validation import near, shown

DAY = 24 * 60
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
#: cron counts from Sunday, as 0 and as 7.
_NUMBERS = {**{name: number for number, name in enumerate(DAYS, 1)}, "sun": 0}
FORM = "minute hour * * weekday, such as '0 20 * * mon-fri'"


class _Begins(Protocol):
    cron: str


Entry = TypeVar("Entry", bound=_Begins)


def minutes_of_week(line: str) -> tuple[int, ...]:
    """The minutes of a week at which a line of cron begins, sorted; Monday 00:00 is 0.

    Takes `*`, numbers, ranges, steps and lists, and names of weekdays. Raises ValueError for anything else, also for
    days of the month and months: they are not the same every week.
    """
    fields = line.split()
    if len(fields) != 5:
        raise ValueError(f"found {shown(line)}, which has {len(fields)} fields; write five: {FORM}")
    if fields[2:4] != ["*", "*"]:
        raise ValueError(f"found {shown(line)}; a schedule repeats every week, so days and months are `*`: {FORM}")
    minutes, hours = _values(fields[0], 0, 59), _values(fields[1], 0, 23)
    days = {(number - 1) % 7 for number in _values(fields[4].lower(), 0, 7, names=True)}
    return tuple(sorted(day * DAY + hour * 60 + minute for day in days for hour in hours for minute in minutes))


def begins_with_another(lines: Sequence[str]) -> str | None:
    """What is wrong where two of the lines begin in the same minute; None where none do."""
    taken: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        for minute in minutes_of_week(line):
            if minute in taken:
                return f"entries {taken[minute]} and {number} both begin {clock(minute)}; move one of them by a minute"
            taken[minute] = number
    return None


def begin_apart(entries: list[Entry]) -> list[Entry]:
    """`entries`; raises ValueError where two begin in the same minute, of which nobody knows which counts."""
    if both := begins_with_another([one.cron for one in entries]):
        raise ValueError(both)
    return entries


def clock(minute: int) -> str:
    """`mon 08:00`, of a minute of the week."""
    return f"{DAYS[minute // DAY]} {minute % DAY // 60:02}:{minute % 60:02}"


def _values(text: str, low: int, high: int, *, names: bool = False) -> set[int]:
    """What one field of a line stands for."""
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        begin, end = (low, high) if span == "*" else (_number(first, names), _number(last if dash else first, names))
        if names and dash and end == 0:
            end = 7  # until Sunday
        if slash and not dash:
            end = high
        if not (low <= begin <= end <= high) or (slash and (not _plain(step) or int(step) == 0)):
            raise ValueError(f"found {shown(part)}; allowed are {low} to {high}, ranges, lists and steps: {FORM}")
        found |= set(range(begin, end + 1, int(step or 1)))
    return found


def _number(text: str, names: bool) -> int:
    """A number or a weekday; -1, which no field allows, for anything else."""
    if names and text in _NUMBERS:
        return _NUMBERS[text]
    return int(text) if _plain(text) else -1


def _plain(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 4


def _weekly(line: str) -> str:
    minutes_of_week(line)
    return line


def known_zone(name: str) -> str:
    """`name`; raises ValueError unless it is a time zone of the IANA database, with a similar one."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"found {shown(name)}, which is no time zone; {near(name, available_timezones())}, e.g. Europe/Berlin"
        ) from None
    return name


#: The two texts of a schedule, in model and stack files.
WeeklyCron = Annotated[str, AfterValidator(_weekly)]
TimeZone = Annotated[str, AfterValidator(known_zone)]
