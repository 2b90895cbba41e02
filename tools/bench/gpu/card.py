"""This machine's NVIDIA cards, as the driver's own library (NVML) names and counts them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from modelfleet.serving.config.accelerators import Accelerator, known_gpus
from modelfleet.serving.config.errors import SetupError

MIB = 2**20
NO_CARD = (
    "no NVIDIA card here: {why}; run this on a machine with one and its driver, "
    "or add --pretend to try the bench itself on the CPU"
)


@dataclass(frozen=True)
class Cards:
    """The cards of one machine, which are of one kind: NVML's name, their number, MiB of each, the driver."""

    name: str
    count: int
    total_mib: int
    driver: str

    @property
    def accelerator(self) -> Accelerator:
        """The row of the accelerators' table; for a card that is not in it, one made from its name and memory.

        Such a row has vLLM's smallest defaults and the oldest compute capability that the table has, so that what is
        planned for it is a guess; the bench's table says so by the card's name.
        """
        words = set(re.split(r"[\s-]+", self.name))
        known = next((one for one in known_gpus().values() if one.nvml and words.issuperset(one.nvml)), None)
        return known or Accelerator(f"{self.name} (not in the table)", self.total_mib, self.total_mib, (7, 5))


#: What `--pretend` calls its card.
PRETENDED = Cards("no card: vLLM's CPU build", 1, 0, "none")


def _nvml() -> Any:
    """Ray's copy of NVIDIA's binding, with which Ray itself counts the node's cards."""
    import ray._private.thirdparty.pynvml as nvml

    return nvml


def read_cards(nvml: Any = None) -> Cards:
    """The cards of this machine; raises `SetupError` in one line where there are none or no driver answers."""
    nvml = nvml or _nvml()
    try:
        nvml.nvmlInit()
        try:
            count = nvml.nvmlDeviceGetCount()
            if not count:
                raise SetupError(NO_CARD.format(why="its driver counts none"))
            first = nvml.nvmlDeviceGetHandleByIndex(0)
            total = nvml.nvmlDeviceGetMemoryInfo(first).total // MIB
            return Cards(_text(nvml.nvmlDeviceGetName(first)), count, total, _text(nvml.nvmlSystemGetDriverVersion()))
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise SetupError(NO_CARD.format(why=f"NVML says {error}")) from None


def used_mib(nvml: Any = None) -> list[int]:
    """MiB in use on each card now, whoever uses them; raises `SetupError` where no driver answers."""
    nvml = nvml or _nvml()
    try:
        nvml.nvmlInit()
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            return [nvml.nvmlDeviceGetMemoryInfo(one).used // MIB for one in handles]
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise SetupError(NO_CARD.format(why=f"NVML says {error}")) from None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
