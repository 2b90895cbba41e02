"""What vLLM is asked: a config.json, a length, a batch and a number of GPUs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelfleet.serving.config.errors import SetupError
from tools.probe.rows import BATCHED_TOKENS, rows


@dataclass(frozen=True)
class Question:
    """One model on one GPU, that is on one rank of `ranks`. `length` and `batched_tokens` are tokens.

    With `data_ranks` it is the first of so many data parallel ones; `experts_whole` is `enable_expert_parallel`.
    """

    model: str = ""
    content: dict[str, Any] | None = None
    length: int = 8192
    batched_tokens: int = BATCHED_TOKENS
    kv_gib: float = 60.0
    ranks: int = 1
    rank: int = 0
    data_ranks: int = 1
    experts_whole: bool = False
    config: str = ""
    note: str = ""
    """Why its weights are not compared (`weights_note`), kept from the row that it comes from."""

    def row(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer between what a row says of its question."""
        more: dict[str, Any] = {"tp": self.ranks} if self.ranks > 1 else {}
        more |= {"dp": self.data_ranks} if self.data_ranks > 1 else {}
        more |= {"expert_parallel": True} if self.experts_whole else {}
        batch = {"batched_tokens": self.batched_tokens} if self.batched_tokens != BATCHED_TOKENS else {}
        note = {"weights_note": self.note} if self.note else {}
        return {"model": self.model, **answer, **more, "config": self.config or self.model, **batch, **note}


def again(truth: Path, configs: Path, only: str) -> list[tuple[Question, dict[str, Any]]]:
    """The questions that rows of a truth file answer, each with its row. Raises `SetupError` for an unknown config."""
    contents = {row["config"]: row["content"] for row in _read(configs, "config", "content")}
    asked = [row for row in _read(truth, "model", "config", "max_model_len", "kv_gib") if re.search(only, row["model"])]
    unknown = sorted({row["config"] for row in asked} - contents.keys())
    if unknown:
        raise SetupError(f"{configs} lacks {', '.join(unknown)}, which {truth} has: add lines {{config, content}}")
    return [(_question(row, contents[row["config"]]), row) for row in asked]


def _question(row: dict[str, Any], content: dict[str, Any]) -> Question:
    return Question(
        row["model"], content, row["max_model_len"], row.get("batched_tokens", BATCHED_TOKENS), row["kv_gib"],
        row.get("tp", 1), config=row["config"], note=row.get("weights_note", ""),
    )  # fmt: skip


def listed(configs: Path, only: str, like: Question) -> list[Question]:
    """Questions about the lines {config, content} of a file, with the length, batch and ranks of `like`."""
    return [
        replace(like, model=row["config"], content=row["content"])
        for row in _read(configs, "config", "content")
        if re.search(only, row["config"])
    ]


def single(path: Path, like: Question) -> Question:
    """The question about one config.json or the folder in which it lies."""
    file = path / "config.json" if path.is_dir() else path
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    try:
        return replace(like, model=name, content=json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as problem:
        raise SetupError(f"{file}: {problem}; give a model's config.json or its folder") from problem


def _read(path: Path, *keys: str) -> list[dict[str, Any]]:
    try:
        found = rows(path)
    except (OSError, ValueError) as problem:
        raise SetupError(f"{path}: {problem}; it must have one JSON object a line") from problem
    for number, row in enumerate(found, start=1):
        if missing := [key for key in keys if key not in row]:
            raise SetupError(f"{path}:{number}: no {', '.join(missing)}")
    return found
