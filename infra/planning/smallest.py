"""The cheapest GPUs that hold a model, for a list of many models. Pure.

Only whether vLLM would start with one request of the length is asked; how fast it answers, and other checkpoints of the
model, are `offers`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelfleet.infra.catalog import Accelerator, Catalog
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import fits, weight_bytes
from modelfleet.infra.planning.node_prices import nodes_price
from modelfleet.infra.planning.nodes import MIB
from modelfleet.infra.planning.offers import WORKERS, refused, setting_for

#: The lengths that a list shows: a chat with a few documents, and a long document or an agent's work.
LENGTHS = (8192, 131072)
#: GPUs hold no less than this share of their part of the weights, whatever a card's kernels pad. It alone rules most
#: cards out, and asking for the rest is slow.
LEAST_SHARE = 0.8


@dataclass(frozen=True)
class Smallest:
    """GPUs for one replica at a length in tokens, and USD per hour of the node that has them, whole.

    The length is the model's own where it takes no more. `accelerator` is empty where no node holds it.
    """

    length: int
    accelerator: str = ""
    gpus: int = 0
    usd_per_hour: float | None = None


@dataclass(frozen=True)
class Choice:
    """So many GPUs of one node, and USD per hour of the cheapest node that has them."""

    card: Accelerator
    workers: int
    usd_per_hour: float


def choices(catalog: Catalog) -> list[Choice]:
    """Each accelerator with each number of GPUs of one node, the cheapest node first."""
    found = [
        Choice(card, workers, price.usd_per_hour)
        for card in catalog.accelerators.values()
        for workers in WORKERS
        if (price := nodes_price(card.name, workers, 1, catalog)) is not None
    ]
    return sorted(found, key=lambda one: (one.usd_per_hour, one.workers, one.card.name))


def smallest(
    facts: ModelFacts, catalog: Catalog, among: Sequence[Choice], lengths: Sequence[int] = LENGTHS
) -> list[Smallest]:
    """The cheapest of the choices at each length, or at the model's own where that is less."""
    setting = setting_for(facts, 1, among[0].card, 1)
    least = LEAST_SHARE * weight_bytes(facts, setting)
    able = [one for one in among if least / one.workers < one.card.usable_mib * MIB * setting.utilization]
    return [_first(facts, min(length, facts.checkpoint.longest), able, catalog) for length in lengths]


def _first(facts: ModelFacts, length: int, among: Sequence[Choice], catalog: Catalog) -> Smallest:
    for one in among:
        setting = setting_for(facts, length, one.card, one.workers)
        if not refused(facts, setting, catalog) and fits(facts, setting):
            return Smallest(length, one.card.name, one.workers, one.usd_per_hour)
    return Smallest(length)
