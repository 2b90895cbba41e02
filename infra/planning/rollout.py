"""What a second Ray cluster next to the live one takes: GPUs, nodes and minutes, as the preview shows them."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleet.infra.planning.plan import Plan
from modelfleet.infra.planning.start_up import unknown_seconds
from modelfleet.serving.config.accelerators import CPU


@dataclass(frozen=True)
class SecondCluster:
    """From the fewest (each model at its minimum) to the most (each pool full); `minutes` until it is ready.

    Then both clusters run for as long as a request may take (`gateway.timeoutS`). KubeRay cannot see whether streams
    are open, so the old one stays that long even when there are none.
    """

    least_gpus: int
    most_gpus: int
    least_nodes: int
    most_nodes: int
    minutes: int
    slowest: str | None
    #: For the fewest nodes, until the old cluster is gone; None where a price is unknown.
    usd: float | None


def second_cluster(plan: Plan) -> SecondCluster:
    """What a second copy of the plan's cluster takes. The minutes are an estimate until the slowest model answers."""
    starts = {
        model.model_id: model.start.seconds if model.start else unknown_seconds(plan.target, model.accelerator)
        for model in plan.models
    }
    slowest = max(starts, key=lambda name: starts[name], default=None)
    minutes = (starts[slowest] if slowest else unknown_seconds(plan.target, CPU)) / 60
    return SecondCluster(
        least_gpus=sum(pool.node.gpus * pool.min_nodes for pool in plan.pools),
        most_gpus=sum(pool.node.gpus * pool.max_nodes for pool in plan.pools),
        least_nodes=sum(pool.min_nodes for pool in plan.pools),
        most_nodes=sum(pool.max_nodes for pool in plan.pools),
        minutes=round(minutes),
        slowest=slowest,
        usd=_usd(plan, minutes / 60 + plan.gateway.settings.timeout_s / 3600),
    )


def _usd(plan: Plan, hours: float) -> float | None:
    """USD for as many nodes as the models' fewest replicas need."""
    prices = [(pool.min_nodes, pool.usd_per_node_hour) for pool in plan.pools if pool.min_nodes]
    if any(price is None for _, price in prices):
        return None
    return sum(count * (price or 0.0) for count, price in prices) * hours
