"""What a stack costs in USD per hour, at its fewest and at its most nodes, and whether that is within its budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.planning.candidates import PoolChoice, usd_per_hour
from modelfleet.infra.planning.demand import Demand
from modelfleet.infra.planning.front_door import LOAD_BALANCER, PUBLIC_ADDRESS, public_addresses
from modelfleet.infra.planning.network import nat_gateways
from modelfleet.infra.planning.packing import copies
from modelfleet.infra.planning.plan import (
    BucketPlan,
    CostRange,
    FixedCost,
    HeadStoragePlan,
    OwnMonitoringPlan,
    PoolPlan,
    ReturnPlan,
    SystemPlan,
)
from modelfleet.infra.stack import LoadedStack, Target
from modelfleet.serving.config.errors import Finding, Severity

KMS_KEY = "kms-key"
VOLUME = "ebs-gp3-gib"
#: Of Amazon Managed Service for Prometheus: its scraper, and a series with a sample every 30 s (AMP_INTERVAL_S).
SCRAPER, SERIES = "amp-scraper", "amp-series-30s"
#: Series of a Ray node with one model that the scraper keeps: as many lines has the scrape of a live stack that
#: tests/unit/observability/scrapes/ray.txt is, of 2026-11.
SERIES_OF_NODE = 58
NOTHING = CostRange(0.0, 0.0)


def total(costs: Iterable[CostRange]) -> CostRange:
    """The sum; None if any part is unknown."""
    ranges = list(costs)
    return CostRange(_sum(c.min_usd_per_hour for c in ranges), _sum(c.max_usd_per_hour for c in ranges))


def _sum(parts: Iterable[float | None]) -> float | None:
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def pool_cost(target: Target, choice: PoolChoice, returns: ReturnPlan | None = None) -> CostRange:
    """A pool's cost: nothing on this machine, None for an unknown price.

    At the most with the node more that a worker takes which `returns`: nobody is asked before it moves.
    """
    if not target.priced:
        return NOTHING
    price = choice.candidate.dearest_usd_per_hour
    more = returns.usd_per_hour if returns else 0.0
    if price is None or more is None:
        return CostRange(None, None)
    most = max(choice.least, min(choice.need_at_max, choice.pool.max_nodes))
    return CostRange(choice.least * price, most * price + (more if most else 0.0))


def model_costs(choice: PoolChoice, cost: CostRange) -> list[tuple[Demand, CostRange]]:
    """A pool's cost, divided among its models by the share of a node that their replicas take; the parts add up."""
    room = choice.candidate.room
    parts = [
        max((amount / room[name] for name, amount in demand.whole.items() if room.get(name)), default=0)
        for demand in choice.demands
    ]
    high = [part * demand.max for part, demand in zip(parts, choice.demands, strict=True)]
    low = [part * demand.min for part, demand in zip(parts, choice.demands, strict=True)]
    shares = zip(
        _shared(cost.min_usd_per_hour, low if any(low) else high), _shared(cost.max_usd_per_hour, high), strict=True
    )
    return [(demand, CostRange(least, most)) for demand, (least, most) in zip(choice.demands, shares, strict=True)]


def replica_cost(choice: PoolChoice, demand: Demand, price: float | None) -> float | None:
    """USD per hour of one replica on nodes of that price, which carry as many as fit; None for an unknown price."""
    room = choice.candidate.room
    if price is None:
        return None
    if together := copies(demand.whole, room):
        return price / together
    return price * max(math.ceil(amount / room[name]) for name, amount in demand.whole.items() if room.get(name))


def _shared(usd: float | None, weights: Sequence[float]) -> list[float | None]:
    """`usd` in proportion to the weights."""
    whole = sum(weights)
    return [None if usd is None else usd * weight / whole if whole else 0.0 for weight in weights]


def fixed_costs(
    stack: LoadedStack,
    system: SystemPlan | None,
    head_storage: HeadStoragePlan | None,
    bucket: BucketPlan,
    own_monitoring: OwnMonitoringPlan | None,
    catalog: Catalog,
) -> tuple[FixedCost, ...]:
    """Costs of an EKS stack on top of its pools: control plane, system nodes, the head's Valkey, the keys of cluster,
    bucket and manifests, NAT, load balancer, the volume for metrics, and what their addresses on the internet cost.

    Without the system node more that a rollout takes for its minutes.
    """
    if system is None:
        return ()
    region, gateways = stack.region or "", nat_gateways(stack.config.network)
    doors = int(stack.config.gateway.expose != "none")
    signs = stack.config.trust.manifest_key is not None and stack.config.trust.manifest_key.own
    machine, count = system.instance_type, max(system.min_nodes, system.needed_nodes)
    parts = [
        FixedCost("EKS control plane", 1, catalog.usd_per_hour("eks-cluster", region=region)),
        FixedCost(f"system nodes ({machine})", count, catalog.usd_per_hour(machine, region=region)),
        FixedCost("NAT gateways (without traffic)", gateways, catalog.usd_per_hour("nat-gateway", region=region)),
        FixedCost("load balancer (without traffic)", doors, catalog.usd_per_hour(LOAD_BALANCER, region=region)),
        FixedCost(
            "public IPv4 addresses",
            gateways + public_addresses(stack),
            catalog.usd_per_hour(PUBLIC_ADDRESS, region=region),
        ),
        FixedCost("KMS keys", 1 + bucket.create + signs, catalog.usd_per_hour(KMS_KEY, region=region)),
    ]
    if own_monitoring is not None and own_monitoring.makes_class:
        gib = own_monitoring.volume_gib
        parts.append(FixedCost("GiB of volume for metrics", gib, catalog.usd_per_hour(VOLUME, region=region)))
    if head_storage is not None:
        name, nodes = head_storage.node_type, head_storage.nodes
        parts.insert(
            2, FixedCost(f"Valkey for the Ray head ({name})", nodes, catalog.usd_per_hour(name, region=region))
        )
    return tuple(part for part in parts if part.count)


