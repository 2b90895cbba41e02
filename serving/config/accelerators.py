"""The accelerators of `data/accelerators.csv`: names, Ray custom resources, and facts about each GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from modelfleet.serving.config.catalogs import DATA, capability, csv_rows

#: Machines without a GPU; the only accelerator that is not in the table.
CPU: Final = "CPU"
RESOURCE_PREFIX: Final = "accelerator_type:"
#: RayLLM's shipped files began the names of hand-declared node resources with this.
LEGACY_PREFIX: Final = "accelerator_type_"

#: A replica's or worker's share of its node's custom resource. It only steers; the GPUs limit how many fit.
STEERING_FRACTION: Final = 0.001


@dataclass(frozen=True)
class Accelerator:
    """A GPU: memory in MiB as sold and as CUDA reports it, compute capability as (major, minor), EC2's name of it.

    `batched_tokens` and `sequences` are vLLM's defaults for a server on this card (`get_batch_defaults`); `formats` the
    number formats that its tensor cores compute in; `nvlink` whether its cards reach each other without PCIe; `nvml`
    the words of NVML's name by which it is known.
    """

    name: str
    memory_mib: int
    usable_mib: int
    compute_capability: tuple[int, int]
    batched_tokens: int = 2048
    sequences: int = 256
    ec2_gpu: str = ""
    rayllm: str = ""
    formats: tuple[str, ...] = ()
    nvlink: bool = False
    nvml: tuple[str, ...] = ()
    #: MiB that vLLM was measured to take on this card beside the plan's estimate (infra/planning/measured.py).
    reserve_more_mib: float = 0.0

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16 (vllm/platforms/cuda.py, check_if_supports_dtype)."""
        return self.compute_capability >= (8, 0)

    @property
    def fp8(self) -> bool:
        """Whether it has FP8 tensor cores (vllm/platforms/cuda.py, supports_fp8)."""
        return self.compute_capability >= (8, 9)


@cache
def known_gpus() -> Mapping[str, Accelerator]:
    """Every GPU of the table by its name, in the table's order."""
    return {
        row["accelerator"]: Accelerator(
            row["accelerator"],
            int(row["memory_mib"]),
            int(row["usable_mib"]),
            capability(row["compute_capability"]),
            int(row["batched_tokens"]),
            int(row["sequences"]),
            row["ec2_gpu"],
            row["rayllm"],
            tuple(row["formats"].split()),
            row["nvlink"] == "true",
            tuple(row["nvml"].split()),
        )
        for row in csv_rows(DATA / "accelerators.csv")
    }


def accelerators() -> tuple[str, ...]:
    """The names that model and stack files may use: every GPU's, and CPU."""
    return (*known_gpus(), CPU)


@cache
def legacy_resources() -> Mapping[str, str]:
    """Accelerators by the resource names that RayLLM's files used, e.g. `accelerator_type_a100_80g`."""
    usual = {f"{LEGACY_PREFIX}{name.lower().replace('-', '_')}": name for name in accelerators()}
    others = {f"{LEGACY_PREFIX}{word}": gpu.name for gpu in known_gpus().values() for word in gpu.rayllm.split()}
    return {**usual, **others}


def resource_name(accelerator: str) -> str:
    """The Ray custom resource of an accelerator, e.g. `accelerator_type:L4`."""
    return f"{RESOURCE_PREFIX}{accelerator}"


@cache
def accelerator_of(resource: str) -> str | None:
    """The accelerator that a custom resource names (`accelerator_type:L4` → `L4`), or else None."""
    name = resource.removeprefix(RESOURCE_PREFIX)
    return name if name != resource and name in accelerators() else None
