"""Models on the other accelerators of their pools: whether they fit, and with which engine arguments they run there.

A replica learns its card on its node (`serving/card.py`). What is counted here for each card is in the application's
arguments, card by card, so that plan and engine cannot differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.planning.batch import with_batch
from modelfleet.infra.planning.candidates import PoolChoice
from modelfleet.infra.planning.cards import UTILIZATION, with_share_of
from modelfleet.infra.planning.cost import replica_cost
from modelfleet.infra.planning.demand import Demand
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import memory_of
from modelfleet.infra.planning.fit_findings import model_findings
from modelfleet.infra.planning.plan import OnFallback
from modelfleet.infra.planning.recipe_findings import bad_combinations
from modelfleet.infra.planning.replica_speed import model_speed
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.document import KeyPath
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig, ScalingConfig


def without_fallbacks(model: ModelConfig) -> ModelConfig:
    """The model without its `fallback`: what its application gets of it is in `cards_of`."""
    if "fallback" not in model.scaling_config.model_fields_set:
        return model
    left = model.scaling_config.model_dump(exclude_unset=True, exclude={"fallback"})
    return model.model_copy(update={"scaling_config": ScalingConfig.model_validate(left)})


def cards_of(model: ModelConfig, fallbacks: Sequence[OnFallback], catalog: Catalog) -> list[dict[str, Any]]:
    """Each card that a replica may find itself on, for its application; none where the pool has no fallback.

    NVML's words come along, because the accelerators' table is not beside the GPU: a corrected number restarts no
    model.
    """
    if not fallbacks:
        return []
    every = {model.accelerator: model.engine_config.engine_kwargs}
    every |= {one.accelerator: dict(one.engine_kwargs) for one in fallbacks}
    return [
        {"accelerator": name, "nvml": list(catalog.accelerators[name].nvml), "engine_kwargs": kwargs}
        for name, kwargs in every.items()
    ]


def on_fallbacks(
    choice: PoolChoice, demand: Demand, facts: ModelFacts | None, catalog: Catalog, *, priced: bool
) -> tuple[OnFallback, ...]:
    """The model on each accelerator on which its pool falls back."""
    found = []
    for node in choice.candidate.fallbacks:
        there = with_batch(_at(node.accelerator, demand.model, catalog), facts, catalog)
        price = replica_cost(choice, demand, node.usd_per_hour) if priced else None
        found.append(
            OnFallback(
                node.accelerator,
                there.engine_config.engine_kwargs,
                memory_of(there, facts, catalog),
                model_speed(there, facts, catalog, price),
            )
        )
    return tuple(found)


def fallback_findings(
    stack: LoadedStack, choices: Sequence[PoolChoice], facts: Mapping[str, ModelFacts | None], catalog: Catalog
) -> list[Finding]:
    """What keeps a model from another accelerator of its pool, and entries of a model that its pool has no use for."""
    found: list[Finding] = []
    for choice in choices:
        cards = [node.accelerator for node in choice.candidate.fallbacks]
        for demand in choice.demands:
            for card in cards:
                found += _on(card, choice.pool.name, demand.model, facts, catalog)
            found += _unused(stack, choice.pool.name, cards, demand.model)
    return found


def _on(
    card: str, pool: str, model: LoadedModel, facts: Mapping[str, ModelFacts | None], catalog: Catalog
) -> Iterator[Finding]:
    """Errors and warnings about a model on one other card, without those that it has on its own."""
    config = _at(card, model, catalog)
    document = dataclasses.replace(model.document, data=config.model_dump(mode="json", exclude_unset=True))
    there = LoadedModel(config, document)
    known = facts.get(model.config.model_id)
    own = {
        (one.path, one.message) for one in [*model_findings(model, known, catalog), *bad_combinations([model], facts)]
    }
    at = _entry(model, card)
    for one in [*model_findings(there, known, catalog), *bad_combinations([there], facts)]:
        if one.severity is Severity.NOTICE or (one.path, one.message) in own:
            continue
        message = f"on {card}, on which pool {pool} falls back: {one.message}"
        if at is None:
            message += f"; or give it arguments for {card} in scaling_config.fallback"
            yield dataclasses.replace(one, message=message)
        else:
            yield model.document.finding(at, message, one.severity)


def _at(card: str, model: LoadedModel, catalog: Catalog) -> ModelConfig:
    """The model on another card: with that one's share of memory for its part, where its file names no share."""
    config = model.config.on(card)
    own = (model.document.data["engine_config"].get("engine_kwargs") or {}).get(UTILIZATION)
    there = next((one.engine_kwargs for one in model.config.scaling_config.fallback if one.accelerator == card), {})
    if there.get(UTILIZATION, own) is not None:
        return config
    kwargs = {name: value for name, value in config.engine_config.engine_kwargs.items() if name != UTILIZATION}
    engine = config.engine_config.model_copy(update={"engine_kwargs": kwargs})
    return with_share_of((), config.model_copy(update={"engine_config": engine}), catalog)


def _entry(model: LoadedModel, card: str) -> KeyPath | None:
    """The place of the model's own arguments for a card; None where it has none."""
    entries = model.config.scaling_config.fallback
    return next(
        (("scaling_config", "fallback", index) for index, one in enumerate(entries) if one.accelerator == card), None
    )


def _unused(stack: LoadedStack, pool: str, cards: Sequence[str], model: LoadedModel) -> Iterator[Finding]:
    for index, one in enumerate(model.config.scaling_config.fallback):
        if one.accelerator not in cards:
            entry = f"{{accelerator: {one.accelerator}, instanceTypes: [...]}}"
            message = (
                f"has no effect on stack {stack.name}: its pool {pool} does not fall back on {one.accelerator}; give "
                f"the pool `fallback: [{entry}]`"
            )
            yield model.document.finding(("scaling_config", "fallback", index), message, Severity.NOTICE)
