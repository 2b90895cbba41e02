"""What replicas wrote down, line by line: what each kind of record must have, and what is said of one that has not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import pydantic_core
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from modelfleet.serving.config.errors import Finding

#: The version of the records that this reads (`serving/usage.py`, `serving/node_hours.py`).
VERSION = 1
#: More than any request, replica or node has: above it a number is a mistake or a lie.
MOST_TOKENS = 10**12

_1970 = datetime(1970, 1, 1, tzinfo=UTC)


def micros(text: str) -> int:
    """Microseconds since 1970 of a record's time, `2026-11-30T16:00:00.000000Z`; exactly."""
    return (datetime.fromisoformat(text) - _1970) // timedelta(microseconds=1)


def _real(text: str) -> str:
    micros(text)
    return text


_Time = Annotated[str, Field(pattern=r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"), AfterValidator(_real)]
_Name = Annotated[str, Field(max_length=1024)]
#: A worker group's name, and `local` of a Ray without any.
_Pool = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,63}$")]
_Count = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Record(BaseModel):
    """Further keys are of no interest here, and may come with a later release."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Request(_Record):
    replica: _Name
    number: _Count
    began: _Time
    written: _Time
    key: _Name | None
    team: _Name | None
    model: _Name
    adapter: _Name | None
    end: _Name
    prompt_tokens: _Count
    cached_tokens: _Count
    completion_tokens: _Count
    reasoning_tokens: _Count


class _Boot(_Record):
    id: _Name = ""
    at: _Time | None = None


class _Holding(_Record):
    replica: _Name
    model: _Name
    began: _Time
    ready: _Time | None
    written: _Time
    node: _Name
    boot: _Boot
    shares: dict[_Name, _Share]


class _Node(_Record):
    node: _Name
    pool: _Pool
    began: _Time
    ended: _Time | None
    written: _Time


#: By what a record says it is (`record`); those of requests say nothing.
_NAMED: dict[str, type[_Record]] = {"holding": _Holding, "node": _Node}


def records(path: Path, faults: list[Finding]) -> Iterator[dict[str, Any]]:
    """The records of a file. A line that is none of ours is left out, and is one more of `faults`.

    The beginning of one is what a replica was writing when it was killed, and is left out in silence.
    """
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                found = pydantic_core.from_json(line.rstrip("\n"))
            except ValueError as error:
                if str(error).startswith("EOF"):
                    continue
                where, message = "", f"found no JSON: {error}"
            else:
                where, message = _fault(found)
            if message:
                faults.append(Finding(str(path), number, where, f"{message}; this line is not counted"))
            else:
                yield found


def _fault(found: Any) -> tuple[str, str]:
    """The key and what is wrong with it; empty for a record."""
    if not isinstance(found, dict):
        return "", f"found {_shown(found)}; a record is a JSON object"
    if found.get("version") != VERSION:
        return "version", f"found {_shown(found.get('version'))}; this release reads {VERSION}"
    name = found.get("record")
    named = _NAMED.get(name) if isinstance(name, str) else None
    kind = named if "record" in found else _Request
    if kind is None:
        return "record", f"found {_shown(name)}; allowed are holding and node, or no such key"
    try:
        kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(_printable(part) for part in first["loc"])
        if first["type"] == "missing":
            return place, "the key is missing"
        return place, f"found {_shown(first['input'])}; {first['msg'][:1].lower()}{first['msg'][1:]}"
    return "", ""


def _printable(key: str | int) -> str:
    """A key, which anybody may have written, too."""
    return "".join(one if one.isprintable() else "?" for one in str(key)[:60])


def _shown(value: Any) -> str:
    """At most 60 characters of a value that anybody may have written."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}…"


def hour_of(path: Path) -> str:
    """`2026-11-30T16` of `…/date=2026-11-30/hour=16/….jsonl`."""
    day, hour = path.parent.parent.name.removeprefix("date="), path.parent.name.removeprefix("hour=")
    return f"{day}T{hour}"
