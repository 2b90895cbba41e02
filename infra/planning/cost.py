"""What a stack costs: USD per hour at the fewest and at the most nodes, and what is wrong about that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from infra.catalog import Catalog, NoPrice
from infra.planning.candidates import PoolChoice
from infra.planning.demand import Demand
from infra.planning.plan import CostRange, FixedCost, PoolPlan
from infra.stack import LoadedStack
from serving.config.errors import Finding, Severity

NOTHING = CostRange(0.0, 0.0)


def total(costs: Iterable[CostRange]) -> CostRange:
    """The sum; None as soon as one part is not known."""
    ranges = list(costs)
    return CostRange(_sum(c.min_usd_per_hour for c in ranges), _sum(c.max_usd_per_hour for c in ranges))


def _sum(parts: Iterable[float | None]) -> float | None:
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def pool_cost(target: str, choice: PoolChoice) -> CostRange:
    """A pool's cost; this machine costs nothing per hour, an unknown price stays unknown."""
    if target == "local":
        return NOTHING
    price = choice.candidate.usd_per_hour
    if price is None:
        return CostRange(None, None)
    least = max(choice.min_nodes, choice.pool.min_nodes)
    most = max(least, min(choice.max_nodes, choice.pool.max_nodes))
    return CostRange(least * price, most * price)


def model_costs(choice: PoolChoice, cost: CostRange) -> list[tuple[Demand, CostRange]]:
    """A pool's cost shared among its models by the part of a node that their replicas take, so that they add up."""
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


def _shared(usd: float | None, weights: Sequence[float]) -> list[float | None]:
    """`usd` in proportion to the weights."""
    whole = sum(weights)
    return [None if usd is None else usd * weight / whole if whole else 0.0 for weight in weights]


def fixed_costs(stack: LoadedStack, catalog: Catalog) -> tuple[FixedCost, ...]:
    """What an EKS stack costs beside its pools: control plane, system nodes, NAT gateways."""
    if stack.config.target != "eks":
        return ()
    cluster, network, region = stack.config.cluster, stack.config.network, stack.region or ""
    gateways = {"none": 0, "single": 1, "per-zone": network.zones}[network.nat] if network.vpc_id is None else 0
    parts = [
        FixedCost("EKS control plane", 1, _service(catalog, "eks-cluster", region)),
        FixedCost(f"system nodes, {cluster.system_instance_type}", cluster.system_nodes, _system(stack, catalog)),
        FixedCost("NAT gateways, without their traffic", gateways, _service(catalog, "nat-gateway", region)),
    ]
    return tuple(part for part in parts if part.count)


def _service(catalog: Catalog, name: str, region: str) -> float | None:
    try:
        return catalog.service_price(name, region=region).usd_per_hour
    except NoPrice:
        return None


def _system(stack: LoadedStack, catalog: Catalog) -> float | None:
    try:
        return catalog.usd_per_hour(stack.config.cluster.system_instance_type, region=stack.region or "")
    except NoPrice:
        return None


def fixed_cost_range(parts: Sequence[FixedCost]) -> CostRange:
    """They cost the same at the minimum and at the maximum."""
    usd = _sum(part.usd_per_hour for part in parts)
    return CostRange(usd, usd)


def budget_findings(stack: LoadedStack, cost: CostRange, pools: Sequence[PoolPlan]) -> list[Finding]:
    """`budget.maxUsdPerHour` against the plan's maximum."""
    limit, at = stack.config.budget.max_usd_per_hour, ("budget", "maxUsdPerHour")
    if limit is None or stack.config.target == "local":
        return []
    if cost.max_usd_per_hour is None:
        message = f"cannot be checked: a price in {stack.region or 'this cluster'} is not known"
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


def prices_note(stack: LoadedStack, catalog: Catalog, types: Iterable[str]) -> str:
    """Where the prices come from: kind, region, date."""
    if stack.config.target == "local":
        return "this machine costs nothing per hour"
    keys = {(stack.region or "", name) for name in types}
    known = [catalog.prices[key] for key in keys if key in catalog.prices]
    if not known:
        return f"no price is known for {stack.region or 'this cluster'}"
    origin = "; ".join(sorted({f"{price.source} of {price.date}" for price in known}))
    spot = any(pool.purchase == "spot" for pool in stack.config.pools)
    ceiling = "; spot counted at its ceiling, the on-demand price" if spot else ""
    return f"EC2 on-demand, Linux, {stack.region}: {origin}{ceiling}; without storage and traffic"
