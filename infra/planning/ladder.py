"""A pool's capacity ladder: its rungs, and the order in which cluster-autoscaler tries their node groups. Pure.

A rung is one purchase of the stack file's `purchase`, of the pool's own accelerator first, then of each `fallback`. A
fallback is more rungs of the same pool and no second application at zero behind the same name: there the gateway or Ray
would have to notice that the first has no nodes, and requests would wait for both. Here Ray asks for a worker and the
autoscaler finds the node, as on any ladder. Its types share a node group, because EC2 tries them itself: on
demand in their order (`prioritized`), of spot the most available at a low price (`price-capacity-optimized`). A group
per type would only be slower, and EKS allows 30 groups a cluster.
https://docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html

A rung is given up for a while when EC2 refuses it or its node does not come (kubernetes/autoscaler 1.35.0:
cloudprovider/aws/auto_scaling_groups.go `isNodeGroupAvailable`; `--max-node-provision-time`). Then the pods that still
wait get the next one. After 5 to 30 minutes the first is tried again, by pods that wait then
(`--initial-node-group-backoff-duration`, `--max-node-group-backoff-duration`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.names import ACCELERATOR_LABEL, PURCHASE_LABEL
from modelfleet.infra.planning.candidates import PoolChoice, usd_per_hour
from modelfleet.infra.planning.plan import PoolPlan, Rung
from modelfleet.infra.stack import LoadedStack
from modelfleet.infra.stack.schema import RESERVED, Pool, Purchase
from modelfleet.serving.config.errors import Finding, Severity

#: Ends a rung's name after the pool's. A pool's name has no `_`, so no two groups share a name. With a zone, at most 9
#: characters: EKS allows 63, 26 are Terraform's suffix, 28 the pool's. On demand has none. ODCR is what AWS's documents
#: call an On-Demand Capacity Reservation.
SUFFIXES: Final[Mapping[Purchase, str]] = {
    "reservation": "_odcr",
    "capacity-block": "_block",
    "spot": "_spot",
    "on-demand": "",
}
#: Managed node groups that a new account may have in a cluster, and the most that AWS gives on request.
#: https://docs.aws.amazon.com/general/latest/gr/eks.html#limits_eks and aws/containers-roadmap#2272
USUAL_NODE_GROUPS: Final = 30
MOST_NODE_GROUPS: Final = 100
#: How long a node may take from its order until it is Ready with its GPUs: the autoscaler's own default.
NODE_START_S: Final = 900
#: The autoscaler's priority of a pool's first rung, one less for each further one, and of the stack's own groups.
FIRST_PRIORITY, OTHERS_PRIORITY = 100, 1
#: The longest name of a rung: EKS allows a node group 63 characters, of which zone (`-a-`) and Terraform take 29.
LONGEST_GROUP: Final = 63 - 3 - 26


def group_name(pool: str, purchase: Purchase, other: str | None = None) -> str:
    """What the names of a rung's node groups begin with; `other` is the accelerator where it is not the pool's own.

    It does not tell the order, so a new order replaces none.
    """
    return f"{pool}{f'_{other.lower()}' if other else ''}{SUFFIXES[purchase]}"


def rungs(stack: LoadedStack, choice: PoolChoice, labels: Mapping[str, str], catalog: Catalog) -> tuple[Rung, ...]:
    """The pool's rungs, in the stack file's order."""
    own = choice.candidate.instance_types
    first = [_rung(stack, choice, labels, catalog, purchase, own) for purchase in choice.pool.purchases]
    others = [
        _rung(stack, choice, labels, catalog, purchase, one.instance_types, one.accelerator)
        for one in choice.candidate.fallbacks
        for purchase in one.purchases
    ]
    return (*first, *others)


def _rung(
    stack: LoadedStack,
    choice: PoolChoice,
    labels: Mapping[str, str],
    catalog: Catalog,
    purchase: Purchase,
    types: tuple[str, ...],
    other: str | None = None,
) -> Rung:
    pool = choice.pool
    # A reservation is of one type: the preferred one.
    own = types[:1] if purchase in RESERVED else types
    card = {ACCELERATOR_LABEL: other.lower()} if other else {}
    alone = len(pool.purchases) == 1 and not choice.candidate.fallbacks
    return Rung(
        group=group_name(pool.name, purchase, other),
        purchase=purchase,
        instance_types=own,
        zones=_zones(pool, purchase),
        capacity_reservation_id=pool.capacity_reservation_id if purchase in RESERVED else None,
        # With several rungs Ray's worker group alone holds minNodes: its pods ask for the nodes, and any rung may give
        # them. A group's own minimum would insist on that rung, and buy there again once EC2 has machines.
        floor_nodes=pool.min_nodes if alone else 0,
        labels={**labels, **card, PURCHASE_LABEL: purchase},
        usd_per_node_hour=None if purchase == "capacity-block" else usd_per_hour(catalog, own, stack.region),
        accelerator=other or pool.accelerator,
        vcpus_per_node=max((catalog.instance_types[name].vcpus for name in own), default=0),
    )


def ladder_findings(stack: LoadedStack) -> list[Finding]:
    """Names that are too long for a ladder's groups, and ladders where the stack makes no nodes to try."""
    if stack.config.target.makes_cluster:
        return [finding for index, pool in enumerate(stack.config.pools) for finding in _made_here(stack, index, pool)]
    return [*_not_made_here(stack), *_no_return(stack)]


