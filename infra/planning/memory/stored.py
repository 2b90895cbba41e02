"""A checkpoint as another number format would store it: `quantization` at load, or a release that is thought of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modelfleet.infra.planning.memory.checkpoint import Checkpoint

_FOUR_BITS = {"bits": 4, "group_size": 128}
_INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {"all": {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}},
}
#: The quantization section of each name: vLLM's `quantization`, and the precisions of measurements.csv. None: plain.
SECTIONS: Mapping[str, Mapping[str, Any] | None] = {
    "bf16": None,
    "fp16": None,
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "experts_int8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "int8-w8a8": _INT8,
    "awq": {"quant_method": "awq", **_FOUR_BITS},
    "gptq": {"quant_method": "gptq", **_FOUR_BITS},
    "gptq-w4a16": {"quant_method": "gptq", **_FOUR_BITS},
    "int4-w4a16": {"quant_method": "gptq", **_FOUR_BITS},
    "gptq-int8": {"quant_method": "gptq", "bits": 8, "group_size": 128},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "mxfp4": {"quant_method": "mxfp4"},
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
}
#: Of these, what vLLM makes of a plain checkpoint when it loads it; the others need a checkpoint of their own.
AT_LOAD = frozenset({"fp8", "experts_int8", "bitsandbytes"})
_KEYS = ("quantization_config", "compression_config")


def stored_as(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The checkpoint with the section of that name in place of its own. Raises `KeyError` for another name."""
    raw = {key: value for key, value in checkpoint.raw.items() if key not in _KEYS}
    for key, value in raw.items():
        if isinstance(value, Mapping) and any(one in value for one in _KEYS):
            raw[key] = {inner: kept for inner, kept in value.items() if inner not in _KEYS}
    section = SECTIONS[name]
    return dataclasses.replace(checkpoint, raw=raw if section is None else {**raw, "quantization_config": section})
