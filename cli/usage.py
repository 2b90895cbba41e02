"""`modelfleet usage`: tokens, requests and USD by key, team, model or day, from the replicas' own records."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelfleet.cli import output
from modelfleet.cli.usage_report import SUMS, By, Report, report
from modelfleet.infra.local.runtime import usage_folder
from modelfleet.infra.names import local_folder
from modelfleet.infra.reading.node_hours import NodeHours, read_node_hours
from modelfleet.infra.reading.usage import read_usage
from modelfleet.infra.stack import LoadedStack, load_stack
from modelfleet.serving.config.errors import Finding, InputErrors, SetupError

_SINCE = re.compile(r"(\d{1,4})([hd])")
_PRICE = re.compile(r"([A-Za-z0-9._-]{1,63})=(\d{1,6}(?:\.\d{1,6})?)")
#: The table's columns between the name and the money.
COLUMNS: Final = (
    "requests",
    "open",
    "cut short",
    "prompt tokens",
    "of them cached",
    "completion tokens",
    "of them reasoning",
)


def run_usage(
    stack: str,
    *,
    by: By = "key",
    since: str = "7d",
    records: Path | None = None,
    prices: Sequence[str] = (),
    as_json: bool = False,
    as_csv: bool = False,
    html: Path | None = None,
) -> int:
    """Print what was used since then, and who pays for it; returns the exit code.

    `prices` are `POOL=USD` per node hour, before those of the plan. Raises `SetupError` where no record can be read.
    """
    root = Path.cwd()
    asked = [name for name, on in {"--json": as_json, "--csv": as_csv, "--html": html is not None}.items() if on]
    if len(asked) > 1:
        raise InputErrors([Finding("modelfleet usage", 0, asked[1], f"found beside {asked[0]}; give one of them")])
    loaded = load_stack(root, stack)
    given = _given_prices(prices)
    began = _start(since)
    folder = _folder(root, loaded, records)
    with output.status(f"reading the records in {folder}"):
        try:
            hours, records_read = read_node_hours(folder, began), list(read_usage(folder, began))
        except OSError as error:
            raise SetupError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from None
        found = report(records_read, hours, _prices(root, loaded, hours, given), by=by, stack=stack, since=since)
    if as_json:
        output.show_json(found.as_json())
    elif as_csv:
        output.write(_csv(found))
    elif html is not None:
        _write_html(found, html)
    else:
        _show(found, folder)
    return 0


def _folder(root: Path, stack: LoadedStack, records: Path | None) -> Path:
    folder = records or (usage_folder(local_folder(root, stack.name)) if stack.config.target.on_this_machine else None)
    if folder is None:
        raise SetupError(
            f"stack {stack.name}: the records are beside Ray's logs in its pods, where your log shipper takes them "
            "(logs/usage); give a folder that holds copies of them, `--records DIR`"
        )
    if records is not None and not records.is_dir():
        raise InputErrors([Finding("modelfleet usage", 0, "--records", f"found {records}, which is no folder")])
    return folder


def _given_prices(prices: Iterable[str]) -> dict[str, float]:
    found = {}
    for text in prices:
        match = _PRICE.fullmatch(text)
        if match is None:
            message = f"found {text[:80]!r}; allowed is a pool and USD per node hour, such as gpu=1.32"
            raise InputErrors([Finding("modelfleet usage", 0, "--price", message)])
        found[match[1]] = float(match[2])
    return found


def _prices(root: Path, stack: LoadedStack, hours: NodeHours, given: Mapping[str, float]) -> dict[str, float | None]:
    """USD per node hour of each pool in the records: given, or the plan's, which is that of the dearest rung."""
    pools = {machine.pool for machine in hours.machines}
    if pools <= given.keys():
        return dict(given)
    if not stack.config.target.priced:  # this machine costs nothing per hour, as in the plan
        return {**dict.fromkeys(pools, 0.0), **given}
    from modelfleet.infra.reading.workspace import make_plan

    plan = make_plan(root, stack.name, deploying=False)
    return {**{pool.name: pool.usd_per_node_hour for pool in plan.pools}, **given}


def _write_html(found: Report, path: Path) -> None:
    from modelfleet.cli.page import write_page
    from modelfleet.cli.usage_html import usage_page

    write_page(usage_page(found), path)
    output.say(f"wrote {path}; it needs no network")


def _show(found: Report, folder: Path) -> None:
    output.show(_table(found))
    if not found.rows:
        output.say(f"{folder} has no record of the last {found.since}")
    if not found.books.pools:
        output.say("No node hours are recorded for this time, so there is no USD.")
        return
    if found.models:
        output.show(_models_table(found))
    for line in found.bill_lines():
        output.say(line)


def _start(since: str) -> datetime:
    match = _SINCE.fullmatch(since)
    if match is None:
        message = f"found {since[:80]!r}; allowed are hours and days such as 24h and 7d"
        raise InputErrors([Finding("modelfleet usage", 0, "--since", message)])
    return datetime.now(UTC) - timedelta(hours=int(match[1]) * (24 if match[2] == "d" else 1))


def _table(found: Report) -> Table:
    table = Table(found.by, box=SIMPLE_HEAD)
    for name in (*COLUMNS, "USD"):
        table.add_column(name, justify="right")
    for row in found.rows:
        name, *numbers, usd = row.values()
        table.add_row(name, *(f"{number:,}" for number in numbers), usd_text(usd))
    if found.books.pools:
        table.add_section()
        for name, usd in found.unused():
            table.add_row(name, *[""] * len(COLUMNS), usd_text(usd))
        table.add_section()
        table.add_row("the pools' bill", *[""] * len(COLUMNS), usd_text(found.usd))
    return table


def _models_table(found: Report) -> Table:
    table = Table("model", box=SIMPLE_HEAD)
    for name in ("tokens", "USD used", "USD cold start", "USD idle", "USD", "USD per million tokens"):
        table.add_column(name, justify="right")
    for row in found.models:
        name, tokens, *usd = row.values()
        table.add_row(name, f"{tokens:,}", *map(usd_text, usd))
    return table


def usd_text(usd: float | None) -> str:
    """`1,234.56`; a question mark for an unknown price."""
    return "?" if usd is None else f"{usd:,.2f}"


def _csv(found: Report) -> str:
    """A row per name, then `(cold start)`, `(idle)` and `(free)`: the column `usd` adds up to the bill."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [found.by, "requests", "open", "cut_short", *SUMS, "usd"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.rows)
    if found.books.pools:
        writer.writerows({found.by: f"({name})", "usd": usd} for name, usd in found.unused())
    return text.getvalue().rstrip("\n")
