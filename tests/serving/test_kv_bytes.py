"""The memory check's arithmetic against vLLM itself: tiny models with random weights on the CPU build."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.facts import facts_from_config
from modelfleet.infra.planning.fit import Setting, memory_in, token_bytes
from modelfleet.infra.planning.memory.caches import Kind
from modelfleet.serving.config.accelerators import CPU, Accelerator
from tests.serving.kv_report import LENGTH

COMMON: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16",
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}
#: Grouped attention; every other layer with a window; experts; latent attention; one key head for all.
CONFIGS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {**COMMON, "model_type": "llama", "head_dim": 32},
    "Gemma2ForCausalLM": {
        **COMMON,
        "model_type": "gemma2",
        "head_dim": 32,
        "sliding_window": 128,
        "query_pre_attn_scalar": 32,
    },
    "MixtralForCausalLM": {**COMMON, "model_type": "mixtral", "head_dim": 32, "num_local_experts": 4},
    "DeepseekV2ForCausalLM": {**COMMON, "model_type": "deepseek_v2", **LATENT},
    "FalconForCausalLM": {
        "model_type": "falcon",
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 512,
        "torch_dtype": "bfloat16",
    },
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What vLLM reports for each model, from one process."""
    root = tmp_path_factory.mktemp("tiny")
    for name, config in CONFIGS.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    folders = [str(root / name) for name in CONFIGS]
    answer = subprocess.run(
        [sys.executable, "-m", "tests.serving.kv_report", *folders],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    lines = [json.loads(line[7:]) for line in answer.stdout.splitlines() if line.startswith("REPORT ")]
    assert len(lines) == len(CONFIGS), answer.stderr[-3000:]
    return dict(zip(CONFIGS, lines, strict=True))


@pytest.mark.long(why="what a pinned vLLM says changes with the pin")
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CONFIGS)
def test_kv_bytes_are_those_that_vllm_reports(reports: dict[str, dict[str, Any]], name: str) -> None:
    """Per token, of the layers with a window, and of one whole sequence with vLLM's own block size."""
    config = {**CONFIGS[name], "architectures": [name]}
    facts, report = facts_from_config(config, "test", default_catalog()), reports[name]
    processor = Accelerator(CPU, 0, 0, (0, 0))
    setting = Setting(processor, 1, LENGTH, 0.92, 64, 4, 2.0, "auto", None, True)
    memory = memory_in(facts, setting)
    assert token_bytes(facts, setting) == report["bytes_per_token"]
    windows = [cache for cache in memory.layout.caches if cache.kind is Kind.WINDOW]
    assert sum(cache.per_token for cache in windows) == report["windowed"]
    # vLLM's CPU backend takes larger blocks than a GPU's.
    caches = [dataclasses.replace(cache, block=report["block_tokens"]) for cache in memory.layout.caches]
    assert sum(cache.most(memory.demand) for cache in caches) == report["sequence_bytes"]
