"""The length that a model is served with, and whose sampling it has, where its file does not say them. Pure.

A file that speaks RayLLM (it has a `prompt_format`) keeps RayLLM's defaults. Every other one has its checkpoint's.
"""

from __future__ import annotations

import dataclasses

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.planning.applications import kind_of
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import (
    Setting,
    default_length,
    fits,
    sequence_bytes,
    setting_of,
    shortened,
    widest_stage,
)
from modelfleet.infra.planning.host_memory import CACHE_BYTES, PROCESSOR, own_cache_bytes
from modelfleet.infra.planning.plan import LengthSource, Sampling
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import tensor_ranks_of


def length_source(model: ModelConfig, facts: ModelFacts | None, catalog: Catalog) -> LengthSource:
    """Why a model has the length that it has."""
    engine = model.engine_config
    if engine.max_total_tokens is not None:
        return "file"
    if engine.length is not None:
        return "RayLLM"
    if facts is None:
        return "engine"
    return "checkpoint" if _longest_that_fits(model, facts, catalog) is None else "memory"


def with_length(model: ModelConfig, facts: ModelFacts | None, catalog: Catalog) -> ModelConfig:
    """The model with its length: the file's, RayLLM's, the checkpoint's, or the longest that fits.

    Without a length stays a model of which nothing is known: the engine finds the same ones when it starts
    (`max_model_len: -1`). So does one that writes no tokens and fits: its tokenizer may know a smaller limit, which
    vLLM then obeys and a number above it would not pass (vLLM 0.32 `_get_and_verify_max_len`).
    """
    engine, source = model.engine_config, length_source(model, facts, catalog)
    if source in ("file", "engine") or (source == "checkpoint" and kind_of(engine) != "text"):
        return model
    length = engine.length
    if length is None and facts is not None:
        length = _longest_that_fits(model, facts, catalog) or default_length(facts)
    return model.model_copy(update={"engine_config": engine.model_copy(update={"max_total_tokens": length})})


def sampling_of(model: ModelConfig) -> Sampling:
    """Whose sampling a request has that names none: the file's over the checkpoint's, the checkpoint's, vLLM's own."""
    engine = model.engine_config
    if engine.sampling_named:
        return "file"
    return "checkpoint" if engine.generation_config == "auto" else "vLLM"


def _longest_that_fits(model: ModelConfig, facts: ModelFacts, catalog: Catalog) -> int | None:
    """The longest length that fits in the memory of the model's cards, tokens; None where the checkpoint's fits.

    None also where no length fits: the findings then speak of the checkpoint's. Without a GPU that is the cache which
    the file gives, or the least that a replica has.
    """
    card = catalog.accelerators.get(model.accelerator)
    if card is not None:
        setting = setting_of(model, facts, card)
        short = None if fits(facts, setting) else shortened(facts, setting)
        return short.length if short else None
    if model.accelerator != CPU:
        return None
    given = own_cache_bytes(model)
    room = (CACHE_BYTES if given is None else given) * tensor_ranks_of(model)
    setting = widest_stage(facts, dataclasses.replace(setting_of(model, facts, PROCESSOR), workers=1))
    if sequence_bytes(facts, setting) <= room:
        return None
    return _longest_in(facts, setting, room)


def _longest_in(facts: ModelFacts, setting: Setting, room: int) -> int | None:
    """The longest length of which one sequence takes at most `room` bytes, in steps of 256 tokens."""
    low, high = 0, setting.length // 256
    while low < high:
        middle = (low + high + 1) // 2
        if sequence_bytes(facts, dataclasses.replace(setting, length=middle * 256)) <= room:
            low = middle
        else:
            high = middle - 1
    return low * 256 or None
