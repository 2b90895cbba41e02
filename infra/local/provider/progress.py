"""Waiting with a voice: no step is silent for more than a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

SAY_EVERY_S = 4.0
SHOWN = 200


class Progress:
    """Passes lines on when they are new, and repeats the last one with the time it takes when nothing is.

    `step` raises when the user stops the run: see `Call.step`.
    """

    def __init__(self, step: Callable[[str], None]) -> None:
        self._step = step
        self._began = time.monotonic()
        self._said_at = 0.0
        self._last = ""

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def say(self, line: str) -> None:
        """Shows `line` at once if it is new, else every few seconds."""
        now = time.monotonic()
        if line != self._last or now - self._said_at >= SAY_EVERY_S:
            self._step(f"{line[:SHOWN]} ({self.seconds:.0f} s)")
            self._said_at, self._last = now, line
