"""Reads the replicas' usage records: JSON lines below a folder, of which a killed replica may have cut the last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

#: The version of the records that this reads (`serving/usage.py`).
VERSION = 1


def read_usage(folder: Path, since: datetime | None = None) -> Iterator[dict[str, Any]]:
    """Each request's last record, of those written at `since` or later, sorted by replica and number.

    A line that is no whole record is what a replica was writing when it was killed, and is left out: the line before
    it has what the request used until then.
    """
    last: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        if since is not None and hour_of(path) < since.strftime("%Y-%m-%dT%H"):
            continue
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if (record := _record(line)) is not None:
                    last[record["replica"], record["number"]] = record
    start = "" if since is None else since.strftime("%Y-%m-%dT%H:%M:%S")
    return (record for _, record in sorted(last.items()) if record["written"] >= start)


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    ours = isinstance(record, dict) and record.get("version") == VERSION
    return record if ours and "record" not in record else None  # those of node time name what they are


def hour_of(path: Path) -> str:
    """`2026-11-30T16` of `…/date=2026-11-30/hour=16/….jsonl`."""
    day, hour = path.parent.parent.name.removeprefix("date="), path.parent.name.removeprefix("hour=")
    return f"{day}T{hour}"
