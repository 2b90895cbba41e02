"""What requests really took, told to the gateways that they came from.

The gateway charges a request when it comes, by what it may take, and has to know later what it took: for its limits on
tokens per minute, and for budgets by day and month. A stream says nothing after its last token, so the replica calls
the gateway. Each request says where that is (`SETTLE`), which secret it believes, and which budgets it has for the key
and its team. Once a second the replica sends one small request per key and gateway, if there is something new.

What a key has used of a budget is a sum over all replicas, also those that ended. Each replica keeps its own sums
in Ray's store (`Store`) under its own name, which only grow, and adds up what all wrote there. So nobody's words are
counted twice, and none are lost while the store lives. On one machine the records (`usage`) give back what a new
Ray does not know.

Times are in UTC. A token counts in the day and month in which the replica saw it.
"""

from __future__ import annotations

import http.client
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

#: Headers of a request, by which the gateway says where it hears, what it charged, and what tokens cost.
SETTLE, CHARGE, PRICE = "x-modelfleet-settle", "x-modelfleet-charge", "x-modelfleet-price"
#: Where the gateway hears, and headers of what it hears: its own secret, tokens beyond the charge and those it spares.
PATH, SECRET, MORE, LESS = "/settle", "x-modelfleet-secret", "x-modelfleet-more", "x-modelfleet-less"
MILLION = 1_000_000
#: Seconds of the gateway's limit on tokens: a charge that is older counts no more, so nothing of it is given back.
WINDOW_S = 60.0
#: Seconds for a gateway's answer, and how often it may fail until it counts as gone.
ANSWERS_S, FAILURES = 2.0, 3
#: Seconds between two looks at what other replicas wrote, for each of them, and bytes a second that a replica writes or
#: reads: no store, and no event loop beside the thread that reads them, has to bear more.
LOOK_S_EACH, BYTES_PER_S = 0.05, 200_000
#: Seconds for which what an ended replica wrote stays. More than a month, as a clock may run ahead for a while.
KEPT_S = 62 * 86400
#: Seconds without a token after which a key is looked at no more, until its next request: thousands may have a key.
QUIET_S = 600.0
#: Values of a name: tokens, and millionths of a USD.
UNITS = {"tokens": 0, "usd": 1}

logger = logging.getLogger("ray.serve")


class Store(Protocol):
    """What all replicas share: one text for each of them. Each call may raise; it blocks."""

    def put(self, replica: str, text: str, *, new: bool = False) -> None:
        """Writes a replica's text; with `new` only if there is none."""

    def all(self) -> Mapping[str, str]:
        """Everybody's text, by the replica's name."""

    def remove(self, replica: str) -> None:
        """Forgets a replica's text."""


@dataclass(frozen=True)
class Gateway:
    """Where one process of the gateway hears (`host:port`), and what it believes."""

    address: str
    secret: str


@dataclass(frozen=True)
class Asker:
    """Whose tokens: a key, and its team if it has one."""

    key: str
    team: str | None


@dataclass(frozen=True)
class Settle:
    """What a request says: its gateway, its charge (None: none), and USD per million output tokens of its model.

    `budgets` are those of the key and of its team, such as `day-tokens`, None for none.
    """

    gateway: Gateway
    budgets: tuple[str | None, str | None]
    charge: int | None
    price: float

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Settle | None:
        """None for a request whose gateway has no use for it, or that came without a gateway."""
        said = headers.get(SETTLE, "").split(" ")
        if len(said) != 4:
            return None
        address, secret, *kinds = said
        charge, price = headers.get(CHARGE, ""), headers.get(PRICE, "")
        budgets = tuple(kind if kind in KINDS else None for kind in kinds)
        try:
            cost = max(0.0, float(price)) if price else 0.0
        except ValueError:
            cost = 0.0
        return cls(Gateway(address, secret), budgets, int(charge) if charge.isdecimal() else None, cost)  # type: ignore[arg-type]


KINDS = frozenset(f"{period}-{unit}" for period in ("day", "month") for unit in UNITS)


def periods(now: float) -> dict[str, str]:
    """The day and the month of a moment (seconds since 1970), as `2026-12-01` and `2026-12`."""
    day = datetime.fromtimestamp(now, UTC)
    return {"day": f"{day:%Y-%m-%d}", "month": f"{day:%Y-%m}"}


