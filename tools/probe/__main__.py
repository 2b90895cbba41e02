"""Ours beside vLLM's, for every row that vLLM's own KV-cache specs answered.

    python -m tools.probe [--all] [--only REGEX] [--configs FILE --truth FILE]

Prints the rows that differ (all with --all); exit 1 when one does. Part of "Raising vLLM": `python -m tools.probe.ask`
asks the new version the same questions.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.memory.answer import ModelMemory
from modelfleet.infra.planning.memory.checkpoint import Checkpoint, UnknownShapeError
from modelfleet.infra.planning.memory.drafts import Draft, draft_size, method_of
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.serving.versions import PINNED
from tools.probe.rows import BATCHED_TOKENS, CONFIGS, FIXTURES, TRUTH, rows

EXACT = (
    "block_size", "mamba_mode", "kv_dtype", "layers_with_cache", "layers_sharing_kv", "growing_bytes_per_token",
    "state_bytes_per_sequence", "window_bytes_per_sequence", "request_bytes",
)  # fmt: skip
#: Relative tolerance of KV tokens, and absolute ones of what vLLM's row rounds to three digits.
TOKENS, ROUNDED = 0.005, 0.0015


def ours(content: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """Our row for the question that a row of vLLM's answered. Raises `UnknownShapeError`."""
    checkpoint = Checkpoint(content, default_catalog().architecture_defaults)
    batch = truth.get("batched_tokens", BATCHED_TOKENS)
    engine = EngineArguments(length=truth["max_model_len"], batched_tokens=batch, ranks=truth.get("tp", 1))
    return ModelMemory(checkpoint, engine).row(truth["kv_gib"]).as_json()


def differences(mine: dict[str, Any], truth: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys that differ: ours and vLLM's."""
    found = {key: (mine[key], truth[key]) for key in EXACT if mine[key] != truth[key]}
    if abs(mine["kv_tokens"] / truth["kv_tokens"] - 1) > TOKENS:
        found["kv_tokens"] = (mine["kv_tokens"], truth["kv_tokens"])
    if "weights_note" not in truth:
        close = {key: abs(mine[key] - truth[key]) <= ROUNDED for key in ("params_b", "weights_gib")}
        found |= {key: (mine[key], truth[key]) for key, equal in close.items() if not equal}
    return found


def draft_target(truth: dict[str, Any], configs: dict[str, Any]) -> Checkpoint:
    """The model that a row of draft-truth.jsonl drafts for: without a quantization section, as vLLM was asked."""
    content = truth.get("target") or {**configs[truth["config"]], **truth.get("changed", {})}
    plain = {key: value for key, value in content.items() if key != "quantization_config"}
    return Checkpoint(plain, default_catalog().architecture_defaults)


def our_draft(truth: dict[str, Any], configs: dict[str, Any]) -> dict[str, Any]:
    """What a draft adds on one GPU, by our arithmetic."""
    own = Checkpoint(truth["draft"], default_catalog().architecture_defaults) if "draft" in truth else None
    draft = Draft(method_of(truth["speculative_config"], own), own)
    target, engine = draft_target(truth, configs), EngineArguments(BATCHED_TOKENS, ranks=truth["tp"])
    size, alone = draft_size(draft, target, engine), ModelMemory(target, engine).layout.caches
    more = ModelMemory(target, engine, draft).layout.caches[len(alone) :]
    per_token = sum(cache.per_token for cache in more)
    return {"elements": size.elements, "bytes": size.bytes, "caches": len(more), "kv_bytes_per_token": per_token}


def main() -> None:
    """Compares, prints and ends with 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print equal rows too")
    parser.add_argument("--only", default="", help="a regular expression that a model's name must match")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="lines {config, content}")
    parser.add_argument("--truth", type=Path, default=TRUTH, help="vLLM's rows")
    options = parser.parse_args()
    configs = {row["config"]: row["content"] for row in rows(options.configs)}
    asked = [row for row in rows(options.truth) if row["config"] in configs and re.search(options.only, row["model"])]
    wrong = 0
    for truth in asked:
        try:
            found = differences(mine := ours(configs[truth["config"]], truth), truth)
        except UnknownShapeError as problem:
            found, mine = {"unknown": (str(problem), "")}, {}
        wrong += bool(found)
        if found or options.all:
            _print(truth, mine, found)
    print(f"{len(asked) - wrong} of {len(asked)} rows equal vLLM {PINNED['vllm']}'s")
    sys.exit(1 if wrong + _drafts(options.only) else 0)


def _drafts(only: str) -> int:
    """Prints the drafts that differ; returns their number."""
    configs = {row["config"]: row["content"] for row in rows(CONFIGS)}
    asked = [row for row in rows(FIXTURES / "draft-truth.jsonl") if re.search(only, row["name"])]
    wrong = [(row, mine) for row in asked if (mine := our_draft(row, configs)) != {key: row[key] for key in mine}]
    for row, mine in wrong:
        print(f"≠ {row['name']} tp {row['tp']}  " + "  ".join(f"{key} {mine[key]}/{row[key]}" for key in mine))
    print(f"{len(asked) - len(wrong)} of {len(asked)} drafts equal vLLM {PINNED['vllm']}'s")
    return len(wrong)


def _print(truth: dict[str, Any], mine: dict[str, Any], found: dict[str, tuple[Any, Any]]) -> None:
    shown = {key: (mine.get(key), truth.get(key)) for key in (*EXACT[5:], "kv_tokens", "weights_gib")} | found
    cells = "  ".join(f"{key} {one}/{other}" for key, (one, other) in shown.items())
    print(f"{'≠' if found else '='} {truth['model']} tp {truth.get('tp', 1)}  {cells}")


if __name__ == "__main__":
    main()
