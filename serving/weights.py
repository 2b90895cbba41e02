"""Where a replica's weights are: the model file's own path, mirrors, the stack's mirror, the Hub. No silent fallback."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.config.schema import ModelConfig
from serving.errors import WeightsError
from serving.mirror import fetch


def resolve(model: ModelConfig, weights: Mapping[str, Any]) -> str:
    """The folder (or Hub id) that vLLM loads. The first place that is named counts; when it fails, so does this."""
    engine = model.engine_config
    if os.path.isabs(engine.weights_id):
        return str(_local_folder(Path(engine.weights_id)))
    if mirror := weights.get("mirror"):
        return str(fetch(mirror, default_cache()))
    return engine.weights_id


def default_cache() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/modelfleet/models`, or `MODELFLEET_MODEL_CACHE`: one copy per node."""
    if chosen := os.environ.get("MODELFLEET_MODEL_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "modelfleet" / "models"


def _local_folder(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise WeightsError(f"hf_model_id: found {path}, which has no config.json on this node; correct the path")
    return path
