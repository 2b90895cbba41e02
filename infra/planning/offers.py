"""On which accelerators a model could run, with what room, speed and price: what `modelfleet add` chooses from. Pure.

An offer is one checkpoint on so many GPUs of one accelerator. Those that vLLM refuses, that do not fit, or that hold
fewer requests at once than are wanted are no offers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from modelfleet.infra.catalog import REFERENCE_REGION, Accelerator, Catalog
from modelfleet.infra.catalog.recipes import Recipe
from modelfleet.infra.catalog.speed import measurements
from modelfleet.infra.planning.facts import ModelFacts, facts_from_config
from modelfleet.infra.planning.fit import DEFAULT_UTILIZATION, Setting, gpu_memory
from modelfleet.infra.planning.fit_findings import NO_FLOAT16
from modelfleet.infra.planning.memory.parts import format_of
from modelfleet.infra.planning.memory.refusals import refusals, undivided
from modelfleet.infra.planning.node_prices import NodePrice, nodes_price, replica_price
from modelfleet.infra.planning.plan import GpuMemory
from modelfleet.infra.planning.recipe_findings import Case, gains
from modelfleet.infra.planning.replica_speed import replica_speed
from modelfleet.infra.planning.speed import Load, SpeedEstimate
from modelfleet.infra.planning.speed.inputs import ASSUMED_INPUT, ASSUMED_OUTPUT

Goal = Literal["cheapest", "fastest"]
#: Tensor-parallel GPUs of one node that are tried.
WORKERS = (1, 2, 4, 8)
#: Of two offers at nearly one price, the one that needs fewer GPUs is simpler: this share decides nothing.
SAME_PRICE = 0.02
#: Words in the catalog's kinds of models that write no text.
POOLED = ("embed", "rerank", "classif", "reward")
#: Weights of fewer bits answer a little differently: chosen only where no other checkpoint runs.
FEWEST_BITS = 8


@dataclass(frozen=True)
class Published:
    """A checkpoint of the model: its Hub id, what is known about it, and why it may be better here."""

    hf_id: str
    facts: ModelFacts
    why: str = ""
    #: Accelerators that gain by it; None: all.
    cards: frozenset[str] | None = None
    #: False for embedders, rerankers and classifiers, which have no speed per token.
    writes: bool = True

    @property
    def bits(self) -> int:
        """Bits of most of its weights."""
        form = format_of(self.facts.checkpoint)
        return 4 if form.experts else form.bits


@dataclass(frozen=True)
class Wish:
    """What is asked: tokens of the longest request, requests at once on one replica, replicas, what matters, where."""

    length: int
    concurrency: int = 8
    min_replicas: int = 1
    goal: Goal = "cheapest"
    region: str = REFERENCE_REGION

    @property
    def load(self) -> Load:
        """The assumed load of one replica, within the length."""
        prompt = min(ASSUMED_INPUT, self.length * ASSUMED_INPUT // (ASSUMED_INPUT + ASSUMED_OUTPUT))
        return Load(prompt, min(ASSUMED_OUTPUT, self.length - prompt), self.concurrency)


@dataclass(frozen=True)
class Offer:
    """One way to run the model. Prices are on demand in `price_region`: the wish's, or the reference region."""

    checkpoint: Published
    accelerator: Accelerator
    workers: int
    length: int
    memory: GpuMemory
    speed: SpeedEstimate | None
    #: USD per hour of the nodes that the fewest replicas take, whole.
    usd_per_hour: float
    #: USD per hour of one replica's share of a node.
    usd_per_replica_hour: float
    price_region: str
    #: `num_cpus_per_worker`, and the node that was counted with: of an offer without a GPU.
    cpus: int = 1
    instance_type: str = ""


def checkpoints_of(hf_id: str, facts: ModelFacts, recipe: Recipe | None, catalog: Catalog) -> list[Published]:
    """The named checkpoint, and those that its recipe has beside it and whose shape the catalog knows."""
    named = catalog.model(hf_id)
    writes = named is None or not any(word in named.kind for word in POOLED)
    found = [Published(hf_id, facts, writes=writes)]
    for group in recipe.checkpoints if recipe is not None else ():
        smaller = group.of(hf_id)
        row = catalog.model(smaller) if smaller is not None else None
        if recipe is None or row is None or row.config is None:
            continue
        case = Case(hf_id, None, 1, None, {}, {}, own_prompt_format=False, names_weights=False)
        cards = frozenset(
            card.name for card in catalog.accelerators.values() if gains(recipe, group, replace(case, gpu=card))
        )
        known = facts_from_config(row.config, f"catalog: {row.shape_source}", catalog, name=row.hf_id)
        found.append(Published(row.hf_id, known, f"{group.format}: {group.why}", cards, writes))
    return found


