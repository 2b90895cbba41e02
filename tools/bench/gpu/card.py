"""This machine's NVIDIA cards, as the driver's own library (NVML) names and counts them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from modelfleet.infra.planning.cards import Card, accelerator_of
from modelfleet.serving.config.accelerators import Accelerator, known_gpus
from modelfleet.serving.config.errors import SetupError

MIB = 2**20
NO_CARD = (
    "no NVIDIA card here: {why}; run this on a machine with one and its driver, "
    "or add --pretend to try the bench itself on the CPU"
)


@dataclass(frozen=True)
class Cards:
    """The cards of one machine, which are of one kind: NVML's name, their number, MiB of each, the driver.

    `capability` is CUDA's compute capability, (0, 0) where nobody asked.
    """

    name: str
    count: int
    total_mib: int
    driver: str
    capability: tuple[int, int] = (0, 0)

    @property
    def accelerator(self) -> Accelerator:
        """The planner's: the row of the table, or one made of the card's own facts, whose name says so."""
        found = accelerator_of(Card("", self.name, self.total_mib, self.capability), known_gpus())
        return found if found.name in known_gpus() else replace(found, name=f"{self.name} (not in the table)")


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
            name, driver = _text(nvml.nvmlDeviceGetName(first)), _text(nvml.nvmlSystemGetDriverVersion())
            return Cards(name, count, total, driver, tuple(nvml.nvmlDeviceGetCudaComputeCapability(first)))
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
