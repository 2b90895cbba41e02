"""`modelfleet usage`: tokens, requests and USD by key, team, model or day, from the replicas' own records."""

from __future__ import annotations

import csv
import io
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from modelfleet.cli import output
from modelfleet.cli.usage_report import SUMS, By, Compared, Report, compared, report
from modelfleet.infra.local.runtime import usage_folder
from modelfleet.infra.names import POOL_LABEL, STACK_LABEL, local_folder
from modelfleet.infra.reading.node_hours import NodeHours, read_node_hours
from modelfleet.infra.reading.usage import read_usage
from modelfleet.infra.stack import LoadedStack, load_stack
from modelfleet.serving.config.errors import Finding, InputErrors, SetupError

_SINCE = re.compile(r"(\d{1,4})([hd])")
_PRICE = re.compile(r"([A-Za-z0-9._-]{1,63})=(\d{1,6}(?:\.\d{1,6})?)")
#: So many lines that are no records are said one by one.
MOST_UNREAD: Final = 5
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
    compare_aws: bool = False,
) -> int:
    """Print what was used since then, and who pays for it; returns the exit code: 1 where lines are no records.

    `prices` are `POOL=USD` per node hour, before those of the plan. `compare_aws` puts AWS's own bill beside the books.
    Raises `SetupError` where no record can be read, or AWS does not answer.
    """
    root = Path.cwd()
    asked = [name for name, on in {"--json": as_json, "--csv": as_csv, "--html": html is not None}.items() if on]
    if len(asked) > 1:
        raise InputErrors([Finding("modelfleet usage", 0, asked[1], f"found beside {asked[0]}; give one of them")])
    if compare_aws and as_csv:
        message = "found beside --csv, whose rows have no place for it; take --json"
        raise InputErrors([Finding("modelfleet usage", 0, "--compare-aws", message)])
    loaded = load_stack(root, stack)
    given = _given_prices(prices)
    began = _start(since)
    days = _days(loaded, began) if compare_aws else None
    faults: list[Finding] = []
    with (
        _folder(root, loaded, records, began, faults) as (folder, where, names),
        output.status(f"reading the records in {where}"),
    ):
        try:
            hours, read = read_node_hours(folder, began, faults), list(read_usage(folder, began, faults))
        except OSError as error:
            raise SetupError(f"{error.filename or where} cannot be read: {error.strerror or error}") from None
    known = _prices(root, loaded, hours, given)
    unread = sorted({replace(one, file=names.get(one.file, one.file)) for one in faults})
    found = report(read, hours, known, by=by, stack=stack, since=since, unread=unread)
    if days is not None:
        found = replace(found, compared=_with_aws(loaded, hours, known, *days))
    if as_json:
        output.show_json(found.as_json())
    elif as_csv:
        output.write(_csv(found))
    elif html is not None:
        _write_html(found, html)
    else:
        _show(found, where)
    _say_unread(found.unread)
    return 1 if found.unread else 0


@contextmanager
def _folder(
    root: Path, stack: LoadedStack, records: Path | None, since: datetime, faults: list[Finding]
) -> Iterator[tuple[Path, str, Mapping[str, str]]]:
    """The folder with the records: given, this machine's, or a copy of what the bucket has.

    Its name in messages, and those of its files where these are copies.
    """
    if records is not None:
        if not records.is_dir():
            raise InputErrors([Finding("modelfleet usage", 0, "--records", f"found {records}, which is no folder")])
        yield records, str(records), {}
    elif stack.config.target.on_this_machine:
        folder = usage_folder(local_folder(root, stack.name))
        yield folder, str(folder), {}
    elif stack.config.target.makes_cluster:
        with _of_bucket(stack, since, faults) as found:
            yield found
    else:
        raise SetupError(
            f"stack {stack.name}: the records are beside Ray's logs in its pods, where your log shipper takes them "
            "(logs/usage); give a folder that holds copies of them, `--records DIR`"
        )


@contextmanager
def _of_bucket(
    stack: LoadedStack, since: datetime, faults: list[Finding]
) -> Iterator[tuple[Path, str, Mapping[str, str]]]:
    from modelfleet.infra.planning.applications import bucket_plan
    from modelfleet.infra.reading.usage_bucket import fetch_usage

    plan, unnamed = bucket_plan(stack, [])
    if unnamed or plan.name is None or plan.usage is None:
        raise InputErrors(unnamed)
    where = f"s3://{plan.name}/{plan.usage}"
    with tempfile.TemporaryDirectory(prefix="modelfleet-usage-") as scratch:
        with output.status(f"fetching the records of {where}"):
            names = fetch_usage(
                plan.name, plan.usage, since, Path(scratch), faults, region=stack.region, profile=stack.profile
            )
        yield Path(scratch), where, names