def period_ends(period: str, now: float) -> int:
    """When the day or month of a moment ends, in seconds since 1970."""
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return int((day + timedelta(days=1)).timestamp())
    return int((day.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp())


class Sums:
    """Tokens and millionths of a USD of each name in the current day and month: they grow, and then begin anew."""

    def __init__(self) -> None:
        self.by_period: dict[str, dict[str, list[float]]] = {}
        self._text = "{}"

    def add(self, asker: Asker, tokens: int, usd: float, now: float) -> None:
        """`usd` in millionths."""
        self._text = ""
        current = set(periods(now).values())
        for old in self.by_period.keys() - current:
            del self.by_period[old]
        for period in current:
            names = self.by_period.setdefault(period, {})
            for name in names_of(asker):
                values = names.setdefault(name, [0, 0])
                values[0] += tokens
                values[1] += usd

    def text(self) -> str:
        """For the store."""
        self._text = self._text or json.dumps(self.by_period, separators=(",", ":"))
        return self._text


def names_of(asker: Asker) -> list[str]:
    """How sums call a key and its team: both may have the same name."""
    return [f"key:{asker.key}", *([f"team:{asker.team}"] if asker.team else [])]


@dataclass(frozen=True)
class _Used:
    """What a key or team has used of a budget whose period ends then (seconds since 1970)."""

    name: str
    ends: int
    amount: int

    def headers(self) -> dict[str, str]:
        kind = f"x-modelfleet-{self.name.partition(':')[0]}"
        millions, rest = divmod(self.amount, MILLION)
        return {f"{kind}-ends": str(self.ends), f"{kind}-millions": str(millions), f"{kind}-rest": str(rest)}


@dataclass
class _Open:
    """What is still to be told to one gateway about one asker, and what was told last."""

    budgets: tuple[str | None, str | None] = (None, None)
    more: float = 0.0
    less: float = 0.0
    told: tuple[_Used, ...] | None = None
    heard_at: float = 0.0


@dataclass
class _Known:
    """A gateway that sent a request."""

    askers: dict[Asker, _Open] = field(default_factory=dict)
    failures: int = 0


@dataclass(frozen=True)
class _Message:
    gateway: Gateway
    asker: Asker
    more: int
    less: int
    values: tuple[_Used, ...]

    @property
    def headers(self) -> dict[str, str]:
        said = {SECRET: self.gateway.secret, MORE: str(self.more), LESS: str(self.less)}
        for name in names_of(self.asker):
            kind, _, own = name.partition(":")
            said[f"x-modelfleet-{kind}"] = own
        for value in self.values:
            said |= value.headers()
        return said


class Settling:
    """One replica's part. `heard`, `count` and `end` are called by its event loop, `exchange` once a second.

    `exchange` blocks and belongs in a thread; what it reads of the rest is a copy made by `messages`. `records` gives
    the records of this month that lie on this machine, for what a new store does not know.
    """

    def __init__(
        self,
        replica: str,
        store: Store,
        *,
        records: Callable[[datetime], Iterable[Mapping[str, Any]]] = lambda since: (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._replica, self._store, self._records, self._clock = replica, store, records, clock
        self._own = Sums()
        self._others: dict[str, dict[str, tuple[float, float]]] = {}
        self._gateways: dict[Gateway, _Known] = {}
        self._written = ""
        self._seeded = False
        #: Whether the store did not answer last time: each replica then goes on with what it knows.
        self._alone = False
        #: When the store may be used again, by the monotonic clock.
        self._next_write = self._next_look = 0.0

    def heard(self, asker: Asker, settle: Settle) -> None:
        """A request came."""
        one = self._gateways.setdefault(settle.gateway, _Known()).askers.setdefault(asker, _Open())
        one.budgets = settle.budgets
        one.heard_at = time.monotonic()

    def count(self, asker: Asker, prompt: int, completion: int, settle: Settle | None) -> None:
        """Tokens since the last call, of an open request or an ended one."""
        if settle is not None:
            self.heard(asker, settle)
        # A million tokens for `price` USD are `price` millionths of a USD for one.
        usd = completion * settle.price if settle else 0.0
        self._own.add(asker, prompt + completion, usd, self._clock())

    def end(self, asker: Asker, settle: Settle, tokens: int, seconds: float) -> None:
        """A request ended after so many seconds, with so many tokens in all: its charge is corrected.

        What was charged too much is given back less the longer ago it was: its charge decays within the minute, and
        would be given back twice. Else a key could use more than twice its limit.
        """
        known = self._gateways.get(settle.gateway)
        if settle.charge is None or known is None:
            return
        self.heard(asker, settle)
        one = known.askers[asker]
        one.more += max(0, tokens - settle.charge)
        one.less += max(0, settle.charge - tokens) * min(1.0, max(0.0, 1 - seconds / WINDOW_S))

    def messages(self) -> list[_Message]:
        """What there is to tell now."""
        now = self._clock()
        current = {period: (name, period_ends(period, now)) for period, name in periods(now).items()}
        found = []
        for gateway, known in self._gateways.items():
            quiet = time.monotonic() - QUIET_S
            known.askers = {asker: one for asker, one in known.askers.items() if one.heard_at > quiet}
            for asker, one in known.askers.items():
                named = zip(names_of(asker), one.budgets, strict=False)
                values = tuple(_Used(name, *self._used(name, kind, current)) for name, kind in named if kind)
                if int(one.more) or int(one.less) or (values and values != one.told):
                    found.append(_Message(gateway, asker, int(one.more), int(one.less), values))
        return found

    def exchange(self, messages: Iterable[_Message], text: str) -> tuple[list[_Message], set[Gateway], set[Gateway]]:
        """Writes `text` (`own_text`) to the store, reads what others wrote, and tells the gateways.

        Returns what was told, the gateways that did not answer, and those that are others now. Blocks.
        """
        try:
            self._share(text)
            self._alone = False
        except Exception as error:  # noqa: BLE001 - the errors of Ray's store have no common base
            if not self._alone:
                logger.error(
                    "what keys have used cannot be shared with other replicas until the head answers: %s", error
                )
            self._alone = True
        return _send(messages)

    def told(self, done: tuple[list[_Message], set[Gateway], set[Gateway]]) -> None:
        """Notes what `exchange` did, in the event loop."""
        sent, silent, gone = done
        for message in sent:
            known = self._gateways[message.gateway]
            known.failures = 0
            one = known.askers[message.asker]
            one.more, one.less, one.told = one.more - message.more, one.less - message.less, message.values
        for gateway in silent:
            self._gateways[gateway].failures += 1
        lost = {gateway for gateway in silent if self._gateways[gateway].failures >= FAILURES}
        for gateway in gone | lost:
            del self._gateways[gateway]

    @property
    def own_text(self) -> str:
        """This replica's sums, for the store."""
        return self._own.text()

    def _used(self, name: str, kind: str, current: Mapping[str, tuple[str, int]]) -> tuple[int, int]:
        """When the budget's period ends, and what all replicas have counted for the name."""
        period, unit = kind.split("-")
        (begun, ends), at = current[period], UNITS[unit]
        own = self._own.by_period.get(begun, {}).get(name, (0, 0))[at]
        others = self._others.get(begun, {}).get(name, (0.0, 0.0))[at]
        return ends, int(own + others)

    def _share(self, text: str) -> None:
        now = time.monotonic()
        budgets = any(
            any(one.budgets) for known in list(self._gateways.values()) for one in list(known.askers.values())
        )
        # Where nobody ever had a budget nobody reads the sums. Where somebody had one, those of the last minutes count.
        if (budgets or self._seeded) and text not in (self._written, "{}") and now >= self._next_write:
            self._store.put(self._replica, text)
            self._written, self._next_write = text, now + len(text) / BYTES_PER_S
        if not budgets:
            return
        if not self._seeded:
            self._seed()
            self._seeded = True
        if now < self._next_look:
            return
        texts = {replica: text for replica, text in self._store.all().items() if replica != self._replica}
        self._next_look = now + LOOK_S_EACH * len(texts) + sum(map(len, texts.values())) / BYTES_PER_S
        kept_since = periods(self._clock() - KEPT_S)["month"]
        sums: dict[str, dict[str, tuple[float, float]]] = {}
        for replica, written in texts.items():
            by_period = json.loads(written)
            if not any(period >= kept_since for period in by_period):
                self._store.remove(replica)
            for period, names in by_period.items():
                there = sums.setdefault(period, {})
                for name, (tokens, usd) in names.items():
                    before = there.get(name, (0.0, 0.0))
                    there[name] = (before[0] + tokens, before[1] + usd)
        self._others = sums

    def _seed(self) -> None:
        """Replicas of this month that the store does not know: they ran on an earlier Ray of this machine.

        A replica that runs writes its own sums over these, which have all of them. Money is not in the records.
        """
        now = self._clock()
        month = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        found: dict[str, dict[str, dict[str, list[float]]]] = {}
        for record in self._records(month):
            if record["key"] is None or record["replica"] == self._replica:
                continue
            day = record["written"][:10]
            for period in {day, day[:7]} & set(periods(now).values()):
                names = found.setdefault(record["replica"], {}).setdefault(period, {})
                for name in names_of(Asker(record["key"], record["team"])):
                    names.setdefault(name, [0, 0])[0] += record["prompt_tokens"] + record["completion_tokens"]
        for replica, by_period in found.items():
            self._store.put(replica, json.dumps(by_period, separators=(",", ":")), new=True)


def _send(messages: Iterable[_Message]) -> tuple[list[_Message], set[Gateway], set[Gateway]]:
    """One connection to each gateway; the first failure is the last try of this round."""
    by_gateway: dict[Gateway, list[_Message]] = {}
    for message in messages:
        by_gateway.setdefault(message.gateway, []).append(message)
    sent: list[_Message] = []
    silent, gone = set(), set()
    for gateway, its in by_gateway.items():
        host, _, port = gateway.address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=ANSWERS_S)
        try:
            for message in its:
                connection.request("POST", PATH, headers=message.headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status == http.client.FORBIDDEN:
                    gone.add(gateway)  # another process listens there now
                    break
                if answer.status != http.client.NO_CONTENT:
                    raise http.client.HTTPException(f"status {answer.status}")
                sent.append(message)
        except (OSError, http.client.HTTPException, ValueError) as error:
            logger.warning("the gateway at %s does not hear what requests took: %s", gateway.address, error)
            silent.add(gateway)
        finally:
            connection.close()
    return sent, silent, gone
