"""Who pays what: the pools' node time, shared among models by what their replicas held, among keys by use. Pure.

The rule (docs/keys.md):

1. A pool's bill is the seconds of its machines times its price.
2. At each moment, a replica bears the part of its machine that it holds. What no replica holds is `free`. Where the
   parts are more than the machine, as CPUs may be promised twice, each shrinks alike.
3. Until a replica is ready, its part is `cold-start`. Later it is `idle` while no request is open.
4. While requests are open, they share the replica's part of that moment alike. So a request pays for the time that it
   took, and less of it in company: neither prompt nor answer needs a price of its own.
5. Each line is rounded to cents so that all of a pool's lines are its bill, to the cent (`in_cents`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

Kind = Literal["used", "cold-start", "idle", "free"]
HOUR_US: Final = 3_600_000_000


@dataclass(frozen=True)
class MachineTime:
    """One machine of a pool from `began` to `ended`, in microseconds since 1970 (UTC)."""

    machine: str
    pool: str
    began: int
    ended: int


@dataclass(frozen=True)
class Holding:
    """What one replica held of one machine, `share` of it (0 to 1), in microseconds since 1970 (UTC).

    `ready` is None for a replica that never was.
    """

    replica: str
    model: str
    machine: str
    share: float
    began: int
    ready: int | None
    ended: int


@dataclass(frozen=True)
class Use:
    """One request at a replica, in microseconds since 1970 (UTC), and the name that pays for it."""

    replica: str
    name: str
    began: int
    ended: int


@dataclass(frozen=True)
class Line:
    """One line of the books. `name` is who used it, `model` who held it; both are empty where nobody did.

    `node_hours` are parts of machines times hours. `cents` are US cents, None for a pool without a price.
    """

    pool: str
    kind: Kind
    model: str
    name: str
    node_hours: float
    cents: int | None


@dataclass(frozen=True)
class PoolBill:
    """What a pool's machines cost: its lines' cents are `cents`. None for an unknown price."""

    pool: str
    machines: int
    node_hours: float
    usd_per_node_hour: float | None
    cents: int | None


@dataclass(frozen=True)
class Books:
    """Every pool's bill, and the lines that add up to it."""

    pools: tuple[PoolBill, ...]
    lines: tuple[Line, ...]

    @property
    def cents(self) -> int | None:
        """All bills, in US cents; None where a price is unknown."""
        return total_cents(bill.cents for bill in self.pools)


def close(
    machines: Sequence[MachineTime],
    holdings: Iterable[Holding],
    uses: Iterable[Use],
    usd_per_node_hour: Mapping[str, float | None],
) -> Books:
    """Shares the bill of each pool. What is outside a machine's time, or of no machine here, costs nothing."""
    times = {one.machine: one for one in machines if one.ended > one.began}
    on: dict[str, list[Holding]] = defaultdict(list)
    for one in holdings:
        if one.machine in times:
            on[one.machine].append(one)
    spent: dict[tuple[str, Kind, str, str], float] = defaultdict(float)
    held: dict[tuple[str, str, str], list[_Piece]] = defaultdict(list)
    for time in times.values():
        for piece, holding in _pieces(time, on[time.machine]):
            if holding is None:
                spent[time.pool, "free", "", ""] += piece.node_us
            elif holding.ready is None or piece.began < holding.ready:
                spent[time.pool, "cold-start", holding.model, ""] += piece.node_us
            else:
                held[time.pool, holding.model, holding.replica].append(piece)
    by_replica: dict[str, list[Use]] = defaultdict(list)
    for use in uses:
        by_replica[use.replica].append(use)
    for (pool, model, replica), pieces in held.items():
        for name, node_us in _shared(pieces, by_replica[replica]).items():
            spent[pool, "used" if name else "idle", model, name] += node_us
    return _priced(times.values(), spent, usd_per_node_hour)


