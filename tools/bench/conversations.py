"""Seeded traces for routing: conversations below long shared system prompts, and requests that nothing follows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Bytes of one token of these texts, and of one line of a system prompt.
TOKEN_BYTES = 4


@dataclass(frozen=True)
class Turn:
    """What the user says, how long the answer to it is in tokens, and how many seconds pass before the next turn."""

    text: str
    answer_tokens: int
    think_s: float


@dataclass(frozen=True)
class Conversation:
    """Turns below one system prompt, the first of them `start_s` after the trace's start. `session` is its own name."""

    session: str
    start_s: float
    system: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Shape:
    """What a trace is made of. Lengths in tokens, times in seconds.

    `alone` is the share of conversations that are one request with a prompt of its own, without a system prompt.
    """

    conversations: int = 240
    over_s: float = 24.0
    systems: int = 12
    system_tokens: tuple[int, int] = (1000, 3000)
    turns: tuple[int, int] = (2, 8)
    user_tokens: tuple[int, int] = (20, 200)
    answer_tokens: tuple[int, int] = (20, 120)
    think_s: tuple[float, float] = (0.2, 1.5)
    alone: float = 0.0
    alone_tokens: tuple[int, int] = (100, 1500)


def trace(shape: Shape, seed: int) -> list[Conversation]:
    """The conversations in the order of their starts; equal arguments give equal traces.

    A few system prompts have most of the conversations: the n-th is 1/n as frequent as the first (Zipf's law).
    """
    dice = random.Random(seed)
    systems = [_text(dice, dice.randint(*shape.system_tokens)) for _ in range(shape.systems)]
    weights = [1 / rank for rank in range(1, shape.systems + 1)]
    starts = sorted(dice.uniform(0, shape.over_s) for _ in range(shape.conversations))
    return [_conversation(dice, shape, f"s{n}", start, systems, weights) for n, start in enumerate(starts)]


def _conversation(
    dice: random.Random, shape: Shape, session: str, start: float, systems: list[str], weights: list[float]
) -> Conversation:
    if dice.random() < shape.alone:
        only = Turn(_text(dice, dice.randint(*shape.alone_tokens)), dice.randint(*shape.answer_tokens), 0.0)
        return Conversation(session, start, "", (only,))
    turns = tuple(
        Turn(
            _text(dice, dice.randint(*shape.user_tokens)),
            dice.randint(*shape.answer_tokens),
            dice.uniform(*shape.think_s),
        )
        for _ in range(dice.randint(*shape.turns))
    )
    return Conversation(session, start, dice.choices(systems, weights)[0], turns)


def bodies(conversation: Conversation, model: str) -> Iterator[dict[str, Any]]:
    """The bodies of a conversation's requests: each repeats all that was said before, as a chat's client does."""
    messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in conversation.turns:
        messages = [*messages, {"role": "user", "content": turn.text}]
        yield {"messages": messages, "max_tokens": turn.answer_tokens, "stream": True, "model": model}
        messages = [*messages, {"role": "assistant", "content": "a" * TOKEN_BYTES * turn.answer_tokens}]


def _text(dice: random.Random, tokens: int) -> str:
    """Text of about as many tokens that occurs nowhere else."""
    return dice.randbytes(tokens * TOKEN_BYTES // 2).hex()
