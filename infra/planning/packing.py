"""Packing replicas onto equal nodes: how many nodes at least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Ray counts resources in steps of 1/10000.
STEP = 10_000

Amounts = Mapping[str, float]


def steps(amounts: Amounts) -> dict[str, int]:
    """Resource amounts in Ray's smallest steps, so that sums are exact."""
    return {name: round(amount * STEP) for name, amount in amounts.items() if amount}


def fits(demand: Mapping[str, int], room: Mapping[str, int]) -> bool:
    """Whether `demand` fits into what is left."""
    return all(room.get(name, 0) >= amount for name, amount in demand.items())


def copies_per_node(demand: Amounts, node: Amounts) -> int:
    """How many times `demand` fits on an empty node."""
    room = steps(node)
    return min((room.get(name, 0) // amount for name, amount in steps(demand).items()), default=0)


def nodes_needed(items: Sequence[tuple[Amounts, int]], node: Amounts) -> int | None:
    """Nodes that carry `count` copies of each demand; None when one of them fits no node."""
    full = steps(node)
    wanted = [(steps(demand), count) for demand, count in items if count]
    if any(not fits(demand, full) for demand, _ in wanted):
        return None
    wanted.sort(key=lambda item: -max(a / full[name] for name, a in item[0].items()))
    rooms: list[dict[str, int]] = []
    for demand, count in wanted:
        for _ in range(count):
            room = next((r for r in rooms if fits(demand, r)), None)
            if room is None:
                rooms.append(room := dict(full))
            for name, amount in demand.items():
                room[name] -= amount
    return len(rooms)
