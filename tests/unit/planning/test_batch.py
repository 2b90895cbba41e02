"""What a step of the engine holds: the same numbers for the plan's memory and the engine, whatever card vLLM sees."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.batch import Batch, batch_of
from modelfleet.serving.config.accelerators import known_gpus
from tests.unit.planning.builders import model, planned, pool, stack

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def batch(accelerator: str = "H100", length: int = 8192, **kwargs: Any) -> Batch:
    one = model(accelerator=accelerator, engine_kwargs=kwargs, max_total_tokens=length)
    return batch_of(one.config, known_gpus()[accelerator])


#: Length, engine arguments, and what the engine uses on an H100.
CASES = {
    "the card's": (8192, {}, Batch(8192, 1024)),
    "few tokens": (8192, {"max_num_batched_tokens": 512}, Batch(512, 512)),
    "few sequences": (8192, {"max_num_seqs": 64}, Batch(8192, 64)),
    "throughput": (8192, {"performance_mode": "throughput"}, Batch(16384, 2048)),
    "whole prompts": (32768, {"enable_chunked_prefill": False}, Batch(32768, 1024)),
    "short texts": (16, {"max_num_seqs": 4}, Batch(64, 4)),
}


@pytest.mark.parametrize(("length", "kwargs", "expected"), CASES.values(), ids=CASES)
def test_the_engine_uses_the_numbers_of_the_plan(length: int, kwargs: dict[str, Any], expected: Batch) -> None:
    """`tests/serving/test_card_defaults.py` asks vLLM the same."""
    assert batch(length=length, **kwargs) == expected


def written(**keys: Any) -> dict[str, Any]:
    """The engine arguments that an application gets."""
    keys.setdefault("max_total_tokens", 4096)
    plan = planned([model(keys.pop("model_id", LLAMA), "H100", **keys)], stack(pool("h100", "H100")), facts=None)
    arguments: dict[str, Any] = plan.models[0].application.args["model"]["engine_config"].get("engine_kwargs", {})
    return arguments


def test_the_plan_writes_its_numbers_into_the_engines_arguments() -> None:
    assert written() == {"max_num_seqs": 1024, "max_num_batched_tokens": 8192}
    asked = {"max_num_seqs": 32, "max_num_batched_tokens": 1024}
    assert written(engine_kwargs=asked) == asked


def test_more_sequences_than_the_cards_tokens_get_as_many_tokens() -> None:
    """vLLM refuses fewer tokens than sequences, and the plan had counted more."""
    assert written(engine_kwargs={"max_num_seqs": 9000})["max_num_batched_tokens"] == 9000


@pytest.mark.parametrize(
    "keys",
    [
        {"model_id": "org/of-which-nothing-is-known"},
        {"model_type": "embedding"},
        {"model_id": "google/gemma-3-27b-it"},
    ],
    ids=["unknown", "embedding", "images"],
)
def test_tokens_are_vllms_where_it_may_have_to_raise_them(keys: dict[str, Any]) -> None:
    """An image that does not fit a step ends an engine whose tokens were given, and so does a text to embed."""
    assert written(**keys) == {"max_num_seqs": 1024}


def test_on_cpus_nothing_is_written() -> None:
    plan = planned([model(accelerator="CPU")], stack(pool("cpu", "CPU")))
    arguments = plan.models[0].application.args["model"]["engine_config"].get("engine_kwargs", {})
    assert not {"max_num_seqs", "max_num_batched_tokens"} & arguments.keys()
    assert default_catalog().accelerators.get("CPU") is None
