"""How many examples hypothesis tries: all of them in `make test`, a quarter when a developer is waiting."""

from __future__ import annotations

import os

FULL = os.environ.get("FULL") == "1"


def examples(number: int) -> int:
    """`number` in a full run (`FULL=1`), else a quarter of it."""
    return number if FULL else number // 4
