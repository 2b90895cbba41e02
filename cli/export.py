"""`modelfleet export`: what serves a model without modelfleet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from modelfleet.cli.check import files_of
from modelfleet.infra.interchange.export import to_ray_serve_llm, to_vllm
from modelfleet.serving.config.errors import Finding, InputErrors
from modelfleet.serving.config.load import LoadedModel, load_models
from modelfleet.serving.config.schema import slug_of
from modelfleet.serving.config.validation import near

_FORMATS = {"vllm": to_vllm, "ray-serve-llm": to_ray_serve_llm}


def run_export(model: str, *, to: Literal["vllm", "ray-serve-llm"], out: Path | None) -> int:
    """Print one model's command or file, or write it."""
    text = _FORMATS[to](_loaded(model))
    if out is None:
        sys.stdout.write(text)
        return 0
    out.write_text(text, encoding="utf-8")
    if to == "vllm":
        out.chmod(0o755)
    return 0


def _loaded(model: str) -> LoadedModel:
    """The model of a file, or the one in models/ with this id."""
    if Path(model).is_file():
        (loaded, *_) = load_models([Path(model)]).valid() or (None,)
        if loaded is None:
            raise InputErrors([Finding(model, 0, "enabled", "found false; such a model is in no stack: write true")])
        return loaded
    models = load_models(files_of(["models"])[0], Path.cwd()).models
    found = [one for one in models if model in (one.config.model_id, slug_of(one.config.model_id))]
    if not found:
        known = [one.config.model_id for one in models]
        raise InputErrors([Finding(model, 0, "", f"is no file and no model_id in models/; {near(model, known)}")])
    return found[0]
