"""Reads the replicas' usage records: JSON lines below a folder, of which a killed replica may have cut the last."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from modelfleet.infra.reading.records import hour_of, records
from modelfleet.serving.config.errors import Finding


def read_usage(
    folder: Path, since: datetime | None = None, faults: list[Finding] | None = None
) -> Iterator[dict[str, Any]]:
    """Each request's last record, of those written at `since` or later, sorted by replica and number.

    A line that is no whole record is what a replica was writing when it was killed, and is left out: the line before
    it has what the request used until then. `faults` gets what is said of lines that are no records at all.
    """
    last: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        if since is not None and hour_of(path) < since.strftime("%Y-%m-%dT%H"):
            continue
        for record in records(path, [] if faults is None else faults):
            if "record" not in record:  # those of node time name what they are
                last[record["replica"], record["number"]] = record
    start = "" if since is None else since.strftime("%Y-%m-%dT%H:%M:%S")
    return (record for _, record in sorted(last.items()) if record["written"] >= start)
