"""What the plugin keeps between calls of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LocalSession:
    """The checkout that the plugin runs from: other programs of it are started there."""

    root: Path
