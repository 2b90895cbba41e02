"""Which accelerator a file means by labels, instance types, resource names or an image."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from modelfleet.infra.catalog import default_catalog
from modelfleet.serving.config.accelerators import CPU, known_gpus

#: GPUs by the words of their makers and clouds, to say what a file ran on when we do not know it.
_GPU = re.compile(
    r"\b(?:[ABHL]\d{1,3}S?|A10G|T4G?|V100|P100|GH200|GB[23]00|MI\d{3}X?|RTX[ -]?\w+|gaudi\d?|v\de?)\b", re.IGNORECASE
)
_OTHER_MAKERS = (
    ("AMD", re.compile(r"amd\.com/gpu|rocm|\bmi\d{3}x?\b", re.IGNORECASE)),
    ("Google TPU", re.compile(r"google\.com/tpu|gke-tpu|vllm-tpu", re.IGNORECASE)),
    ("Intel Gaudi", re.compile(r"habana|gaudi", re.IGNORECASE)),
    ("AWS Neuron", re.compile(r"neuron", re.IGNORECASE)),
    ("Intel XPU", re.compile(r"gpu\.intel\.com|xpu", re.IGNORECASE)),
    ("Huawei Ascend", re.compile(r"ascend|huawei\.com/npu", re.IGNORECASE)),
    ("Rebellions", re.compile(r"rebellions", re.IGNORECASE)),
)
_CPU_IMAGE = re.compile(r"vllm[-_/](openai-)?cpu|-cpu(-|:|@|$)|cpu-(env|release)", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """What a file runs on: an accelerator of ours or "", and the words for people where it is none or not clear."""

    accelerator: str = ""
    found: str = ""


def machine_of(hardware: Iterable[str], image: str, gpus: int | None) -> Machine:
    """The accelerator that the words name; an image only names a maker, or the CPU."""
    words = [word for word in hardware if word]
    for maker, pattern in _OTHER_MAKERS:
        if any(pattern.search(word) for word in (*words, image)):
            return Machine("", f"it ran on {maker}")
    if not gpus and _CPU_IMAGE.search(image):
        return Machine(CPU)
    named = {name for word in words for name in _named(word)}
    if len(named) == 1:
        return Machine(named.pop())
    if named:
        return Machine("", f"it may be {' or '.join(sorted(named))}")
    seen = sorted({match[0].upper() for word in words for match in _GPU.finditer(word.replace("_", "-"))})
    return Machine("", f"it ran on {', '.join(seen)}, which is not in the catalog" if seen else "")


def _named(word: str) -> set[str]:
    """Our accelerators that one word names: `g5.2xlarge`, `nvidia-l4`, `NVIDIA-A100-SXM4-80GB`, `A100`."""
    if word in _instance_types():
        return {_instance_types()[word]}
    plain = re.sub(r"[^A-Z0-9]+", " ", word.upper())
    found = set()
    for name in known_gpus():
        base, _, size = name.partition("-")
        if not re.search(rf"\b{base}\b", plain):
            continue
        sizes = re.findall(r"\b(\d{2,3}) ?GB?\b", plain)
        if not size or not sizes or size.rstrip("G") in sizes:
            found.add(name)
    return found


@cache
def _instance_types() -> dict[str, str]:
    return {name: one.accelerator for name, one in default_catalog().instance_types.items() if one.accelerator}
