"""Towers for images and sound beside a decoder: their weights, counted as plain transformers from their own section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelfleet.infra.planning.memory.checkpoint import Checkpoint

SECTIONS = ("vision_config", "audio_config", "speech_config", "vision_encoder_config")


def encoder_elements(checkpoint: Checkpoint) -> int:
    """Parameters of all towers; 0 for a text model. An estimate: patches, projectors and norms differ by family."""
    found = [checkpoint.raw.get(key) for key in SECTIONS]
    return sum(_tower(section, checkpoint.hidden) for section in found if isinstance(section, Mapping))


def _tower(section: Mapping[str, Any], out: int) -> int:
    width = _first(section, "hidden_size", "embed_dim", "d_model", "encoder_hidden_dim")
    depth = _first(section, "num_hidden_layers", "depth", "encoder_layers", "num_layers")
    inner = _first(section, "intermediate_size", "encoder_ffn_dim") or 4 * width
    if not width or not depth:
        return 0
    merge = _first(section, "spatial_merge_size") or 1
    projector = (merge * merge * width) * (merge * merge * width) + merge * merge * width * out
    return depth * (4 * width * width + 2 * width * inner) + projector


def _first(section: Mapping[str, Any], *names: str) -> int:
    found = next((section[name] for name in names if isinstance(section.get(name), int)), 0)
    return int(found)
