"""What a second Ray cluster next to the live one takes: GPUs, nodes and minutes, as the preview shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modelfleet.infra.planning.plan import GpuMemory, Plan

#: From the request for a node to a pod on it: EC2's start and the join, https://github.com/aws/containers-roadmap.
NODE_MINUTES: Final = 3.0
#: Pulling vLLM's image, some 10 GB compressed (awslabs/data-on-eks#559: minutes).
IMAGE_MINUTES: Final = 5.0
#: Weights from S3 into GPU memory: 140 GB in 359 s (Ray's documentation, model loading).
LOAD_MIB_PER_MINUTE: Final = 140e9 / 359 * 60 / 2**20
#: vLLM's work before and after loading: imports, compilation, graph capture.
ENGINE_MINUTES: Final = 3.0


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
    """What a second copy of the plan's cluster takes. The minutes are an estimate until the largest model is loaded."""
    starts = {model.model_id: start_minutes(weights_mib(model.memory, model.workers)) for model in plan.models}
    slowest = max(starts, key=lambda name: starts[name], default=None)
    minutes = NODE_MINUTES + IMAGE_MINUTES + (starts[slowest] if slowest else ENGINE_MINUTES)
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


def start_minutes(weights: float) -> float:
    """Minutes from a replica's start to its first answer on a node that is there; `weights` in MiB."""
    return ENGINE_MINUTES + weights / LOAD_MIB_PER_MINUTE


def weights_mib(memory: GpuMemory | None, workers: int, stored_bytes: int | None = None) -> float:
    """All weights of one replica; without GPUs those of its files; 0 where nothing is known about the model."""
    return memory.weights_mib * workers if memory else (stored_bytes or 0) / 2**20
