"""The rows that both halves of the probe read: vLLM's answers, and the config.json files that it was asked about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[2] / "tests" / "unit" / "planning" / "fixtures"
CONFIGS, TRUTH = FIXTURES / "configs.jsonl", FIXTURES / "kv-truth.jsonl"
#: `max_num_batched_tokens` of a row that does not name it.
BATCHED_TOKENS = 8192


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
