"""What one step of the engine may hold where a model file does not say it: the defaults that vLLM has for the card.

vLLM takes them from the GPU that it sees (0.32 `vllm/engine/arg_utils.py`, `get_batch_defaults`); here they are the
accelerator's columns. The plan counts memory with them and writes them into the application's engine arguments, so
that the two cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.planning.applications import kind_of
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.serving.config.accelerators import Accelerator
from modelfleet.serving.config.schema import ModelConfig

TOKENS, SEQUENCES = "max_num_batched_tokens", "max_num_seqs"
#: How the architectures of text models end. Those that read images are named `…ForConditionalGeneration`, and of these
#: vLLM raises the tokens of some (`vllm/transformers_utils/model_arch_config_convertor.py`, `is_mm_prefix_lm`).
TEXT, ITS_EXCEPTION = "ForCausalLM", "Moondream3ForCausalLM"


@dataclass(frozen=True)
class Batch:
    """`tokens` in one step of the engine (`max_num_batched_tokens`), `sequences` in it (`max_num_seqs`)."""

    tokens: int
    sequences: int


def batch_of(model: ModelConfig, card: Accelerator, length: int | None = None) -> Batch:
    """What the engine uses on that card: the file's numbers, else the card's as vLLM adjusts them.

    `length` is the model's where its file has none; None where nothing is known.

    As `_set_default_max_num_seqs_and_batched_tokens_args`: twice as many of what is left out with `performance_mode:
    throughput`, a whole prompt without chunked prefill, and never more than all sequences of full length. A file that
    raises `max_num_seqs` alone gets as many tokens, because vLLM refuses fewer.
    """
    kwargs = model.engine_config.engine_kwargs
    factor = 2 if kwargs.get("performance_mode") == "throughput" else 1
    asked_tokens, asked_sequences = _whole(kwargs.get(TOKENS)), _whole(kwargs.get(SEQUENCES))
    sequences = asked_sequences or card.sequences * factor
    if asked_tokens:
        return Batch(asked_tokens, asked_sequences or min(sequences, asked_tokens))
    length = model.engine_config.length or length
    tokens = max(card.batched_tokens * factor, asked_sequences or 0)
    if length is not None:
        tokens = max(tokens, length) if kwargs.get("enable_chunked_prefill") is False else tokens
        tokens = min(tokens, sequences * length)
    return Batch(tokens, asked_sequences or min(sequences, tokens))


def with_batch(model: ModelConfig, facts: ModelFacts | None, catalog: Catalog) -> ModelConfig:
    """The model with both numbers among its engine arguments; as it is on CPUs.

    Tokens only for text models that are known: vLLM raises them itself where one image, or a whole text to embed, has
    to fit one step, and a number that is given would end such an engine.
    """
    card = catalog.accelerators.get(model.accelerator)
    if card is None:
        return model
    batch = batch_of(model, card)
    kwargs = model.engine_config.engine_kwargs
    chosen = {SEQUENCES: batch.sequences}
    if facts is not None and kind_of(model.engine_config) == "text" and _reads_text_only(facts):
        chosen[TOKENS] = batch.tokens
    given = {name: value for name, value in kwargs.items() if value is not None}
    engine = model.engine_config.model_copy(update={"engine_kwargs": {**kwargs, **chosen, **given}})
    return model.model_copy(update={"engine_config": engine})


def _reads_text_only(facts: ModelFacts) -> bool:
    named = facts.checkpoint.raw.get("architectures")
    return (
        isinstance(named, list)
        and bool(named)
        and all(str(one).endswith(TEXT) and one != ITS_EXCEPTION for one in named)
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
