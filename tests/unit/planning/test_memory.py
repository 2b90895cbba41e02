"""The arithmetic of a model's memory against vLLM's own answers, and its rules by hand."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.planning.memory.caches import Cache, Demand, Kind
from modelfleet.infra.planning.memory.checkpoint import Checkpoint, UnknownShapeError
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.memory.groups import pool_of
from modelfleet.infra.planning.memory.layers import layout_of
from modelfleet.infra.planning.memory.refusals import undivided
from modelfleet.infra.planning.memory.weights import weights_of
from tools.probe.__main__ import differences, ours
from tools.probe.rows import FIXTURES, rows

TRUTH = rows(FIXTURES / "kv-truth.jsonl")
CONFIGS = {row["config"]: row["content"] for row in rows(FIXTURES / "configs.jsonl")}
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100,
    "tie_word_embeddings": False, "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.mark.parametrize(
    "truth", [row for row in TRUTH if row["config"] in CONFIGS], ids=lambda row: f"{row['model']}-tp{row.get('tp', 1)}"
)
def test_a_model_keeps_what_vllm_says_it_keeps(truth: dict[str, Any]) -> None:
    found = differences(ours(CONFIGS[truth["config"]], truth), truth)
    assert not found, "a wrong answer buys a node or turns a user away"


def test_weights_are_counted_tensor_by_tensor() -> None:
    """100 rows are padded to 128; a layer is q, k, v, o (64x64, 2x32x64, 64x64), 3 matrices of 128x64, 2 norms."""
    layer = (64 + 32 + 32) * 64 + 64 * 64 + 3 * 128 * 64 + 2 * 64
    assert weights_of(Checkpoint(LLAMA), EngineArguments(4096)).elements == 2 * 128 * 64 + 2 * layer + 64


#: GiB on one GPU of so many tensor and data parallel ranks, with or without `enable_expert_parallel`, as the probe got
#: it from vLLM 0.32 on 2026-12-01: `python -m tools.probe.ask --configs configs.jsonl --tp 1 --dp 8 --expert-parallel`.
SHARED_EXPERTS = [
    ("openai--gpt-oss-120b", 4, 1, True, 15.211),  # MXFP4's kernels pad the 720 columns of a quarter, whole ones less
    ("openai--gpt-oss-120b", 8, 1, True, 7.618),
    ("openai--gpt-oss-120b", 1, 8, True, 11.063),
    ("openai--gpt-oss-120b", 1, 4, False, 19.129),
    ("qwen2_moe", 8, 1, True, 3.532),  # 60 experts: the first four GPUs have one more
    ("qwen2_moe", 1, 8, True, 6.556),
    ("qwen2_moe", 1, 8, False, 6.362),
    ("deepseek-ai--DeepSeek-V3", 8, 1, True, 79.293),
    ("deepseek-ai--DeepSeek-V3", 1, 8, True, 93.915),
    ("deepseek-ai--DeepSeek-V3", 1, 4, False, 170.059),
]


@pytest.mark.parametrize(("config", "ranks", "data_ranks", "whole", "gib"), SHARED_EXPERTS)
def test_gpus_share_experts_as_vllm_deals_them_out(
    config: str, ranks: int, data_ranks: int, whole: bool, gib: float
) -> None:
    engine = EngineArguments(8192, ranks=ranks, data_ranks=data_ranks, experts_whole=whole)
    assert round(weights_of(Checkpoint(CONFIGS[config]), engine).bytes / 2**30, 3) == gib


def test_the_width_of_whole_experts_need_not_divide_but_that_of_shared_ones() -> None:
    """Source: `FusedMoEParallelConfig.make` and `determine_expert_map` in vLLM 0.32."""
    sizes = {"num_attention_heads": 8, "num_experts": 6, "moe_intermediate_size": 100, "model_type": "qwen2_moe"}
    odd = {**LLAMA, **sizes}
    assert undivided(Checkpoint(odd), 8) == "a width of 100 does not divide evenly"
    assert undivided(Checkpoint(odd), 8, experts_whole=True) == ""
    shared = Checkpoint({**odd, "shared_expert_intermediate_size": 60})
    assert "60 of its shared experts" in undivided(shared, 8, experts_whole=True)
    assert undivided(Checkpoint(LLAMA | {"intermediate_size": 130}), 4, experts_whole=True), "a dense model has none"


@pytest.mark.parametrize(("whole", "own"), [(False, 6 * 24), (True, 2 * 96)], ids=["a part of each", "two of six"])
def test_data_parallel_ranks_share_routed_experts_alone(whole: bool, own: int) -> None:
    """Each of four has all else; of the experts a quarter of every one's width, or whole ones."""
    sizes = {"num_experts": 6, "moe_intermediate_size": 96, "model_type": "qwen2_moe"}
    checkpoint = Checkpoint({**LLAMA, **sizes, "shared_expert_intermediate_size": 60})
    one, ranked = (
        weights_of(checkpoint, EngineArguments(4096, data_ranks=ranks, experts_whole=whole)).elements
        for ranks in (1, 4)
    )
    layers, matrices = 2, 3
    assert one - ranked == layers * matrices * (6 * 96 - own) * LLAMA["hidden_size"]


@pytest.mark.parametrize(("ranks", "heads"), [(1, 2), (2, 1), (4, 1)])
def test_key_heads_are_divided_until_one_is_left_on_each_gpu(ranks: int, heads: int) -> None:
    caches = layout_of(Checkpoint(LLAMA), EngineArguments(4096, ranks=ranks)).caches
    assert [cache.heads for cache in caches] == [heads, heads]


def test_a_config_without_its_depth_is_not_planned_from_a_class_default() -> None:
    silent = {key: value for key, value in LLAMA.items() if key != "num_hidden_layers"}
    with pytest.raises(UnknownShapeError, match="num_hidden_layers"):
        layout_of(Checkpoint(silent, {"llama": {"num_hidden_layers": 32}}), EngineArguments(4096))


def test_a_window_keeps_two_batches_in_flight() -> None:
    """(128 - 1 + 2 x 2048) tokens are 264 blocks of 16, and one more because a window starts anywhere."""
    cache = Cache(Kind.WINDOW, 16, 1, bound=128)
    assert cache.blocks(Demand(8192, 2 * 2048)) == 265


def test_twelve_full_and_fifty_window_layers_form_groups_of_twelve() -> None:
    """The last group of windows has two layers; a request still pays for its blocks in full."""
    full, window = Cache(Kind.FULL, 16, 64), Cache(Kind.WINDOW, 16, 64, bound=128)
    pool = pool_of([full] * 12 + [window] * 50, packed=False)
    assert [len(group) for group in pool.groups] == [12, 10, 10, 10, 10, 10]
    assert pool.block_bytes == 12 * 16 * 64


def test_a_model_needs_one_block_beside_its_request() -> None:
    pool = pool_of([Cache(Kind.FULL, 16, 64)], packed=False)
    demand = Demand(160, 0)
    assert pool.request_bytes(demand) == 10 * 16 * 64
    assert not pool.fits(10 * 16 * 64, demand), "vLLM holds a null block back"
    assert pool.fits(11 * 16 * 64, demand)