def _days(stack: LoadedStack, since: datetime) -> tuple[date, date]:
    """The first whole day of the time asked for, and the day after the last that Cost Explorer has whole.

    Its figures are up to 24 hours late.
    https://docs.aws.amazon.com/cost-management/latest/userguide/ce-what-is.html
    """
    if not stack.config.target.makes_cluster or stack.region is None:
        message = f"found for target {stack.config.target}, whose machines AWS does not bill by the stack; leave it out"
        raise InputErrors([Finding("modelfleet usage", 0, "--compare-aws", message)])
    first, end = since.date() + timedelta(days=1), (datetime.now(UTC) - timedelta(days=1)).date()
    if first >= end:
        message = "found a time without a whole day that AWS has billed; allowed are 3d and more"
        raise InputErrors([Finding("modelfleet usage", 0, "--since", message)])
    return first, end


def _with_aws(
    stack: LoadedStack, hours: NodeHours, prices: Mapping[str, float | None], first: date, end: date
) -> Compared:
    from modelfleet.infra.reading.cost_explorer import cost_by_pool

    with output.status("asking Cost Explorer"):
        cost = cost_by_pool(stack.name, stack.region or "", first, end, profile=stack.profile)
    return compared(hours, prices, cost, first, end)


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


def _show(found: Report, where: str) -> None:
    output.show(_table(found))
    if not found.rows:
        output.say(f"{where} has no record of the last {found.since}")
    if found.books.pools:
        if found.models:
            output.show(_models_table(found))
        for line in found.bill_lines():
            output.say(line)
    else:
        output.say("No node hours are recorded for this time, so there is no USD.")
    if found.compared:
        output.show(_compared_table(found.compared))
        for line in compared_lines(found.compared):
            output.say(line)


def _say_unread(unread: Sequence[Finding]) -> None:
    """The first few, and how many more: a file of another program has a fault in each line."""
    output.show_findings(unread[:MOST_UNREAD])
    if (more := len(unread) - MOST_UNREAD) > 0:
        output.say(f"and {output.counted(more, 'line')} more; --json has all of them")


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
        table.add_row(shown(name), *(f"{number:,}" for number in numbers), usd_text(usd))
    if found.books.pools:
        table.add_section()
        for name, usd in found.unused():
            table.add_row(name, *[""] * len(COLUMNS), usd_text(usd))
        table.add_section()
        table.add_row("the pools' bill", *[""] * len(COLUMNS), usd_text(found.usd))
    return table


def _compared_table(found: Compared) -> Table:
    table = Table("pool", box=SIMPLE_HEAD)
    for name in ("USD by the books", "USD by AWS", "difference"):
        table.add_column(name, justify="right")
    for row in found.rows:
        ours = "–" if row["usd_books"] is None else usd_text(row["usd_books"])
        difference = "–" if row["difference"] is None else f"{row['difference']:+,.2f}"
        table.add_row(shown(row["pool"]) or "(no pool)", ours, usd_text(row["usd_aws"]), difference)
    return table


def compared_lines(found: Compared) -> Iterator[str]:
    """Which days these are, and what explains a difference."""
    last = found.end - timedelta(days=1)
    yield f"{found.first} to {last}, whole days in UTC; AWS: EC2 machines with the tag {STACK_LABEL}, unblended"
    yield "–: not in the books, which have the pools' machines alone"
    if found.empty:
        yield (
            f"AWS knows of no such cost. Activate the cost allocation tags {STACK_LABEL} and {POOL_LABEL} in Billing; "
            "AWS then counts by them from the next day on"
        )
    else:
        yield "differences: the books have the price on demand of the dearest rung; --price POOL=USD gives another"


def _models_table(found: Report) -> Table:
    table = Table("model", box=SIMPLE_HEAD)
    for name in ("tokens", "USD used", "USD cold start", "USD idle", "USD", "USD per million tokens"):
        table.add_column(name, justify="right")
    for row in found.models:
        name, tokens, *usd = row.values()
        table.add_row(shown(name), f"{tokens:,}", *map(usd_text, usd))
    return table


def shown(name: str) -> str:
    """A name that anybody may have written, for a terminal: no control characters, no markup, at most 80 of them."""
    plain = "".join(one if one.isprintable() else "?" for one in name)
    return escape(plain if len(plain) <= 80 else f"{plain[:80]}…")


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
