"""A random model of 7 MB with SmolLM2's tokenizer, and a random LoRA adapter for it: real to vLLM, quick to load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

VOCABULARY = 49152
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def make_tiny_model(folder: Path, tokenizer: Path) -> Path:
    """Writes the model into `folder`; two layers, so that tensor parallelism has something to split."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=2048, **SIZES)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer / name, folder / name)
    return folder


#: Ids of the tokens that begin and end a thought, of names that the tokenizer has for files of code.
START, END = 3, 5
THINKING = {'"<repo_name>"': '"<think>"', '"<file_sep>"': '"</think>"'}
TEMPLATE = """{% for message in messages %}{{ message.content }}
{% endfor %}{% if thinking %}<think>{% endif %}"""


def make_thinking_model(folder: Path, tiny: Path) -> Path:
    """The tiny model with tokens for thoughts; its template opens one at the prompt's end for `thinking: true`."""
    shutil.copytree(tiny, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in THINKING.items():
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def make_adapter(folder: Path, rank: int = 4) -> Path:
    """Writes a LoRA adapter for the queries, strong enough to change the tiny model's answers."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(8)
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, SIZES["num_attention_heads"] * SIZES["head_dim"])
        tensors[f"{name}.lora_B.weight"] = torch.randn(SIZES["hidden_size"], rank)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 64, "target_modules": ["o_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_expert_model(folder: Path, tokenizer: Path) -> Path:
    """A random mixture of four experts with the tiny model's tokenizer, of which each token takes two."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(9)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    config = MixtralConfig(vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=2048, **SIZES, **experts)
    MixtralForCausalLM(config).to(torch.float32).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer / name, folder / name)
    return folder
