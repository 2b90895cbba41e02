"""The accelerators' names and their Ray custom resources, as the model files use them."""

from __future__ import annotations

from typing import Final

CPU: Final = "CPU"
ACCELERATORS: Final = ("T4", "L4", "A10G", "A100-40G", "A100-80G", CPU)
RESOURCE_PREFIX: Final = "accelerator_type:"

#: What one replica or worker bundle asks of its node's custom resource. It only steers; GPUs do the limiting.
STEERING_FRACTION: Final = 0.001

#: Names that RayLLM's shipped files used for node resources declared by hand.
LEGACY_RESOURCES: Final = {
    "accelerator_type_t4": "T4",
    "accelerator_type_l4": "L4",
    "accelerator_type_a10": "A10G",
    "accelerator_type_a10g": "A10G",
    "accelerator_type_a100": "A100-40G",
    "accelerator_type_a100_40g": "A100-40G",
    "accelerator_type_a100_80g": "A100-80G",
    "accelerator_type_a100_80g_aws": "A100-80G",
    "accelerator_type_cpu": CPU,
}


def resource_name(accelerator: str) -> str:
    """The Ray custom resource of an accelerator, e.g. `accelerator_type:L4`."""
    return f"{RESOURCE_PREFIX}{accelerator}"


def accelerator_of(resource: str) -> str | None:
    """The accelerator that a custom resource names (`accelerator_type:L4` → `L4`), else None."""
    name = resource.removeprefix(RESOURCE_PREFIX)
    return name if name != resource and name in ACCELERATORS else None
