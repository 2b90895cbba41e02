"""`test_draft_bytes.py` runs this in its own process: it builds vLLM's draft classes without memory and prints their size.

    python -m tests.serving.draft_report CASES.jsonl

A case is a row of tests/unit/planning/fixtures/draft-truth.jsonl with its target's config. Models are built on torch's
meta device (shapes and dtypes alone), each in a fork, so that nothing of one is left for the next. What vLLM frees after
loading is left out: an embedding that it shares, and an output matrix that is the target's.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: Heads with an output matrix of their own; a draft model and Medusa share nothing.
OWN_HEAD = ("eagle3",)
SHARES_NOTHING = ("draft_model", "medusa")


def report(case: dict[str, Any]) -> dict[str, Any]:
    """Parameters and caches that the draft adds."""
    import torch
    from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    with tempfile.TemporaryDirectory() as folder:
        config: Any = EngineArgs(**arguments(case, Path(folder))).create_engine_config()
    speculative = config.speculative_config
    with set_current_vllm_config(config):
        parallel_state.init_distributed_environment(1, 0, "tcp://127.0.0.1:0", 0, "gloo")
        parallel_state.initialize_model_parallel(backend="gloo")
        with set_default_torch_dtype(torch.bfloat16), torch.device("meta"):
            initialize_model(config)
            before = set(get_layers_from_vllm_config(config, AttentionLayerBase))
            drafted = config if speculative.method == "medusa" else draft_config(config)
            prefix = "draft_model" if speculative.method == "draft_model" else ""
            model = initialize_model(drafted, model_config=speculative.draft_model_config, prefix=prefix)
        layers = get_layers_from_vllm_config(drafted, AttentionLayerBase)
        specs = [layer.get_kv_cache_spec(config) for name, layer in layers.items() if name not in before]
    kept = [tensor for name, tensor in model.named_parameters() if not shared(name, speculative.method)]
    caches = [spec for spec in specs if spec is not None]
    return {
        "elements": sum(tensor.numel() for tensor in kept),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in kept),
        "caches": len(caches),
        "kv_bytes_per_token": sum(spec.page_size_bytes / spec.block_size for spec in caches),
    }


def arguments(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """vLLM's arguments for a case, whose configs are written into the folder."""
    speculative = dict(case["speculative_config"])
    for name in ("target", "draft"):
        if name in case:
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(case[name]), encoding="utf-8")
    if "draft" in case:
        speculative["model"] = str(folder / "draft")
    return {
        "model": str(folder / "target"), "load_format": "dummy", "skip_tokenizer_init": True, "enforce_eager": True,
        "language_model_only": True, "max_model_len": 4096, "dtype": "bfloat16", "speculative_config": speculative,
    }  # fmt: skip


def draft_config(config: Any) -> Any:
    """The config under which vLLM's proposer builds its model."""
    from vllm.v1.spec_decode.draft_model import DraftModelProposer
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    drafts = config.speculative_config.method == "draft_model"
    proposer = object.__new__(DraftModelProposer if drafts else SpecDecodeBaseProposer)
    proposer.vllm_config, proposer.speculative_config = config, config.speculative_config
    return proposer._create_draft_vllm_config()


def shared(name: str, method: str) -> bool:
    """Whether vLLM puts the target's tensor in this one's place (`_maybe_share_embeddings`, `_maybe_share_lm_head`)."""
    if method in SHARES_NOTHING:
        return False
    head = "lm_head" in name or "shared_head.head" in name
    return "embed_tokens" in name or (head and method not in OWN_HEAD)


def answer(case: dict[str, Any], pipe: Connection) -> None:
    """In a fork: sends the report. A failure is printed, and ends the parent, which finds nothing in the pipe."""
    pipe.send(report(case))
    pipe.close()
    os._exit(0)  # without vLLM's handlers at exit


def main() -> None:
    """One line for each case."""
    import vllm.engine.arg_utils  # noqa: F401  loaded once, before the forks
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()  # a class is looked at here, where it is used
    fork = multiprocessing.get_context("fork")
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        here, there = fork.Pipe(duplex=False)
        child = fork.Process(target=answer, args=(json.loads(line), there))
        child.start()
        there.close()
        print("REPORT " + json.dumps(here.recv()), flush=True)
        child.join()


if __name__ == "__main__":
    main()
