"""The tensors of a model on one GPU, and how many bytes each has in the checkpoint's number format.

A `Part` is one module of vLLM with its sizes on one rank; `Format` says what quantization makes of it. Source: the
`create_weights` methods in vllm/model_executor/layers/quantization of vLLM 0.32.0. Bytes are those that vLLM creates,
before a kernel repacks them.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from modelfleet.infra.planning.memory.checkpoint import Checkpoint

HALF, SINGLE = 2, 4
FP8_BLOCK = 128
#: Names in front of a module's own path, which checkpoints and vLLM spell differently.
PREFIX = re.compile(r"^(?:(?:model|language_model|text_model|backbone|thinker|llm|transformer)\.)+")


@dataclass(frozen=True)
class Part:
    """`copies` matrices of `outputs` x `inputs`, with `bias` elements each; `linear` parts may be quantized."""

    name: str
    outputs: int
    inputs: int = 1
    copies: int = 1
    bias: int = 0
    value: int = HALF
    linear: bool = True
    expert: bool = False
    pieces: int = 1
    """Matrices that vLLM merged into this one: each has a scale of its own in some formats."""

    @property
    def elements(self) -> int:
        """Elements of the unquantized weight."""
        return self.copies * self.outputs * self.inputs


def plain(name: str, elements: int, value: int = HALF) -> Part:
    """A tensor that no method quantizes: norms, biases, routers, convolutions."""
    return Part(name, elements, value=value, linear=False)


@dataclass(frozen=True)
class Size:
    """Elements as stored, and their bytes."""

    elements: int
    bytes: float

    def __add__(self, other: Size) -> Size:
        return Size(self.elements + other.elements, self.bytes + other.bytes)


@dataclass(frozen=True)
class Format:
    """How a checkpoint stores its linear layers. `kind` "" means plain; `skipped` are patterns of names left plain."""

    kind: str = ""
    bits: int = 16
    group: int = 128
    zeros: bool = False
    skipped: tuple[str, ...] = ()
    experts_only: bool = False
    head: bool = False
    scale_bytes: int = SINGLE
    experts: str = ""
    """Another kind for the experts, where a checkpoint mixes two."""
    cache: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(PREFIX.sub("", name) for name in self.skipped if not re.search(r"[*:]", name))

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        found = []
        for name in self.skipped:
            if name.startswith("re:"):
                found.append(re.compile(name[3:]))
            elif "*" in name:
                found.append(re.compile(fnmatch.translate(PREFIX.sub("", name.lstrip("*.")))))
        return found

    def leaves(self, name: str) -> bool:
        """Whether a module stays plain."""
        found = self.cache.get(name)
        if found is None:
            parents = name.split(".")
            whole = any(".".join(parents[: end + 1]) in self._exact for end in range(len(parents)))
            loose = any(part in self._exact for part in parents)
            spelled = (name, f"{name}.0.gate_proj", f"model.{name}")
            found = whole or loose or any(p.match(one) for p in self._patterns for one in spelled)
            self.cache[name] = found
        return found

    def size(self, part: Part) -> Size:
        """What a part takes."""
        bias = Size(part.bias * part.copies, part.bias * part.copies * HALF)
        kind = self.kind
        if part.expert and self.experts:
            kind = self.experts
        skipped = not kind or not part.linear or (self.experts_only and not part.expert) or self.leaves(part.name)
        if skipped:
            return Size(part.elements, part.elements * part.value) + bias
        return _STORED[kind](part, self) + bias


def _fp8_blocks(part: Part, form: Format) -> Size:
    # An expert's width that is no multiple of a block gets smaller ones (MiniMax-M2 on 8 GPUs: 192, blocks of 64).
    block = math.gcd(FP8_BLOCK, part.outputs // part.pieces, part.inputs) if part.expert else FP8_BLOCK
    scales = part.copies * part.pieces * -(-part.outputs // (block * part.pieces)) * -(-part.inputs // block)
    return Size(part.elements + scales, part.elements + scales * form.scale_bytes)


def _eight_bit_channels(part: Part, _: Format) -> Size:
    scales = part.copies * part.outputs
    return Size(part.elements + scales, part.elements + scales * SINGLE)


def _eight_bits(part: Part, _: Format) -> Size:
    return Size(part.elements + 2 * part.copies * part.pieces, part.elements + 2 * part.copies * part.pieces * SINGLE)


def _nvfp4(part: Part, _: Format) -> Size:
    packed, scales, tensors = part.elements // 2, part.elements // 16, 2 * part.copies * part.pieces
    return Size(packed + scales + tensors, packed + scales + tensors * SINGLE)


def _mxfp4(part: Part, _: Format) -> Size:
    packed, scales = part.elements // 2, part.elements // 32
    return Size(packed + scales, packed + scales)


def _mxfp8(part: Part, _: Format) -> Size:
    scales = part.elements // 32
    return Size(part.elements + scales, part.elements + scales)


def _packed(part: Part, form: Format) -> Size:
    """Integers in groups: 32-bit words of weights, half-precision scales, zero points where the method has them."""
    words = part.elements * form.bits // 32
    scales = part.copies * part.outputs * -(-part.inputs // form.group if form.group > 0 else 1)
    zeros = scales * form.bits // 32 if form.zeros else 0
    return Size(words + scales + zeros, 4 * words + HALF * scales + 4 * zeros)


_STORED = {
    "fp8-blocks": _fp8_blocks,
    "fp8-channels": _eight_bit_channels,
    "int8-channels": _eight_bit_channels,
    "8-bit": _eight_bits,
    "nvfp4": _nvfp4,
    "mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
    "packed": _packed,
}


def format_of(checkpoint: Checkpoint) -> Format:
    """The number format of a checkpoint's weights, from its quantization section."""
    section = checkpoint.quantization
    method = str(section.get("quant_method") or section.get("quant_type") or "").lower()
    skipped = tuple(str(one) for one in _skipped(section))
    if not method:
        return Format()
    if method == "fp8" and checkpoint.model_type.startswith("deepseek_v4"):
        experts = {"NVFP4": "nvfp4"}.get(str(section.get("moe_quant_algo")), "mxfp4")
        return Format("fp8-blocks", 8, skipped=(), scale_bytes=1, experts=experts)
    if method in ("fp8", "fbgemm_fp8"):
        kind = "fp8-blocks" if section.get("weight_block_size") else "fp8-channels" if "fbgemm" in method else "8-bit"
        return Format(kind, 8, skipped=skipped)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        return Format("mxfp4", 4, skipped=skipped, experts_only=True)
    if method.startswith("modelopt"):
        return _modelopt(section, skipped)
    if method == "compressed-tensors":
        return _compressed(section, skipped)
    if method in ("awq", "gptq", "auto-round", "autoround", "awq_marlin", "gptq_marlin", "moe_wna16", "auto_awq"):
        bits = int(section.get("bits") or section.get("w_bit") or 4)
        group = int(section.get("group_size") or section.get("q_group_size") or 128)
        return Format("packed", bits, group, zeros=True, skipped=skipped)
    if method in ("bitsandbytes", "hqq", "torchao", "quark", "modelopt_fp4"):
        bits = 4 if section.get("load_in_4bit") or section.get("_load_in_4bit") else 8
        return Format("packed" if bits == 4 else "8-bit", bits, 64, skipped=skipped)
    return Format("8-bit", 8, skipped=skipped)


