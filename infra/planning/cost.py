"""What a stack costs: USD per hour at the fewest and at the most nodes."""

from __future__ import annotations

from collections.abc import Sequence

from infra.planning.packing import steps
from infra.planning.plan import CostRange
from infra.planning.pools import PoolChoice

NOTHING = CostRange(0.0, 0.0)


def total(costs: Sequence[CostRange]) -> CostRange:
    """The sum; None as soon as one is not known."""
    lows, highs = [c.min_usd_per_hour for c in costs], [c.max_usd_per_hour for c in costs]
    return CostRange(
        None if None in lows else sum(low for low in lows if low is not None),
        None if None in highs else sum(high for high in highs if high is not None),
    )


def pool_cost(target: str, choice: PoolChoice) -> CostRange:
    """A pool's cost; this machine costs nothing per hour, an unknown price stays unknown."""
    if target == "local":
        return NOTHING
    if choice.usd_per_hour is None:
        return CostRange(None, None)
    least = max(choice.min_nodes, choice.pool.min_nodes)
    most = max(least, min(choice.max_nodes, choice.pool.max_nodes))
    return CostRange(least * choice.usd_per_hour, most * choice.usd_per_hour)


def model_costs(choice: PoolChoice, cost: CostRange) -> dict[str, CostRange]:
    """A pool's cost shared among its models by the part of a node that their replicas take."""
    node = steps(choice.offer)
    parts = {
        d.model.config.model_id: max(
            (amount / node[name] for name, amount in steps(d.total).items() if node.get(name)), default=0.0
        )
        for d in choice.demands
    }
    low = {d.model.config.model_id: parts[d.model.config.model_id] * d.min for d in choice.demands}
    high = {d.model.config.model_id: parts[d.model.config.model_id] * d.max for d in choice.demands}
    return {
        name: CostRange(_share(cost.min_usd_per_hour, low, name), _share(cost.max_usd_per_hour, high, name))
        for name in parts
    }


def _share(usd: float | None, weights: dict[str, float], name: str) -> float | None:
    whole = sum(weights.values())
    if usd is None:
        return None
    return usd * weights[name] / whole if whole else 0.0
