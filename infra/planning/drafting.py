"""A model file's `speculative_config`: what drafts, and whether its memory can be counted. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from modelfleet.infra.planning.memory.answer import ModelMemory
from modelfleet.infra.planning.memory.checkpoint import Checkpoint, UnknownShapeError
from modelfleet.infra.planning.memory.drafts import MTP, WITHOUT_WEIGHTS, Draft, method_of, predicted_layers
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.serving.config.schema import ModelConfig


@dataclass(frozen=True)
class Drafting:
    """`draft` is what takes memory, None where nothing does or `unknown` says why it is not counted.

    `tokens` are drafted a step: recurrent states keep a copy for each.
    """

    draft: Draft | None = None
    tokens: int = 0
    unknown: str = ""


NOTHING = Drafting()


def section_of(model: ModelConfig) -> Mapping[str, Any] | None:
    """The file's `speculative_config`."""
    found = model.engine_config.engine_kwargs.get("speculative_config")
    return found if isinstance(found, dict) else None


def draft_source(model: ModelConfig) -> tuple[str, str] | None:
    """Repository or folder, and revision, of a draft with a checkpoint of its own."""
    section = section_of(model)
    name = section.get("model") if section else None
    if not section or not isinstance(name, str) or method_of(section) in WITHOUT_WEIGHTS:
        return None
    return None if name == model.engine_config.weights_id else (name, str(section.get("revision") or "main"))


def drafting_of(model: ModelConfig, target: Checkpoint, own: Checkpoint | None) -> Drafting:
    """What drafts for a model of that checkpoint; `own` is the draft's, where it is known."""
    section, source = section_of(model), draft_source(model)
    return NOTHING if section is None else drafting(section, target, own, source[0] if source else "")


def drafting(section: Mapping[str, Any], target: Checkpoint, own: Checkpoint | None, source: str = "") -> Drafting:
    """As `drafting_of`, for a `speculative_config`; `source` names a draft with a checkpoint of its own."""
    method, tokens = method_of(section, own), section.get("num_speculative_tokens")
    asked = tokens if isinstance(tokens, int) and tokens > 0 else 0
    if method in WITHOUT_WEIGHTS:
        return Drafting(tokens=asked)
    if source and own is None:
        return Drafting(tokens=asked, unknown=f"the config.json of {source} is not known here")
    if method == MTP and source:
        return Drafting(tokens=asked, unknown=f"multi-token layers of another checkpoint ({source}) are not known")
    draft = Draft(method, own)
    default = predicted_layers(target) if method == MTP else 0
    unknown = _why_not(target, draft)
    return Drafting(None if unknown else draft, asked or default, unknown)


@lru_cache(maxsize=256)
def _why_not(target: Checkpoint, draft: Draft) -> str:
    """Why a draft's memory cannot be counted; empty when it can."""
    memory = ModelMemory(target, EngineArguments(16), draft)
    try:
        return "" if memory.draft_bytes and memory.layout is not None else "it describes no weights"
    except UnknownShapeError as problem:
        return str(problem)
