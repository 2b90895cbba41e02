"""How many equal nodes carry a set of replicas: vector bin packing with counted classes.

A quick first fit gives an upper bound, the resources' sums a lower one. Where they meet, that is the optimum, and so
it is nearly always. Where they do not and the case is small, a search over fillings of one node at a time decides it
exactly; large cases keep first fit's answer, which Ray's own placement, one replica at a time, resembles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Ray counts resources in steps of 1/10000.
STEP = 10_000
#: Above this many copies the search is not tried.
MAX_EXACT_COPIES = 64
#: Fillings of a node that the search looks at before it gives up and keeps first fit's answer.
SEARCH_BUDGET = 20_000

Amounts = Mapping[str, float]
Steps = Mapping[str, int]
Vector = tuple[int, ...]


@dataclass(frozen=True)
class Copies:
    """`count` copies of a demand, in Ray's steps."""

    demand: Vector
    count: int


def steps(amounts: Amounts) -> Steps:
    """Resource amounts in Ray's smallest steps, so that sums are exact; zeros are left out."""
    return {name: value for name, amount in amounts.items() if (value := round(amount * STEP))}


def copies(demand: Steps, room: Steps) -> int:
    """How many times `demand` fits into `room`."""
    return min((room.get(name, 0) // amount for name, amount in demand.items()), default=0)


def fewest_on(items: Sequence[tuple[Steps, int]], room: Steps) -> int:
    """Fewest nodes with `room` that carry `count` copies of each demand; each demand must fit an empty node."""
    names = sorted({name for demand, _ in items for name in demand})
    full = tuple(room.get(name, 0) for name in names)
    counts: dict[Vector, int] = {}
    for demand, count in items:
        vector = tuple(demand.get(name, 0) for name in names)
        counts[vector] = counts.get(vector, 0) + count
    return fewest_nodes([Copies(demand, count) for demand, count in counts.items() if count], full)


def fewest_nodes(classes: Sequence[Copies], full: Vector) -> int:
    """The number of nodes of size `full`; each class fits an empty node."""
    classes = sorted(classes, key=lambda c: (-_share(c.demand, full), c.demand))
    least, most = lower_bound(classes, full), first_fit(classes, full)
    if least == most or sum(c.count for c in classes) > MAX_EXACT_COPIES:
        return most
    search = _Search(classes, full)
    for nodes in range(least, most):
        match search.packs(nodes):
            case True:
                return nodes
            case None:
                return most
    return most


def lower_bound(classes: Sequence[Copies], full: Vector) -> int:
    """No packing takes fewer: by the sum of each resource, and by demands of which no two share a node."""
    sums = [sum(c.demand[i] * c.count for c in classes) for i in range(len(full))]
    by_sum = max((-(-total // room) for total, room in zip(sums, full, strict=True) if total), default=0)
    return max(by_sum, _by_halves(classes, full))


def _by_halves(classes: Sequence[Copies], full: Vector) -> int:
    """Copies that take more than half of one resource each need a node of their own."""
    return max((sum(c.count for c in classes if 2 * c.demand[i] > room) for i, room in enumerate(full)), default=0)


def first_fit(classes: Sequence[Copies], full: Vector) -> int:
    """First fit over groups of equally filled nodes, so that a thousand copies cost as much as one."""
    groups: list[tuple[Vector, int]] = []
    for one in classes:
        left, kept = one.count, []
        for room, nodes in groups:
            fit = _copies(one.demand, room) if left else 0
            if not fit:
                kept.append((room, nodes))
                continue
            whole = min(nodes, left // fit)
            left -= whole * fit
            rest = min(left, fit) if nodes > whole else 0
            left -= rest
            kept += _filled(room, one.demand, fit, whole) + _filled(room, one.demand, rest, 1 if rest else 0)
            kept += [(room, nodes - whole - bool(rest))] if nodes - whole - bool(rest) else []
        fit = _copies(one.demand, full)
        kept += _filled(full, one.demand, fit, left // fit) + _filled(
            full, one.demand, left % fit, 1 if left % fit else 0
        )
        groups = kept
    return sum(nodes for _, nodes in groups)


def _filled(room: Vector, demand: Vector, copies: int, nodes: int) -> list[tuple[Vector, int]]:
    return [(tuple(r - copies * d for r, d in zip(room, demand, strict=True)), nodes)] if nodes else []


def _copies(demand: Vector, room: Vector) -> int:
    """How many copies fit into `room`."""
    return min((r // d for r, d in zip(room, demand, strict=True) if d), default=0)


def _share(demand: Vector, full: Vector) -> float:
    """The largest part of a node that one copy takes of any resource."""
    return max(d / f for d, f in zip(demand, full, strict=True) if d)


class _Search:
    """Does a given number of nodes suffice? The node with the largest copy left is filled first, in every way that
    leaves no room for another copy: some optimal packing looks like that."""

    def __init__(self, classes: Sequence[Copies], full: Vector) -> None:
        self.classes = classes
        self.full = full
        self.budget = SEARCH_BUDGET
        self.failed: set[tuple[Vector, int]] = set()

    def packs(self, nodes: int) -> bool | None:
        """True or False; None when the budget is spent."""
        found = self._packs(tuple(c.count for c in self.classes), nodes)
        return None if self.budget <= 0 and not found else found

    def _packs(self, left: Vector, nodes: int) -> bool:
        if not any(left):
            return True
        remaining = [Copies(c.demand, n) for c, n in zip(self.classes, left, strict=True) if n]
        if (left, nodes) in self.failed or self.budget <= 0 or lower_bound(remaining, self.full) > nodes:
            return False
        if any(self._packs(after, nodes - 1) for after in self._fillings(left)):
            return True
        self.failed.add((left, nodes))
        return False

    def _fillings(self, left: Vector) -> Iterator[Vector]:
        """What is left after one node is filled: it has one of the first class that is left, and is full."""
        first = next(index for index, count in enumerate(left) if count)
        room = tuple(r - d for r, d in zip(self.full, self.classes[first].demand, strict=True))
        yield from self._fill(first, room, (*left[:first], left[first] - 1, *left[first + 1 :]))

    def _fill(self, index: int, room: Vector, left: Vector) -> Iterator[Vector]:
        self.budget -= 1
        if self.budget <= 0:
            return
        if index == len(left):
            if not any(n and _copies(c.demand, room) for c, n in zip(self.classes, left, strict=True)):
                yield left
            return
        demand = self.classes[index].demand
        for copies in range(min(left[index], _copies(demand, room)), -1, -1):
            inner = tuple(r - copies * d for r, d in zip(room, demand, strict=True))
            yield from self._fill(index + 1, inner, (*left[:index], left[index] - copies, *left[index + 1 :]))
