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


#: GiB on one GPU with `enable_expert_parallel`, as the probe (`tools/probe`) got it from vLLM 0.32 on 2026-12-01.
WHOLE_EXPERTS = [
    ("openai--gpt-oss-120b", 4, 15.211),  # MXFP4's kernels pad the 720 columns of a quarter, and whole experts less
    ("openai--gpt-oss-120b", 8, 7.618),
    ("qwen2_moe", 8, 3.532),  # 60 experts: the first four GPUs have one more
    ("deepseek-ai--DeepSeek-V3", 8, 79.293),
]


@pytest.mark.parametrize(("config", "ranks", "gib"), WHOLE_EXPERTS)
def test_with_expert_parallel_each_gpu_has_whole_experts_and_its_part_of_all_else(
    config: str, ranks: int, gib: float
) -> None:
    checkpoint = Checkpoint(CONFIGS[config])
    found = weights_of(checkpoint, EngineArguments(8192, ranks=ranks, experts_whole=True)).bytes
    assert round(found / 2**30, 3) == gib


def test_the_width_of_whole_experts_need_not_divide_but_that_of_shared_ones() -> None:
    """Source: `FusedMoEParallelConfig.make` and `determine_expert_map` in vLLM 0.32."""
    sizes = {"num_attention_heads": 8, "num_experts": 6, "moe_intermediate_size": 100, "model_type": "qwen2_moe"}
    odd = {**LLAMA, **sizes}
    assert undivided(Checkpoint(odd), 8) == "a width of 100 does not divide evenly"
    assert undivided(Checkpoint(odd), 8, experts_whole=True) == ""
    shared = Checkpoint({**odd, "shared_expert_intermediate_size": 60})
    assert "60 of its shared experts" in undivided(shared, 8, experts_whole=True)
    assert undivided(Checkpoint(LLAMA | {"intermediate_size": 130}), 4, experts_whole=True), "a dense model has none"


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
