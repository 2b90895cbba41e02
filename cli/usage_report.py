"""What `modelfleet usage` shows, as data: tokens of the records beside the money of the books."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

from modelfleet.infra.planning.books import Books, Kind, Use, close, total_cents
from modelfleet.infra.reading.node_hours import NodeHours
from modelfleet.infra.reading.records import micros
from modelfleet.serving.config.errors import Finding

By = Literal["key", "team", "model", "adapter", "day"]
#: The sums of a row, in the order of its columns.
SUMS: Final = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
#: What a row is called whose records have no name: no key with `auth: none`, no team, no adapter.
NOBODY: Final = "–"
#: Seconds after its last line for which a request counts as running: a growing one has a line each 10 s.
OPEN_S: Final = 60
#: What nobody used, in the words of the table.
UNUSED: Final[Mapping[Kind, str]] = {"cold-start": "cold start", "idle": "idle", "free": "free"}
DAY_US: Final = 86_400_000_000


@dataclass(frozen=True)
class Compared:
    """The books beside AWS's own bill, for the days from `first` up to `end` (UTC), which is not one of them.

    `rows` have `pool`, and USD: `usd_books`, which is None for what the books do not have, `usd_aws`, and `difference`,
    the first minus the second.
    """

    first: date
    end: date
    rows: list[dict[str, Any]]

    @property
    def empty(self) -> bool:
        """Whether AWS knows of no cost at all with the stack's tag."""
        return not any(row["usd_aws"] for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {"first_day": self.first.isoformat(), "end": self.end.isoformat(), "pools": self.rows}


@dataclass(frozen=True)
class Report:
    """`rows` have the name under `by`, requests, tokens and `usd`, which is None where a price is not known.

    `models` have `tokens` (prompt and completion) and USD: used, cold start, idle, all three, and these per million
    tokens. `unread` says which lines of the records are none, and `compared` has AWS's own bill where it was asked for.
    """

    stack: str
    since: str
    by: By
    rows: list[dict[str, Any]]
    models: list[dict[str, Any]]
    books: Books
    unread: tuple[Finding, ...] = ()
    compared: Compared | None = None

    @property
    def usd(self) -> float | None:
        """The pools' bill."""
        return _usd(self.books.cents)

    def unused(self) -> list[tuple[str, float | None]]:
        """What nobody used: the name of the line, and USD."""
        return [(word, self._of(kind)) for kind, word in UNUSED.items()]

    def _of(self, kind: Kind) -> float | None:
        return _usd(total_cents(line.cents for line in self.books.lines if line.kind == kind))

    def bill_lines(self) -> Iterator[str]:
        """A sentence per pool, and what the words mean."""
        for bill in self.books.pools:
            machines = f"{bill.machines} machine{'' if bill.machines == 1 else 's'}, {bill.node_hours:,.2f} node hours"
            if bill.usd_per_node_hour is None or bill.cents is None:
                pool = bill.pool or "POOL"
                yield f"pool {pool}: {machines}; its price is not known, `--price {pool}=USD` gives it per node hour"
            else:
                usd = f"{bill.usd_per_node_hour:,.4f} USD = {bill.cents / 100:,.2f} USD"
                yield f"pool {bill.pool}: {machines} at {usd}"
        yield "cold start: held by replicas that were not ready; idle: ready, without a request; free: held by none"

    def as_json(self) -> dict[str, Any]:
        """All of it; the `usd` of `rows` and of the lines that are not `used` add up to `books.usd`."""
        return {
            "stack": self.stack,
            "since": self.since,
            "by": self.by,
            "rows": self.rows,
            "models": self.models,
            "books": {
                "usd": self.usd,
                "pools": [_with_usd(asdict(bill)) for bill in self.books.pools],
                "lines": [_with_usd(asdict(line)) for line in self.books.lines],
            },
            "unread": [finding.as_json() for finding in self.unread],
            **({"aws": self.compared.as_json()} if self.compared else {}),
        }


def report(
    records: Iterable[Mapping[str, Any]],
    hours: NodeHours,
    usd_per_node_hour: Mapping[str, float | None],
    *,
    by: By,
    stack: str,
    since: str,
    unread: Iterable[Finding] = (),
) -> Report:
    """The records' sums, and the books over the time that their requests took."""
    known = list(records)
    books = close(hours.machines, hours.holdings, uses(known, by), usd_per_node_hour)
    return Report(stack, since, by, _rows_with_usd(known, books, by), _models(known, books), books, tuple(unread))


def compared(
    hours: NodeHours, usd_per_node_hour: Mapping[str, float | None], aws: Mapping[str, Decimal], first: date, end: date
) -> Compared:
    """What the pools' machines cost in these days by the books, and by AWS (USD by pool)."""
    began, ended = (
        round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 10**6 for day in (first, end)
    )
    within = [
        replace(one, began=max(one.began, began), ended=min(one.ended, ended))
        for one in hours.machines
        if one.began < ended and one.ended > began
    ]
    ours = {bill.pool: bill.cents for bill in close(within, (), (), usd_per_node_hour).pools}
    return Compared(first, end, [_beside(pool, ours, aws) for pool in sorted({*ours, *aws})])


def _beside(pool: str, ours: Mapping[str, int | None], aws: Mapping[str, Decimal]) -> dict[str, Any]:
    known, theirs = ours.get(pool), round(aws.get(pool, Decimal(0)) * 100)
    difference = None if known is None else (known - theirs) / 100
    return {"pool": pool, "usd_books": _usd(known), "usd_aws": theirs / 100, "difference": difference}


def uses(records: Iterable[Mapping[str, Any]], by: By) -> Iterator[Use]:
    """The time of each request under its name; by day, each day's part of it."""
    for record in records:
        began, ended = micros(record["began"]), micros(record["written"])
        if by != "day":
            yield Use(record["replica"], record[by] or NOBODY, began, ended)
            continue
        while began < ended:
            part = min(ended, (began // DAY_US + 1) * DAY_US)
            day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=began)).date()
            yield Use(record["replica"], day.isoformat(), began, part)
            began = part


def rows(records: Iterable[Mapping[str, Any]], by: By) -> list[dict[str, Any]]:
    """One row per name, sorted by it: requests, how many of them are open or were cut short, and tokens.

    A request that was open when its replica died counts as cut short, with the tokens of its last line: after
    `OPEN_S` without another one. A running request that did not grow for so long is counted so until its next line.
    """
    alive = (datetime.now(UTC) - timedelta(seconds=OPEN_S)).strftime("%Y-%m-%dT%H:%M:%S")
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        name = record["began"][:10] if by == "day" else record[by] or NOBODY
        row = found.setdefault(name, _nothing(name, by))
        row["requests"] += 1
        running = record["end"] == "open" and record["written"] >= alive
        row["open"] += running
        row["cut_short"] += record["end"] != "finished" and not running
        for one in SUMS:
            row[one] += record[one]
    return [found[name] for name in sorted(found)]


def _nothing(name: str, by: By) -> dict[str, Any]:
    return {by: name, "requests": 0, "open": 0, "cut_short": 0, **dict.fromkeys(SUMS, 0)}


def _rows_with_usd(records: Iterable[Mapping[str, Any]], books: Books, by: By) -> list[dict[str, Any]]:
    """A name may have money without a request: a day that one ran into."""
    cents: dict[str, list[int | None]] = {}
    for line in books.lines:
        if line.kind == "used":
            cents.setdefault(line.name, []).append(line.cents)
    found = {row[by]: row for row in rows(records, by)}
    for name in cents:
        found.setdefault(name, _nothing(name, by))
    nothing: list[int | None] = [] if books.pools else [None]
    return [{**found[name], "usd": _usd(total_cents(cents.get(name, nothing)))} for name in sorted(found)]


def _models(records: Iterable[Mapping[str, Any]], books: Books) -> list[dict[str, Any]]:
    tokens = {row["model"]: row["prompt_tokens"] + row["completion_tokens"] for row in rows(records, "model")}
    names = sorted({line.model for line in books.lines if line.model})
    return [_model(name, tokens.get(name, 0), books) for name in names]


def _model(name: str, tokens: int, books: Books) -> dict[str, Any]:
    lines = [line for line in books.lines if line.model == name]
    kinds: tuple[Kind, ...] = ("used", "cold-start", "idle")
    used, cold, idle = (_usd(total_cents(line.cents for line in lines if line.kind == kind)) for kind in kinds)
    whole = _usd(total_cents(line.cents for line in lines))
    return {
        "model": name,
        "tokens": tokens,
        "usd_used": used,
        "usd_cold_start": cold,
        "usd_idle": idle,
        "usd": whole,
        "usd_per_million_tokens": round(whole * 1e6 / tokens, 4) if whole is not None and tokens else None,
    }


def _usd(cents: int | None) -> float | None:
    return None if cents is None else cents / 100


def _with_usd(data: dict[str, Any]) -> dict[str, Any]:
    """US cents as USD, which is what everything else says."""
    return {**{key: value for key, value in data.items() if key != "cents"}, "usd": _usd(data["cents"])}
