"""What the GPUs of a replica cost: the cheapest nodes that hold it, whole, or its share of one. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from modelfleet.infra.catalog import REFERENCE_REGION, Catalog


@dataclass(frozen=True)
class NodePrice:
    """USD per hour on demand, and the region whose price it is: the reference region where the own one is not known."""

    usd_per_hour: float
    region: str


def replica_price(accelerator: str, workers: int, catalog: Catalog, region: str = REFERENCE_REGION) -> NodePrice | None:
    """The cheapest share of a node with `workers` GPUs; None when no instance type has that many."""
    return _cheapest(
        NodePrice(price.usd_per_hour / (gpus // workers), price.region)
        for gpus, price in _nodes(accelerator, workers, catalog, region)
    )


def nodes_price(
    accelerator: str, workers: int, replicas: int, catalog: Catalog, region: str = REFERENCE_REGION
) -> NodePrice | None:
    """The cheapest whole nodes that hold so many replicas, at least one; None when no instance type has the GPUs."""
    return _cheapest(
        NodePrice(math.ceil(max(1, replicas) / (gpus // workers)) * price.usd_per_hour, price.region)
        for gpus, price in _nodes(accelerator, workers, catalog, region)
    )


def _nodes(accelerator: str, workers: int, catalog: Catalog, region: str) -> Iterator[tuple[int, NodePrice]]:
    """GPUs and price of each instance type with enough of them."""
    for one in catalog.instance_types_with(accelerator):
        if one.gpus >= workers and (price := price_of(one.name, catalog, region)) is not None:
            yield one.gpus, price


def price_of(instance_type: str, catalog: Catalog, region: str) -> NodePrice | None:
    """The price in a region, else in the reference region; None where neither is known."""
    known = ((catalog.usd_per_hour(instance_type, region=place), place) for place in (region, REFERENCE_REGION))
    return next((NodePrice(usd, place) for usd, place in known if usd is not None), None)


def _cheapest(found: Iterator[NodePrice]) -> NodePrice | None:
    return min(found, key=lambda price: price.usd_per_hour, default=None)
