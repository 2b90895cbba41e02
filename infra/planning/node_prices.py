"""What the GPUs of a replica cost: the cheapest nodes that hold it, whole, or its share of one. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from modelfleet.infra.catalog import REFERENCE_REGION, Catalog


@dataclass(frozen=True)
class GpuPrice:
    """USD per hour on demand, and the region whose price it is: the reference region where the own one is not known."""

    usd_per_hour: float
    region: str


def replica_price(accelerator: str, workers: int, catalog: Catalog, region: str = REFERENCE_REGION) -> GpuPrice | None:
    """The cheapest share of a node with `workers` GPUs; None when no instance type has that many."""
    return _cheapest(
        GpuPrice(price.usd_per_hour / (gpus // workers), price.region)
        for gpus, price in _nodes(accelerator, workers, catalog, region)
    )


def nodes_price(
    accelerator: str, workers: int, replicas: int, catalog: Catalog, region: str = REFERENCE_REGION
) -> GpuPrice | None:
    """The cheapest whole nodes that hold so many replicas, at least one; None when no instance type has the GPUs."""
    return _cheapest(
        GpuPrice(math.ceil(max(1, replicas) / (gpus // workers)) * price.usd_per_hour, price.region)
        for gpus, price in _nodes(accelerator, workers, catalog, region)
    )


def _nodes(accelerator: str, workers: int, catalog: Catalog, region: str) -> Iterator[tuple[int, GpuPrice]]:
    """GPUs and price of each instance type with enough of them."""
    for one in catalog.instance_types_with(accelerator):
        for place in (region, REFERENCE_REGION):
            usd = catalog.usd_per_hour(one.name, region=place)
            if one.gpus >= workers and usd is not None:
                yield one.gpus, GpuPrice(usd, place)
                break


def _cheapest(found: Iterator[GpuPrice]) -> GpuPrice | None:
    return min(found, key=lambda price: price.usd_per_hour, default=None)