def offers(
    checkpoints: Sequence[Published], wish: Wish, catalog: Catalog, accelerators: Iterable[str] | None = None
) -> list[Offer]:
    """All offers, the best first: the fewest GPUs of each accelerator that carry each checkpoint.

    Checkpoints with fewer than 8 bits come last, unless the first of `checkpoints`, the one that was named, is one.
    """
    names = list(catalog.accelerators) if accelerators is None else list(accelerators)
    found = [
        offer
        for checkpoint in checkpoints
        for name in names
        if checkpoint.cards is None or name in checkpoint.cards
        for offer in _smallest(checkpoint, wish, catalog.accelerators[name], catalog)
    ]
    named = checkpoints[0].hf_id if checkpoints else ""
    return sorted(found, key=lambda offer: _rank(offer, wish, named))


def _rank(offer: Offer, wish: Wish, named: str) -> tuple[object, ...]:
    coarse = offer.checkpoint.bits < FEWEST_BITS and offer.checkpoint.hf_id != named
    other = offer.checkpoint.hf_id != named
    price = round(math.log(offer.usd_per_hour) / SAME_PRICE)
    each = (offer.speed.usd_per_million_tokens if offer.speed else None) or offer.usd_per_replica_hour
    if wish.goal == "fastest" and offer.speed is not None and offer.speed.tpot_ms is not None:
        return coarse, offer.speed.tpot_ms.expected, price, other
    return coarse, price, offer.workers, each, other, offer.accelerator.name


def _smallest(checkpoint: Published, wish: Wish, card: Accelerator, catalog: Catalog) -> Iterator[Offer]:
    """The fewest GPUs of a card that carry the wish."""
    for workers in WORKERS:
        setting = setting_for(checkpoint.facts, wish.length, card, workers)
        if refused(checkpoint.facts, setting, catalog):
            continue
        whole = nodes_price(card.name, workers, wish.min_replicas, catalog, wish.region)
        share = replica_price(card.name, workers, catalog, wish.region)
        offer = None if whole is None or share is None else _offer(checkpoint, wish, setting, whole, share)
        if offer is not None:
            yield offer
            return


def setting_for(facts: ModelFacts, length: int, card: Accelerator, workers: int) -> Setting:
    """As `add` writes it: everything else is vLLM's default for the card."""
    return Setting(
        accelerator=card,
        workers=workers,
        length=length,
        utilization=DEFAULT_UTILIZATION,
        batched_tokens=card.batched_tokens,
        sequences=card.sequences,
        value_bytes=2.0,
        kv_dtype="auto",
        quantization=facts.quantization,
        eager=False,
    )


def refused(facts: ModelFacts, setting: Setting, catalog: Catalog) -> bool:
    """Whether vLLM would not start on so many GPUs of the card."""
    checkpoint, card = facts.checkpoint, setting.accelerator
    if not card.bfloat16 and facts.architecture in NO_FLOAT16:
        return True
    method = catalog.quantizations.get(facts.quantization or "")
    if method is not None and card.compute_capability < method.min_compute_capability:
        return True
    faults = refusals(checkpoint, setting.engine, card.compute_capability)
    return bool(faults or undivided(checkpoint, setting.workers))


def _offer(checkpoint: Published, wish: Wish, setting: Setting, whole: NodePrice, share: NodePrice) -> Offer | None:
    """The offer; None where a request of full length, or the wanted number of requests, has no room."""
    memory = gpu_memory(checkpoint.facts, setting)
    if not memory.full_length_sequences:
        return None
    speed = None
    if checkpoint.writes:
        speed = replica_speed(
            checkpoint.facts,
            setting,
            wish.load,
            model=checkpoint.hf_id,
            rows=measurements(),
            usd_per_hour=share.usd_per_hour,
        )
    if speed is not None and speed.saturated:
        return None
    return Offer(
        checkpoint,
        setting.accelerator,
        setting.workers,
        setting.length,
        memory,
        speed,
        usd_per_hour=whole.usd_per_hour,
        usd_per_replica_hour=share.usd_per_hour,
        price_region=whole.region,
    )


def without_repeats(found: Sequence[Offer], chosen: Offer) -> list[Offer]:
    """The alternatives for a table: the best of each accelerator, without the chosen one."""
    best: dict[str, Offer] = {}
    for offer in found:
        if offer is not chosen:
            best.setdefault(offer.accelerator.name, offer)
    return list(best.values())
