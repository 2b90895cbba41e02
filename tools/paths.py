"""Where the tools keep things. Standard library only: the `pulumi` command imports it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""

STANDINS = ROOT / "tools" / "standin" / "bin"
"""One folder per stand-in, with the executable that the engine looks for."""


def tools_cache() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/modelfleet/tools`, shared by all clones; it might not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home).expanduser() / "modelfleet" / "tools"
