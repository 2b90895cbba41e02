"""The keys of `generation.generate_kwargs`, and a finding for each key that is not one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelfleet.serving.config.document import Document
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.config.validation import near

OVERRIDES = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"}
)
"""Keys that vLLM's `override_generation_config` takes as defaults (vLLM 0.32 `get_diff_sampling_param`)."""

MAX_TOKENS = ("max_tokens", "max_new_tokens")
"""Default length; `override_generation_config` would also make it a cap on what a request asks for."""

INERT = frozenset({"do_sample", "return_token_type_ids", "ignore_eos_token"})
"""Keys of shipped RayLLM files that never did anything."""

BODY_DEFAULTS = frozenset(
    {"seed", "min_tokens", "ignore_eos", "skip_special_tokens", "bad_words", "logit_bias", "n", "stop_token_ids"}
)
"""Keys that only a request's field can carry."""

STOP = "stop"
ALLOWED = OVERRIDES | BODY_DEFAULTS | INERT | {*MAX_TOKENS, STOP}
"""Every key that `generate_kwargs` may have."""


def generate_kwargs_findings(document: Document, data: Any) -> Iterator[Finding]:
    """One finding per key that is not a sampling default. `data` is the model file's normalised content."""
    kwargs: Any = data
    path = ("engine_config", "generation", "generate_kwargs")
    for key in path:
        kwargs = kwargs.get(key) if isinstance(kwargs, dict) else None
    for key in kwargs if isinstance(kwargs, dict) else ():
        if key not in ALLOWED:
            yield document.finding((*path, key), f"unknown, {near(key, sorted(ALLOWED - INERT))}")


def default_max_tokens(generate_kwargs: Mapping[str, Any]) -> int | None:
    """The answer's default length in tokens, or None for vLLM's own (the rest of the model's length)."""
    for key in MAX_TOKENS:
        if generate_kwargs.get(key) is not None:
            return int(generate_kwargs[key])
    return None
