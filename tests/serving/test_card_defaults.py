"""The installed vLLM's defaults for a card, against the accelerators' columns and the plan's arithmetic with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from modelfleet.infra.planning.batch import Batch
from modelfleet.serving.config.accelerators import known_gpus
from tests.unit.planning.test_batch import CASES


@pytest.mark.parametrize(("length", "kwargs", "expected"), CASES.values(), ids=CASES)
def test_vllm_adjusts_the_cards_numbers_as_the_plan_does(length: int, kwargs: dict[str, Any], expected: Batch) -> None:
    assert vllm_says(length, kwargs) == expected


def vllm_says(length: int, kwargs: dict[str, Any]) -> Batch:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    args = EngineArgs(model="m", **({"enable_chunked_prefill": True} | kwargs))
    with pytest.MonkeyPatch.context() as patch:
        see(patch, known_gpus()["H100"].usable_mib, "NVIDIA H100 80GB HBM3")
        args._set_default_max_num_seqs_and_batched_tokens_args(
            UsageContext.OPENAI_API_SERVER,
            SimpleNamespace(max_model_len=length, is_multimodal_model=False),
            SimpleNamespace(use_batched_dp_moe=False),
        )
    return Batch(args.max_num_batched_tokens, args.max_num_seqs)


def see(patch: pytest.MonkeyPatch, memory_mib: int, name: str) -> None:
    """Lets vLLM see that card."""
    from vllm.engine import arg_utils

    card = SimpleNamespace(
        get_device_total_memory=lambda: memory_mib << 20,
        get_device_name=lambda: name,
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    patch.setattr(arg_utils, "current_platform", card)


@pytest.mark.parametrize("name", list(known_gpus()))
def test_the_columns_are_vllms_defaults_for_the_card(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    card = known_gpus()[name]
    see(monkeypatch, card.usable_mib, f"NVIDIA {card.ec2_gpu}")
    tokens, sequences = EngineArgs.get_batch_defaults(1)
    server = UsageContext.OPENAI_API_SERVER
    assert (tokens[server], sequences[server]) == (card.batched_tokens, card.sequences)
