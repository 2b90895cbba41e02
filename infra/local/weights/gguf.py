"""GGUF file → Hugging Face folder (bf16 safetensors, tokenizer, chat template).

Runs in its own process (`python gguf.py FILE FOLDER`): torch and transformers are heavy, and must not stay in the
caller's memory.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(file: Path, folder: Path) -> None:
    """Reads the quantised GGUF `file`, writes plain bf16 weights and the tokenizer into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    # The weights are unpacked to bf16; a kept quantization config would make vLLM look for packed ones.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
