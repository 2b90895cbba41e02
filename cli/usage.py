"""`modelfleet usage`: tokens and requests by key, team, model or day, from the replicas' own records."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelfleet.cli import output
from modelfleet.infra.local.runtime import usage_folder
from modelfleet.infra.names import local_folder
from modelfleet.infra.reading.usage import read_usage
from modelfleet.infra.stack import load_stack
from modelfleet.serving.config.errors import Finding, InputErrors, SetupError

By = Literal["key", "team", "model", "adapter", "day"]
#: The sums of a row, in the order of its columns.
SUMS: Final = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
#: What a row is called whose records have no name: no key with `auth: none`, no team, no adapter.
NOBODY: Final = "–"
#: Seconds after its last line for which a request counts as running: a growing one has a line each 10 s.
OPEN_S: Final = 60
_SINCE = re.compile(r"(\d{1,4})([hd])")


def run_usage(
    stack: str,
    *,
    by: By = "key",
    since: str = "7d",
    records: Path | None = None,
    as_json: bool = False,
    as_csv: bool = False,
) -> int:
    """Print what was used since then; returns the exit code. Raises `SetupError` where no record can be read."""
    root = Path.cwd()
    loaded = load_stack(root, stack)
    folder = records or (usage_folder(local_folder(root, stack)) if loaded.config.target.on_this_machine else None)
    if folder is None:
        raise SetupError(
            f"stack {stack}: the records are beside Ray's logs in its pods, where your log shipper takes them "
            "(logs/usage); give a folder that holds copies of them, `--records DIR`"
        )
    if records is not None and not records.is_dir():
        raise InputErrors([Finding("modelfleet usage", 0, "--records", f"found {records}, which is no folder")])
    found = rows(read_usage(folder, _start(since)), by)
    if as_json:
        output.show_json({"stack": stack, "since": since, "by": by, "rows": found})
    elif as_csv:
        output.write(_csv(found, by))
    else:
        output.show(_table(found, by))
        if not found:
            output.say(f"{folder} has no record of the last {since}")
    return 0


def rows(records: Iterable[Mapping[str, Any]], by: By) -> list[dict[str, Any]]:
    """One row per name, sorted by it: requests, how many of them are open or were cut short, and tokens.

    A request that was open when its replica died counts as cut short, with the tokens of its last line: after
    `OPEN_S` without another one. A running request that did not grow for so long is counted so until its next line.
    """
    alive = (datetime.now(UTC) - timedelta(seconds=OPEN_S)).strftime("%Y-%m-%dT%H:%M:%S")
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        name = record["began"][:10] if by == "day" else record[by] or NOBODY
        row = found.setdefault(name, {by: name, "requests": 0, "open": 0, "cut_short": 0, **dict.fromkeys(SUMS, 0)})
        row["requests"] += 1
        running = record["end"] == "open" and record["written"] >= alive
        row["open"] += running
        row["cut_short"] += record["end"] != "finished" and not running
        for one in SUMS:
            row[one] += record[one]
    return [found[name] for name in sorted(found)]


def _start(since: str) -> datetime:
    match = _SINCE.fullmatch(since)
    if match is None:
        message = f"found {since[:80]!r}; allowed are hours and days such as 24h and 7d"
        raise InputErrors([Finding("modelfleet usage", 0, "--since", message)])
    return datetime.now(UTC) - timedelta(hours=int(match[1]) * (24 if match[2] == "d" else 1))


def _table(found: Iterable[Mapping[str, Any]], by: By) -> Table:
    table = Table(by, box=SIMPLE_HEAD)
    for name in (
        "requests",
        "open",
        "cut short",
        "prompt tokens",
        "of them cached",
        "completion tokens",
        "of them reasoning",
    ):
        table.add_column(name, justify="right")
    for row in found:
        name, *numbers = row.values()
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def _csv(found: list[dict[str, Any]], by: By) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [by, "requests", "open", "cut_short", *SUMS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().rstrip("\n")
