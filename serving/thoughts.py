"""How many tokens of an answer are thoughts, by vLLM's own reasoning parser: what its `reasoning_tokens` says.

vLLM 0.32 counts for a client that gets the whole answer, or asks a stream for its usage. Here every answer is counted
by the same parser, from the token ids that the engine keeps, also where the client went away. In one case we count and
vLLM says 0: a chat template may open the thought at the end of the prompt (`<think>`), and vLLM's parsers of start and
end tokens then see no start in the answer (`BaseThinkingReasoningParser.count_reasoning_tokens`).

Parsers that count nothing (vLLM's `ReasoningParser` by default) say 0 here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Parser(Protocol):
    """What is used of vLLM's parser of one answer."""

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """The tokens of an answer that are thoughts."""


class Thoughts:
    """Counts the thoughts of one model; `make` makes vLLM's parser with what the HTTP layer gave to its own."""

    def __init__(self, make: Callable[..., Parser]) -> None:
        self._make = make

    def count(self, prompt: Sequence[int], answer: Sequence[int], options: Mapping[str, Any]) -> int:
        """Tokens of `answer` (ids) that are thoughts, in an answer to `prompt`; `options` has `chat_template_kwargs`.

        A parser has state, so each answer has its own.
        """
        parser = self._make(**options)
        return parser.count_reasoning_tokens([*_opened(parser, prompt), *answer])


def _opened(parser: Parser, prompt: Sequence[int]) -> list[int]:
    """The start token if the prompt ends within a thought, and the parser would need to see it."""
    parser = getattr(parser, "_parser", parser)  # DeepSeek V3's chooses one by `thinking`
    start, end = getattr(parser, "start_token_id", None), getattr(parser, "end_token_id", None)
    if start is None or end is None:
        return []
    last = next((token for token in reversed(prompt) if token in (start, end)), None)
    return [start] if last == start else []
