"""Fixes for a model that does not fit: every setting that helps, with its price, cheapest first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modelfleet.infra.catalog import Accelerator, Catalog
from modelfleet.infra.planning.cards import (
    IDLE_MIB,
    NOTICED_MIB,
    WHOLE_CARD,
    Card,
    CardUser,
    free_share,
    share_of_part,
)
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import DEFAULT_UTILIZATION, Setting, fits, gpu_memory, memory_in, shortened
from modelfleet.infra.planning.memory.refusals import refusals, undivided
from modelfleet.infra.planning.node_prices import replica_price
from modelfleet.serving.config.schema import GPU_PARTS

HIGH_UTILIZATION = 0.95


@dataclass(frozen=True)
class WayOut:
    """One change that makes the model fit. `effort` orders changes that cost the same; on this machine none does."""

    usd_per_replica_hour: float | None
    effort: int
    text: str

    def sentence(self) -> str:
        """The change and its price."""
        usd = self.usd_per_replica_hour
        return self.text if usd is None else f"{self.text} ({usd:.2f} USD/h per replica)"


def ways_out(facts: ModelFacts, setting: Setting, catalog: Catalog, here: Sequence[Card] = ()) -> list[WayOut]:
    """All changes that help, cheapest first. `here` are this machine's cards, beside which it has no others."""
    if here:
        return sorted(_on_these_cards(facts, setting, catalog, here), key=lambda way: (way.effort, way.text))
    price = replica_price(setting.accelerator.name, setting.gpus, catalog)
    found = [*_same_gpus(facts, setting, catalog, price.usd_per_hour * setting.stages)] if price else []
    found += [*_more_workers(facts, setting, catalog), *_other_accelerators(facts, setting, catalog)]
    return sorted(found, key=lambda way: (way.usd_per_replica_hour or 0.0, way.effort, way.text))


def workers_allowed(facts: ModelFacts, workers: int, *, experts_whole: bool = False) -> bool:
    """Whether heads and widths divide evenly. Fewer KV heads than workers are copied, which must be even too."""
    return not undivided(facts.checkpoint, workers, experts_whole=experts_whole)


def _same_gpus(facts: ModelFacts, setting: Setting, catalog: Catalog, whole: float) -> Iterator[WayOut]:
    """`whole`: USD per hour of all of the replica's cards."""
    usd = whole * setting.part
    yield from _larger_part(facts, setting, whole)
    high = dataclasses.replace(setting, utilization=HIGH_UTILIZATION)
    if setting.part == 1 and setting.utilization < HIGH_UTILIZATION and fits(facts, high):
        yield WayOut(usd, 0, f"gpu_memory_utilization: {HIGH_UTILIZATION}{_room(facts, high)}")
    if (short := shortened(facts, setting)) is not None:
        yield WayOut(usd, 1, f"max_total_tokens: {short.length}{_room(facts, short)}")
    half = dataclasses.replace(setting, kv_dtype="fp8")
    plain = memory_in(facts, setting).layout.kv_dtype == "auto"
    if plain and setting.accelerator.fp8 and fits(facts, half):
        yield WayOut(usd, 2, f"kv_cache_dtype: fp8{_room(facts, half)}")
    for way in (*_tensor_parallel(facts, setting), *_quantized(facts, setting, catalog)):
        yield dataclasses.replace(way, usd_per_replica_hour=usd)


def _tensor_parallel(facts: ModelFacts, setting: Setting) -> Iterator[WayOut]:
    """The same GPUs without data parallel ranks: each has a part of what every rank has whole."""
    tensor = dataclasses.replace(setting, workers=setting.gpus, data_ranks=1)
    divides = workers_allowed(facts, tensor.workers, experts_whole=setting.experts_whole)
    if setting.data_ranks > 1 and divides and fits(facts, tensor):
        yield WayOut(0.0, 0, f"no data_parallel_size{_room(facts, tensor)}")


def _on_these_cards(facts: ModelFacts, setting: Setting, catalog: Catalog, cards: Sequence[Card]) -> Iterator[WayOut]:
    """What helps without another machine. While others use a card, no larger share of it is free."""
    taken = any(card.others_mib > IDLE_MIB for card in cards)
    for way in _same_gpus(facts, setting, catalog, 0.0):
        if way.effort or not taken:
            yield dataclasses.replace(way, usd_per_replica_hour=None)
    for wider in _wider(facts, setting):
        if wider.gpus <= len(cards):
            yield WayOut(None, 5, f"{_gpus(wider)}{_room(facts, wider)}")
            break
    users = [user for card in cards for user in card.users if user.mib >= NOTICED_MIB]
    alone = dataclasses.replace(setting, utilization=_share_without(users, setting, cards))
    if users and alone.utilization > setting.utilization and fits(facts, alone):
        named = ", ".join(f"{user.name} (process {user.pid}), which has {user.mib / 1024:.1f} GiB" for user in users)
        yield WayOut(None, 0, f"end {named}{_room(facts, alone)}")


