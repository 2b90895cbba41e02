"""Which zones the network and each pool use: from what the account has, never by chance."""

from __future__ import annotations

from modelfleet.infra.aws.facts import AccountFacts
from modelfleet.infra.planning.plan import Plan, PoolPlan


def network_zones(plan: Plan, facts: AccountFacts) -> tuple[str, ...]:
    """Zones of the network in the order of their CIDRs: the first ones by name, or those of the given subnets.

    They do not depend on the pools, so that a pool added later moves no subnet.
    """
    if plan.config.network.vpc_id:
        return tuple(sorted({subnet.zone for subnet in facts.subnets}))
    return tuple(sorted(facts.zones)[: plan.config.network.zones])


def pool_zones(pool: PoolPlan, zones: tuple[str, ...], facts: AccountFacts) -> tuple[str, ...]:
    """Zones of a pool's node group: those of the network (or the pool's own) that offer its first instance type.

    A managed node group over a zone without the type fails when it scales (aws/containers-roadmap#2204).
    """
    offered = facts.offerings.get(pool.instance_types[0], frozenset())
    wanted = zones if pool.zones is None else tuple(zone for zone in zones if zone in pool.zones)
    fitting = tuple(zone for zone in wanted if zone in offered)
    return fitting[:1] if pool.efa else fitting