def in_cents(amounts: Sequence[float], whole: int) -> list[int]:
    """`amounts` (cents, not negative) as integers whose sum is `whole`, each at most a cent from its amount.

    The largest remainders get the cents that are left, the first of equal ones. `whole` must be within a cent of
    `math.fsum(amounts)`.
    """
    floors = [math.floor(one) for one in amounts]
    left = whole - sum(floors)
    order = sorted(range(len(amounts)), key=lambda at: floors[at] - amounts[at])
    for at in order[: max(0, left)]:
        floors[at] += 1
    # A whole below the floors' sum: the amounts were a hair above it, by the floats' own error.
    for at in [at for at in reversed(order) if floors[at]][: max(0, -left)]:
        floors[at] -= 1
    return floors


def total_cents(parts: Iterable[int | None]) -> int | None:
    """The sum; None if any part is."""
    known = list(parts)
    return None if None in known else sum(one for one in known if one is not None)


@dataclass(frozen=True)
class _Piece:
    """A part of a machine (`rate`, 0 to 1) from one moment to another."""

    began: int
    ended: int
    rate: float

    @property
    def node_us(self) -> float:
        return (self.ended - self.began) * self.rate


def _pieces(time: MachineTime, holdings: Sequence[Holding]) -> Iterator[tuple[_Piece, Holding | None]]:
    """A machine's time in pieces within which nothing changes; None is what nobody held."""
    moments = {time.began, time.ended}
    for one in holdings:
        ready = one.ended if one.ready is None else one.ready
        moments |= {min(max(at, time.began), time.ended) for at in (one.began, ready, one.ended)}
    edges = sorted(moments)
    for began, ended in pairwise(edges):
        here = [one for one in holdings if one.began <= began and one.ended >= ended and one.share > 0]
        shares = math.fsum(one.share for one in here)
        for one in here:
            yield _Piece(began, ended, one.share / max(1.0, shares)), one
        if shares < 1:
            yield _Piece(began, ended, 1 - shares), None


def _shared(pieces: Sequence[_Piece], uses: Sequence[Use]) -> dict[str, float]:
    """Node-microseconds of one replica by name; under the empty name those without an open request.

    `virtual` is what one request that was open since the beginning would have paid: a request pays the difference
    between its end and its beginning, so each moment is looked at once, however many are open.
    """
    events: list[tuple[int, int, float, int]] = []  # when, rate's order, change of rate, index of the use
    for piece in pieces:
        events += [(piece.began, 0, piece.rate, -1), (piece.ended, 0, -piece.rate, -1)]
    for index, use in enumerate(uses):
        if use.ended > use.began:
            events += [(use.began, 1, 0.0, index), (use.ended, 1, 0.0, index)]
    found: dict[str, float] = defaultdict(float)
    since: dict[int, float] = {}
    rate = virtual = 0.0
    last = 0
    for when, kind, change, index in sorted(events):
        gone = max(0.0, rate) * (when - last)
        if since:
            virtual += gone / len(since)
        else:
            found[""] += gone
        last, rate = when, rate + change
        if kind and index in since:
            found[uses[index].name] += virtual - since.pop(index)
        elif kind:
            since[index] = virtual
    return found


def _priced(
    times: Iterable[MachineTime],
    spent: Mapping[tuple[str, Kind, str, str], float],
    usd_per_node_hour: Mapping[str, float | None],
) -> Books:
    whole: dict[str, list[MachineTime]] = defaultdict(list)
    for time in times:
        whole[time.pool].append(time)
    bills, lines = [], []
    for pool, its in sorted(whole.items()):
        price = usd_per_node_hour.get(pool)
        node_us = sum(one.ended - one.began for one in its)
        cents = None if price is None else round(node_us * price * 100 / HOUR_US)
        bills.append(PoolBill(pool, len(its), node_us / HOUR_US, price, cents))
        keys = sorted(key for key in spent if key[0] == pool)
        amounts = [spent[key] for key in keys]
        rounded: Sequence[int | None] = (
            [None] * len(keys)
            if price is None or cents is None
            else in_cents([one * price * 100 / HOUR_US for one in amounts], cents)
        )
        lines += [
            Line(*key, node_hours=amount / HOUR_US, cents=part)
            for key, amount, part in zip(keys, amounts, rounded, strict=True)
        ]
    return Books(tuple(bills), tuple(lines))
