"""Finds the fewest nodes for a set of replicas by search; `tools.bench.packing` compares first fit with it.

If first fit meets the lower bound, it is the optimum. Otherwise a search that fills one node at a time decides small
cases; large ones keep first fit's answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modelfleet.infra.planning.packing import Copies, Vector, first_fit

#: The search is not tried with more copies than this.
MAX_EXACT_COPIES = 64
#: The number of node fillings after which the search gives up and keeps first fit's answer.
SEARCH_BUDGET = 20_000


def fewest_nodes(classes: Sequence[Copies], full: Vector) -> int:
    """The fewest nodes of size `full`; each class fits an empty node."""
    classes = sorted(classes, key=lambda c: (-max(d / f for d, f in zip(c.demand, full, strict=True) if d), c.demand))
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
    """A number that no packing beats: by the sum of each resource, and by demands that cannot share a node."""
    sums = [sum(c.demand[i] * c.count for c in classes) for i in range(len(full))]
    by_sum = max((-(-total // room) for total, room in zip(sums, full, strict=True) if total), default=0)
    return max(by_sum, _by_halves(classes, full))


def _by_halves(classes: Sequence[Copies], full: Vector) -> int:
    """Copies that take more than half of one resource each need their own node."""
    return max((sum(c.count for c in classes if 2 * c.demand[i] > room) for i, room in enumerate(full)), default=0)


def _copies(demand: Vector, room: Vector) -> int:
    """How many copies fit into `room`."""
    return min((r // d for r, d in zip(room, demand, strict=True) if d), default=0)


class _Search:
    """Finds whether a number of nodes is enough. It fills the node with the largest remaining copy first, in every way
    that leaves no room for another copy: some optimal packing has this form."""

    def __init__(self, classes: Sequence[Copies], full: Vector) -> None:
        self.classes = classes
        self.full = full
        self.budget = SEARCH_BUDGET
        self.failed: set[tuple[Vector, int]] = set()

    def packs(self, nodes: int) -> bool | None:
        """True or False; None if the budget is spent."""
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
        """The copies that remain after each full filling of a node with a copy of the first remaining class."""
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