def _share_without(users: Sequence[CardUser], setting: Setting, cards: Sequence[Card]) -> float:
    """The share of the fullest card that a replica gets once these processes have ended."""
    usable = setting.accelerator.usable_mib
    left = (card.others_mib - sum(user.mib for user in card.users if user in users) for card in cards)
    free = min(
        free_share(dataclasses.replace(card, others_mib=max(0, mib)), usable)
        for card, mib in zip(cards, left, strict=True)
    )
    if setting.part < 1:
        return share_of_part(setting.part, min(WHOLE_CARD, free), usable)
    return min(DEFAULT_UTILIZATION, free)


def _larger_part(facts: ModelFacts, setting: Setting, usd: float) -> Iterator[WayOut]:
    """The smallest larger part of a card, or a whole one, that carries the model; `usd` is a whole one's price."""
    for part in sorted((*GPU_PARTS, 1.0)):
        share = share_of_part(part, WHOLE_CARD, setting.accelerator.usable_mib) if part < 1 else DEFAULT_UTILIZATION
        larger = dataclasses.replace(setting, part=part, utilization=share)
        if part > setting.part and fits(facts, larger):
            yield WayOut(usd * part, 0, f"num_gpus_per_worker: {part:g}{_room(facts, larger)}")
            return


def _quantized(facts: ModelFacts, setting: Setting, catalog: Catalog) -> Iterator[WayOut]:
    if setting.quantization:
        return
    for method, effort, text in (("fp8", 3, "quantization: fp8"), ("awq", 4, "an AWQ or GPTQ checkpoint (4-bit)")):
        row = catalog.quantizations.get(method)
        if row is None or row.bits is None or setting.accelerator.compute_capability < row.min_compute_capability:
            continue
        small = dataclasses.replace(setting, quantization=method)
        if fits(facts, small):
            yield WayOut(0.0, effort, f"{text}{_room(facts, small)}")


def _wider(facts: ModelFacts, setting: Setting) -> Iterator[Setting]:
    """The setting on more cards of a node, as far as that divides and fits."""
    for gpus in (2, 4, 8) if setting.part == 1 else ():
        if setting.data_ranks > 1:
            wider = dataclasses.replace(setting, data_ranks=gpus)
            divides = not undivided(facts.checkpoint, 1, experts_whole=setting.experts_whole, data_ranks=gpus)
        else:
            wider = dataclasses.replace(setting, workers=gpus)
            divides = workers_allowed(facts, gpus, experts_whole=setting.experts_whole)
        if gpus > setting.gpus and divides and fits(facts, wider):
            yield wider


def _gpus(setting: Setting) -> str:
    """The keys that give a replica so many cards."""
    if setting.data_ranks > 1:
        return f"num_workers and data_parallel_size: {setting.data_ranks}"
    return f"num_workers: {setting.workers * setting.stages}"


def _more_workers(facts: ModelFacts, setting: Setting, catalog: Catalog) -> Iterator[WayOut]:
    for wider in _wider(facts, setting):
        if price := replica_price(setting.accelerator.name, wider.gpus, catalog):
            yield WayOut(price.usd_per_hour * setting.stages, 5, f"{_gpus(wider)}{_room(facts, wider)}")
            return


def _other_accelerators(facts: ModelFacts, setting: Setting, catalog: Catalog) -> Iterator[WayOut]:
    for accelerator in catalog.accelerators.values():
        if accelerator.name == setting.accelerator.name or not _usable(accelerator, setting, catalog):
            continue
        for workers in (1, 2, 4, 8) if setting.part == 1 else (1,):
            there = dataclasses.replace(
                setting, accelerator=accelerator, workers=workers, stages=1, stage=0, data_ranks=1
            )
            if refusals(facts.checkpoint, there.engine, accelerator.compute_capability):
                break
            price = replica_price(accelerator.name, workers, catalog)
            if price and workers_allowed(facts, workers, experts_whole=setting.experts_whole) and fits(facts, there):
                text = f"accelerator_type:{accelerator.name} with num_workers: {workers}"
                text += ", without pipeline_parallel_size" if setting.stages > 1 else ""
                text += ", without data_parallel_size" if setting.data_ranks > 1 else ""
                yield WayOut(price.usd_per_hour * setting.part, 6, text + _room(facts, there))
                break


def _usable(accelerator: Accelerator, setting: Setting, catalog: Catalog) -> bool:
    row = catalog.quantizations.get(setting.quantization or "")
    return row is None or accelerator.compute_capability >= row.min_compute_capability


def _room(facts: ModelFacts, setting: Setting) -> str:
    count = gpu_memory(facts, setting).full_length_sequences
    return f": {count} full-length sequence{'s' if count != 1 else ''}"
