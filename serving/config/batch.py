"""What one step of the engine may hold where a model file does not say it: vLLM's defaults for the card.

vLLM takes them from the GPU that it sees (0.32 `vllm/engine/arg_utils.py`, `get_batch_defaults`). Here they are the
accelerator's columns: the plan counts memory with them and the replica hands them to vLLM, so the two cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelfleet.serving.config.accelerators import Accelerator, known_gpus
from modelfleet.serving.config.schema import ModelConfig


@dataclass(frozen=True)
class Batch:
    """`tokens` in one step of the engine (`max_num_batched_tokens`), `sequences` in it (`max_num_seqs`)."""

    tokens: int
    sequences: int


def card_defaults(model: ModelConfig, card: Accelerator | None = None) -> Batch | None:
    """The card's defaults before vLLM adjusts them; None on CPUs. `card` is the file's unless another is tried.

    A file that raises `max_num_seqs` alone gets as many tokens: vLLM refuses fewer.
    """
    card = card or known_gpus().get(model.accelerator)
    if card is None:
        return None
    asked = _whole(model.engine_config.engine_kwargs.get("max_num_seqs"))
    return Batch(max(card.batched_tokens, asked or 0), card.sequences)


def batch_of(model: ModelConfig, card: Accelerator) -> Batch:
    """What the engine will use: the file's numbers, else the card's as vLLM adjusts them.

    As `_set_default_max_num_seqs_and_batched_tokens_args`: twice as many of what is left out with `performance_mode:
    throughput`, a whole prompt without chunked prefill, and never more than all sequences of full length.
    """
    kwargs = model.engine_config.engine_kwargs
    defaults = card_defaults(model, card) or Batch(card.batched_tokens, card.sequences)
    factor = 2 if kwargs.get("performance_mode") == "throughput" else 1
    asked_tokens, asked_sequences = (_whole(kwargs.get(name)) for name in ("max_num_batched_tokens", "max_num_seqs"))
    tokens = asked_tokens or defaults.tokens * factor
    sequences = asked_sequences or defaults.sequences * factor
    if asked_tokens is None:
        length = model.engine_config.max_total_tokens
        tokens = max(tokens, length) if kwargs.get("enable_chunked_prefill") is False else tokens
        tokens = min(tokens, sequences * length)
    return Batch(tokens, sequences if asked_sequences else min(sequences, tokens))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
