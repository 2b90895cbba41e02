"""How long a replica's start takes, step by step, up to the first request: one line in its log."""

from __future__ import annotations

import time

import psutil


class StartupClock:
    """Seconds by step, in order; the first step begins with the process itself."""

    def __init__(self) -> None:
        self._began = self._last = psutil.Process().create_time()
        self._steps: list[tuple[str, float]] = []

    def passed(self, step: str) -> None:
        """Notes that `step` ends now."""
        now = time.time()
        self._steps.append((step, now - self._last))
        self._last = now

    def line(self) -> str:
        """`ready 31.4 s after the start of its process: worker 2.1 s, weights 0.0 s, …`."""
        steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in self._steps)
        return f"ready {self._last - self._began:.1f} s after the start of its process: {steps}"