def _skipped(section: Mapping[str, Any]) -> Iterable[Any]:
    for key in ("ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules"):
        found = section.get(key)
        if isinstance(found, list):
            yield from found


def _modelopt(section: Mapping[str, Any], skipped: tuple[str, ...]) -> Format:
    inner = section.get("quantization")
    inner = inner if isinstance(inner, Mapping) else section
    algorithm = str(inner.get("quant_algo") or section.get("quant_algo") or "").upper()
    group = _weights(section)
    if "NVFP4" in algorithm or group.get("num_bits") == 4:
        return Format("nvfp4", 4, 16, skipped=skipped)
    return Format("mxfp8" if "MXFP8" in algorithm else "8-bit", 8, skipped=skipped)


def _compressed(section: Mapping[str, Any], skipped: tuple[str, ...]) -> Format:
    """compressed-tensors: the scheme is in its groups."""
    weights = _weights(section)
    bits, kind = int(weights.get("num_bits") or 8), str(weights.get("type"))
    form = str(section.get("format") or "")
    group = int(weights.get("group_size") or -1)
    if "mxfp4" in form:
        return Format("mxfp4", 4, 32, skipped=skipped, experts_only=True)
    if "nvfp4" in form or (bits == 4 and kind == "float" and group == 16):
        return Format("nvfp4", 4, 16, skipped=skipped)
    if kind == "int" and ("pack" in form or bits == 4):
        return Format("packed", bits, group, zeros=weights.get("symmetric") is False, skipped=skipped)
    if kind == "int":
        return Format("int8-channels", 8, skipped=skipped)
    return Format("fp8-blocks" if weights.get("strategy") == "block" else "fp8-channels", 8, skipped=skipped)


def _weights(section: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = section.get("config_groups") or {}
    found = next((one.get("weights") for one in groups.values() if one.get("weights")), None)
    return found if isinstance(found, Mapping) else {}
