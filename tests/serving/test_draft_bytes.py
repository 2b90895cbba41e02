"""What drafts take is still what vLLM's own draft classes hold: the rows that the planner's tests compare with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving.test_kv_bytes import ENVIRONMENT
from tools.probe.rows import FIXTURES, rows

CONFIGS = {row["config"]: row["content"] for row in rows(FIXTURES / "configs.jsonl")}
#: Of the rows those on one GPU whose target vLLM's CPU build makes: it has no sparse attention, and no vision library.
LEFT_OUT = ("V3.2", "GLM-5", "Qwen3.5")
ROWS = [row for row in rows(FIXTURES / "draft-truth.jsonl")
        if row["tp"] == 1 and not any(word in row["name"] for word in LEFT_OUT)]  # fmt: skip
KEYS = ("elements", "bytes", "caches", "kv_bytes_per_token")


def case(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its target's config, without quantization."""
    target = row.get("target") or {**CONFIGS[row["config"]], **row.get("changed", {})}
    dropped = ("quantization_config", "auto_map")
    return {**row, "target": {key: value for key, value in target.items() if key not in dropped}}


@pytest.mark.long(why="what a pinned vLLM says changes with the pin")
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_drafts_are_as_large_as_vllm_builds_them(tmp_path: Path) -> None:
    """The planner's rows were vLLM's answers once; a raised version must give them again."""
    cases = tmp_path / "cases.jsonl"
    cases.write_text("\n".join(json.dumps(case(row)) for row in ROWS), encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, "-m", "tests.serving.draft_report", str(cases)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    found = [json.loads(line[7:]) for line in answer.stdout.splitlines() if line.startswith("REPORT ")]
    assert len(found) == len(ROWS), answer.stderr[-3000:]
    names = [row["name"] for row in ROWS]
    assert dict(zip(names, found, strict=True)) == {row["name"]: {key: row[key] for key in KEYS} for row in ROWS}
