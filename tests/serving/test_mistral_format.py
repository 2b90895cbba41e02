"""A checkpoint in Mistral's own layout starts and answers in a replica's engine: params.json, consolidated weights, tekken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.serving.cluster import ENVIRONMENT, ROOT
from tests.serving.conftest import application, model

TEKKEN = "tekken_240911.json"
PARAMS = {
    "dim": 64, "n_layers": 2, "head_dim": 32, "hidden_dim": 128, "n_heads": 4, "n_kv_heads": 2,
    "norm_eps": 1e-05, "vocab_size": 131072, "rope_theta": 1000000.0, "max_seq_len": 1024,
}  # fmt: skip
#: What a replica does until it is ready, and a request.
WARM = """
import json, os
from modelfleet.serving.app import AppArgs
from modelfleet.serving.warm_up import warm
warm(AppArgs.model_validate(json.loads(os.environ["ARGS"])))
"""


def make_mistral_model(folder: Path) -> Path:
    """Random weights under Mistral's names of them, with a tokenizer that mistral_common ships."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(9)
    width, inner = PARAMS["dim"], PARAMS["hidden_dim"]
    heads, groups = (int(PARAMS[name] * PARAMS["head_dim"]) for name in ("n_heads", "n_kv_heads"))
    shapes: dict[str, tuple[float, ...]] = {
        "tok_embeddings.weight": (PARAMS["vocab_size"], width),
        "output.weight": (PARAMS["vocab_size"], width),
        "norm.weight": (width,),
    }
    for layer in range(int(PARAMS["n_layers"])):
        block = f"layers.{layer}"
        shapes |= {f"{block}.{name}.weight": (width,) for name in ("attention_norm", "ffn_norm")}
        shapes |= {
            f"{block}.attention.wq.weight": (heads, width),
            f"{block}.attention.wk.weight": (groups, width),
            f"{block}.attention.wv.weight": (groups, width),
            f"{block}.attention.wo.weight": (width, heads),
            f"{block}.feed_forward.w1.weight": (inner, width),
            f"{block}.feed_forward.w2.weight": (width, inner),
            f"{block}.feed_forward.w3.weight": (inner, width),
        }
    folder.mkdir()
    tensors = {name: torch.randn(*map(int, shape), dtype=torch.bfloat16) * 0.02 for name, shape in shapes.items()}
    save_file(tensors, folder / "consolidated.safetensors")
    (folder / "params.json").write_text(json.dumps(PARAMS), encoding="utf-8")
    shutil.copy(str(files("mistral_common") / "data" / TEKKEN), folder / "tekken.json")
    return folder


@pytest.mark.long(why="starts a vLLM of its own")
def test_a_checkpoint_in_mistrals_layout_answers(tmp_path: Path) -> None:
    ways = dict.fromkeys(("tokenizer_mode", "config_format", "load_format"), "mistral")
    engine: dict[str, Any] = {"engine_kwargs": {"dtype": "bfloat16", "max_num_seqs": 8, **ways}}
    args = application(model("test/mistral", make_mistral_model(tmp_path / "model"), engine=engine))["args"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        **ENVIRONMENT,
        "PYTHONPATH": str(ROOT),
        "ARGS": json.dumps(args),
    }
    ran = subprocess.run(
        [sys.executable, "-c", WARM], env=environment, capture_output=True, text=True, timeout=900, cwd=tmp_path
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said[-4000:]
    assert "/v1/completions: 200" in said, said[-2000:]
