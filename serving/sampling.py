"""`generation.generate_kwargs` and `generation.stopping_sequences` of a model file, split by how vLLM takes them. Pure.

RayLLM's own code made most of `generate_kwargs` inert (a request's missing field overwrote it); here they are what
their authors meant: defaults that a request overrides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelfleet.serving.config.generate_kwargs import BODY_DEFAULTS, OVERRIDES, default_max_tokens


def generation_overrides(generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `generate_kwargs` that goes into `override_generation_config`."""
    return {key: value for key, value in generate_kwargs.items() if key in OVERRIDES and value is not None}


def body_defaults(generate_kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The defaults for fields that a chat request leaves out, and those for a completion request."""
    both = {key: value for key, value in generate_kwargs.items() if key in BODY_DEFAULTS and value is not None}
    length = default_max_tokens(generate_kwargs)
    return both, both if length is None else {**both, "max_tokens": length}


@dataclass(frozen=True)
class Stops:
    """What ends an answer, besides the checkpoint's end-of-sequence tokens."""

    strings: tuple[str, ...]
    token_ids: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.strings or self.token_ids)


def compile_stops(
    sequences: Sequence[Any] | None,
    extra: Any,
    *,
    special_tokens: Mapping[str, int],
    decode: Callable[[list[int]], str],
) -> Stops:
    """Stop strings and stop token ids from `stopping_sequences` and `generate_kwargs.stop`.

    An int is a token id. A list of ints is one sequence of tokens, matched by its text, or as an id when it is one
    token. A string that is a special token becomes its id, because special tokens never appear in an answer's text.
    """
    strings: list[str] = []
    token_ids: list[int] = []
    extra = [] if extra is None else [extra] if isinstance(extra, str) else list(extra)
    for entry in [*(sequences or ()), *extra]:
        parts = entry if isinstance(entry, list) else [entry]
        if len(parts) == 1 and isinstance(parts[0], int):
            token_ids.append(parts[0])
            continue
        text = "".join(part if isinstance(part, str) else decode([part]) for part in parts)
        if text in special_tokens:
            token_ids.append(special_tokens[text])
        elif text:
            strings.append(text)
    return Stops(tuple(dict.fromkeys(strings)), tuple(dict.fromkeys(token_ids)))
