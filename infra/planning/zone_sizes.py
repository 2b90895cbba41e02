"""Sizes of a pool's node groups, one group per zone.

A group over several zones is unsafe: Auto Scaling ends loaded nodes to balance the zones (AZRebalance), and EKS does
not heed disruption budgets then. https://docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GroupSize:
    """EKS's three numbers for one group, in nodes.

    `takes_over`: the group is live and its size is outside the limits, so `desired` must be set with them. EKS refuses
    limits that exclude the desired size (terraform-aws-eks#3521). Otherwise the size is the autoscaler's.
    """

    least: int
    desired: int
    most: int
    takes_over: bool = False


def zone_sizes(
    zones: Sequence[str], *, least: int, most: int, live: Mapping[str, int] | None = None
) -> dict[str, GroupSize]:
    """The size of each zone's group, where the pool has at least `least` and at most `most` nodes.

    The minimum is divided, the first zones get more. Each group may hold the whole pool, because one zone may be the
    only one that has the machines; how many run in all zones together is decided by Ray's `maxReplicas` for a pool, and
    by the pods for the system. `live` is the size of the groups that exist; a new one starts at its minimum.
    """
    share, more = divmod(least, len(zones)) if zones else (0, 0)
    sizes = {}
    for index, zone in enumerate(zones):
        low = share + (index < more)
        size = (live or {}).get(zone)
        desired = low if size is None else min(max(size, low), most)
        sizes[zone] = GroupSize(low, desired, most, takes_over=size is not None and desired != size)
    return sizes
