"""How many equal nodes carry a set of replicas: first fit, largest first, over classes of equal replicas.

Ray places one replica at a time, so it may not reach the optimum either. `python -m tools.bench.packing` measures how
rarely the optimum needs fewer nodes than this; docs/planning.md has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Ray counts resources in steps of 1/10000.
STEP = 10_000

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


def nodes_on(items: Sequence[tuple[Steps, int]], room: Steps) -> int:
    """How many nodes with `room` carry `count` copies of each demand; each demand must fit an empty node."""
    return first_fit(*_vectors(items, room))


def room_left(items: Sequence[tuple[Steps, int]], room: Steps) -> list[tuple[Steps, int]]:
    """What `nodes_on` leaves of its nodes, and on how many; of what no demand names, nothing is said."""
    names = sorted({name for demand, _ in items for name in demand})
    return [(dict(zip(names, left, strict=True)), nodes) for left, nodes in _packed(*_vectors(items, room))]


def _vectors(items: Sequence[tuple[Steps, int]], room: Steps) -> tuple[list[Copies], Vector]:
    names = sorted({name for demand, _ in items for name in demand})
    full = tuple(room.get(name, 0) for name in names)
    counts: dict[Vector, int] = {}
    for demand, count in items:
        vector = tuple(demand.get(name, 0) for name in names)
        counts[vector] = counts.get(vector, 0) + count
    return [Copies(demand, count) for demand, count in counts.items() if count], full


def first_fit(classes: Sequence[Copies], full: Vector) -> int:
    """How many nodes of size `full`."""
    return sum(nodes for _, nodes in _packed(classes, full))


def _packed(classes: Sequence[Copies], full: Vector) -> list[tuple[Vector, int]]:
    """Equally filled nodes, as what is left of one and their number: a thousand copies cost as much as one."""
    groups: list[tuple[Vector, int]] = []
    for one in sorted(classes, key=lambda c: (-_share(c.demand, full), c.demand)):
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
    return groups


def _filled(room: Vector, demand: Vector, copies: int, nodes: int) -> list[tuple[Vector, int]]:
    return [(tuple(r - copies * d for r, d in zip(room, demand, strict=True)), nodes)] if nodes else []


def _copies(demand: Vector, room: Vector) -> int:
    """How many copies fit into `room`."""
    return min((r // d for r, d in zip(room, demand, strict=True) if d), default=0)


def _share(demand: Vector, full: Vector) -> float:
    """The largest part of a node that one copy takes of any resource."""
    return max(d / f for d, f in zip(demand, full, strict=True) if d)