def amp_costs(stack: LoadedStack, nodes: int, catalog: Catalog) -> tuple[FixedCost, ...]:
    """Costs of Amazon Managed Service for Prometheus with as many GPU nodes; without storage, queries and SNS.

    What is kept costs 0.03 USD per GB and month above 10 GB, at one or two bytes a sample: 58 series of a node are
    about 10 MB a month. The free 40 million samples are not taken off: an account has them once.
    """
    if stack.config.observability.metrics != "amp" or not stack.config.target.makes_cluster:
        return ()
    region = stack.region or ""
    return (
        FixedCost("scraper of metrics", 1, catalog.usd_per_hour(SCRAPER, region=region)),
        FixedCost("series of metrics", (1 + nodes) * SERIES_OF_NODE, catalog.usd_per_hour(SERIES, region=region)),
    )


def fixed_cost_range(parts: Sequence[FixedCost]) -> CostRange:
    """The sum of the fixed costs, which is the same at the minimum and at the maximum."""
    usd = _sum(part.usd_per_hour for part in parts)
    return CostRange(usd, usd)


def budget_findings(
    stack: LoadedStack, cost: CostRange, pools: Sequence[PoolPlan], fixed: Sequence[FixedCost], catalog: Catalog
) -> list[Finding]:
    """An error when the plan's maximum exceeds `budget.maxUsdPerHour`; a warning when a price is missing to tell."""
    limit, at = stack.config.budget.max_usd_per_hour, ("budget", "maxUsdPerHour")
    if limit is None or not stack.config.target.priced:
        return []
    if cost.max_usd_per_hour is None:
        message = f"cannot be checked: {_unknown_prices(stack, pools, fixed, catalog)}"
        return [stack.finding(at, message, Severity.WARNING)]
    if cost.max_usd_per_hour <= limit:
        return []
    dearest = max(pools, key=lambda pool: pool.cost.max_usd_per_hour or 0)
    message = (
        f"found {limit:g}; at its maximum the stack costs {cost.max_usd_per_hour:.2f} USD/h, most of it pool "
        f"{dearest.name} ({dearest.cost.max_usd_per_hour or 0:.2f}); "
        "lower its maxNodes or max_replicas, or raise the budget"
    )
    return [stack.finding(at, message)]


def _unknown_prices(stack: LoadedStack, pools: Sequence[PoolPlan], fixed: Sequence[FixedCost], catalog: Catalog) -> str:
    """Which parts of a stack have no price, why, and the fix."""
    reasons, unpriced = [], []
    for pool in pools:
        types = [name for name in pool.all_instance_types if usd_per_hour(catalog, [name], stack.region) is None]
        if all(rung.purchase == "capacity-block" for rung in pool.rungs):
            reasons.append(f"pool {pool.name} has a Capacity Block, which has no hourly price")
        elif not pool.instance_types:
            reasons.append(f"pool {pool.name} gives `node`, not instanceTypes, so it has no price")
        elif types:
            unpriced.append(f"pool {pool.name} ({', '.join(types)})")
    unpriced += [part.name for part in fixed if part.usd_each is None]
    fix = "remove the budget"
    if unpriced and stack.region is None:
        reasons.append(f"no region is set, so there is no price for {', '.join(unpriced)}")
        fix = f"run `pulumi config set aws:region REGION`, or {fix}"
    elif unpriced:
        reasons.append(f"no price in {stack.region} is known for {', '.join(unpriced)}")
        fix = f"run `modelfleet plan --stack {stack.name}` with AWS credentials to read it from AWS, or {fix}"
    return f"{'; '.join(reasons)}; {fix}"


def prices_note(stack: LoadedStack, catalog: Catalog, types: Iterable[str]) -> str:
    """Where the prices come from: kind, region, date."""
    if not stack.config.target.priced:
        return "this machine costs nothing per hour"
    keys = {(stack.region or "", name) for name in types}
    known = [catalog.prices[key] for key in keys if key in catalog.prices]
    if not known:
        return f"no price is known for {stack.region or 'this cluster'}"
    origin = "; ".join(sorted({f"{price.source} of {price.date}" for price in known}))
    spot = any("spot" in pool.purchases for pool in stack.config.pools)
    ceiling = "; spot counted at its ceiling, the on-demand price" if spot else ""
    return f"EC2 on-demand, Linux, {stack.region}: {origin}{ceiling}; without storage and traffic"
