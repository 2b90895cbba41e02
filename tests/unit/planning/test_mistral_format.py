"""Mistral's own layout: which files are copied, and what its params.json says of memory."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects

from modelfleet.infra.planning.mistral_format import config_of
from modelfleet.infra.reading.models import read_facts
from modelfleet.serving.config.checkpoint_files import FILES, weights_kind
from tests.unit.planning.builders import model, planned, pool, stack

BOTH = [
    "README.md", "config.json", "params.json", "consolidated.safetensors", "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tekken.json", "tokenizer.json",
]  # fmt: skip
#: mistralai/Mistral-7B-Instruct-v0.3's params.json.
PARAMS = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "norm_eps": 1e-05, "vocab_size": 32768, "rope_theta": 1000000.0, "max_seq_len": 32768,
}  # fmt: skip


def test_only_the_layout_that_the_engine_reads_is_copied() -> None:
    """A repository with both has all weights twice, and without its own layout vLLM found none."""
    wanted = {}
    for kind in ("model", "mistral"):
        files = FILES[kind]  # type: ignore[index]
        wanted[kind] = set(
            filter_repo_objects(BOTH, allow_patterns=files.wanted(BOTH), ignore_patterns=[*files.ignored])
        )
    assert {name for name in wanted["model"] if name.endswith(".safetensors")} == {BOTH[4], BOTH[5]}
    assert {name for name in wanted["mistral"] if name.endswith(".safetensors")} == {"consolidated.safetensors"}
    assert {"params.json", "tekken.json"} <= wanted["mistral"]
    plan = planned(
        [model("mistralai/x", "H100", engine_kwargs={"load_format": "mistral"})], stack(pool("h100", "H100"))
    )
    assert plan.models[0].mirror.kind == "mistral" and weights_kind({}) == "model"


def test_a_params_json_is_the_model_that_vllm_makes_of_it(tmp_path: Path) -> None:
    """Mistral 7B: 7.25e9 parameters, 131,072 bytes of cache a token, 32,768 tokens."""
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    one = model("mistralai/x", "H100", hf_model_id=str(tmp_path))
    facts, findings = read_facts([one], tmp_path)
    found = facts["mistralai/x"]
    assert found is not None and findings == []
    plan = planned([one], stack(pool("h100", "H100")), facts=facts).models[0]
    assert plan.memory is not None
    assert round(plan.memory.weights_mib * 2**20 / 2 / 1e9, 2) == 7.25
    assert (plan.memory.kv_bytes_per_token, plan.length) == (131072, 32768)


def test_of_another_architecture_nothing_is_assumed() -> None:
    assert config_of({**PARAMS, "moe": {"num_experts": 8}}) is None
    assert config_of({"model_type": "mamba"}) is None
