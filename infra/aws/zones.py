"""Which zones the network, the control plane and each pool use: from what the account has, never by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from modelfleet.infra.aws.facts import AccountFacts
from modelfleet.infra.planning.plan import Plan, Rung

Subnet = TypeVar("Subnet")

#: EKS demands two zones, and keeps a cluster to the exact set of zones that it was made with.
#: https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html
CONTROL_PLANE_ZONES = 2
MOST_SCRAPER_SUBNETS = 5


def network_zones(plan: Plan, facts: AccountFacts) -> tuple[str, ...]:
    """Zones of the network in the order of their CIDRs: the first ones by name, or those of the given subnets.

    They do not depend on the pools, so that a pool added later moves no subnet.
    """
    if plan.config.network.vpc_id:
        return tuple(sorted({subnet.zone for subnet in facts.subnets}))
    return tuple(sorted(facts.zones)[: plan.config.network.zones])


def control_plane_subnets(subnets: Mapping[str, Sequence[Subnet]]) -> list[Subnet]:
    """One subnet in each of the first two zones, so that a zone or a subnet added later changes nothing.

    `subnets` is by zone: in the order of the zones' names, or in the order of the stack file's subnets.
    """
    return [own[0] for own in list(subnets.values())[:CONTROL_PLANE_ZONES]]


def scraper_subnets(subnets: Mapping[str, Sequence[Subnet]]) -> list[Subnet]:
    """One subnet in each zone, of five at most: Amazon's scraper has an interface in each zone that it is given.

    https://docs.aws.amazon.com/prometheus/latest/APIReference/API_EksConfiguration.html
    """
    return [own[0] for own in list(subnets.values())[:MOST_SCRAPER_SUBNETS]]


def rung_zones(rung: Rung, zones: tuple[str, ...], facts: AccountFacts) -> tuple[str, ...]:
    """Zones of a rung's node groups: those of the network (or the rung's own) that offer its first instance type.

    A managed node group in a zone without the type fails when it scales (aws/containers-roadmap#2204).
    """
    offered = facts.offerings.get(rung.instance_types[0], frozenset())
    wanted = zones if rung.zones is None else tuple(zone for zone in zones if zone in rung.zones)
    fitting = tuple(zone for zone in wanted if zone in offered)
    return fitting[:1] if rung.single_zone else fitting