def _made_here(stack: LoadedStack, index: int, pool: Pool) -> list[Finding]:
    found = []
    others = [(one, purchase) for one in pool.fallback for purchase in one.purchases]
    longest = max((len(group_name("", purchase, one.accelerator)) for one, purchase in others), default=0)
    if len(pool.name) + longest > LONGEST_GROUP:
        message = (
            f"found {len(pool.name)} characters; with the accelerator and purchase of its fallback, which the names of "
            f"node groups end with, at most {LONGEST_GROUP - longest} are left: append a pool with a shorter name"
        )
        found.append(stack.finding(("pools", index, "name"), message))
    if pool.return_after_minutes is not None and len(pool.purchases) + len(others) == 1:
        message = "is for a pool with several purchases or a fallback: there is no earlier one to return to; remove it"
        found.append(stack.finding(("pools", index, "returnAfterMinutes"), message))
    return found


def _no_return(stack: LoadedStack) -> list[Finding]:
    message = f"moves workers to nodes that the stack makes, and target {stack.config.target} makes none; remove it"
    return [
        stack.finding(("pools", index, "returnAfterMinutes"), message)
        for index, pool in enumerate(stack.config.pools)
        if pool.return_after_minutes is not None
    ]


def _not_made_here(stack: LoadedStack) -> list[Finding]:
    fallbacks = [
        stack.finding(("pools", index, "fallback"), _left_to_others(stack, pool), Severity.WARNING)
        for index, pool in enumerate(stack.config.pools)
        if pool.fallback
    ]
    return fallbacks + [
        stack.finding(
            ("pools", index, "purchase"),
            f"found {', '.join(pool.purchases)}, but target {stack.config.target} makes no nodes; whoever makes those "
            f"of {pool.name} has to try one after another",
            Severity.WARNING,
        )
        for index, pool in enumerate(stack.config.pools)
        if len(pool.purchases) > 1
    ]


def node_group_findings(stack: LoadedStack, pools: Sequence[PoolPlan]) -> list[Finding]:
    """Warns of more node groups than a new account may have: a group for each purchase and zone of `pools`.

    Every type counts as offered in every zone, which only the preflight knows.
    """
    if not stack.config.target.makes_cluster:
        return []
    network = stack.config.network
    zones = len(network.private_subnet_ids) if network.vpc_id else network.zones
    rungs = [rung for pool in pools for rung in pool.rungs]
    count = zones + sum(1 if rung.single_zone else len(rung.zones or ()) or zones for rung in rungs)
    if count <= USUAL_NODE_GROUPS:
        return []
    message = (
        f"may make {count} managed node groups with the system pool's, one per purchase and zone; a new account has "
        f"{USUAL_NODE_GROUPS} a cluster; {fewer_node_groups(count, stack.region)}"
    )
    return [stack.finding(("pools",), message, Severity.WARNING)]


def fewer_node_groups(count: int, region: str | None) -> str:
    """What to do about so many node groups; AWS gives no account more than `MOST_NODE_GROUPS`."""
    less = "give pools fewer `zones` or `purchase`s, or make two stacks"
    if count > MOST_NODE_GROUPS:
        return f"no account gets more than {MOST_NODE_GROUPS}: {less}"
    return (
        f"{less}, or request more: aws service-quotas request-service-quota-increase --service-code eks --quota-code "
        f"L-6D54EA21 --desired-value {count} --region {region}"
    )


def _left_to_others(stack: LoadedStack, pool: Pool) -> str:
    if stack.config.target.on_this_machine:
        return "has no effect on this machine, whose card the pool has"
    names = ", ".join(one.accelerator for one in pool.fallback)
    return (
        f"found {names}, but target {stack.config.target} makes no nodes; whoever makes those of {pool.name} has to "
        "try one after another"
    )


def _zones(pool: Pool, purchase: Purchase) -> tuple[str, ...] | None:
    if purchase in RESERVED and pool.capacity_reservation_zone:
        return (pool.capacity_reservation_zone,)
    return tuple(pool.zones) if pool.zones else None


def priorities(pools: Sequence[PoolPlan]) -> dict[int, list[str]]:
    """cluster-autoscaler's priorities, each with patterns of the names of Auto Scaling groups; the highest is first.

    EKS calls the group of node group NAME `eks-NAME-UUID` (aws/containers-roadmap#1304). NAME is the rung's, the zone's
    letter and Terraform's suffix of 26 digits, so that pool `l4` does not match `l4-b`. A group without a priority is
    never used while one with a priority is possible, so all others have the last one.
    """
    found: dict[int, list[str]] = {}
    for pool in pools:
        for position, rung in enumerate(pool.rungs):
            found.setdefault(FIRST_PRIORITY - position, []).append(rf"^eks-{rung.group}-[a-z]-[0-9a-f]{{26}}-")
    return {**found, OTHERS_PRIORITY: [".*"]}
