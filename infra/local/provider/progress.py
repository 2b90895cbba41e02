"""Progress lines: no step is silent for more than a few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

SAY_EVERY_S = 4.0
SHOWN = 200
POLL_S = 0.5

T = TypeVar("T")


class Progress:
    """Shows each new line, and repeats the last one with the seconds so far while there is no new one.

    `step` raises when the user stops the run: see `Call.step`.
    """

    def __init__(self, step: Callable[[str], None]) -> None:
        self._step = step
        self._began = time.monotonic()
        self._said_at = 0.0
        self._changed_at = self._began
        self._last = ""
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._began

    @property
    def unchanged_seconds(self) -> float:
        """Seconds since the last line that was new."""
        return time.monotonic() - self._changed_at

    def say(self, line: str) -> None:
        """Shows `line` at once if it is new, else every few seconds."""
        with self._lock:
            now = time.monotonic()
            if line != self._last:
                self._changed_at = now
            if line != self._last or now - self._said_at >= SAY_EVERY_S:
                self._said_at, self._last = now, line
                self._step(f"{line[:SHOWN]} ({self.seconds:.0f} s)")

    def during(self, work: Callable[[], T]) -> T:
        """Runs `work`, which reports with `say`, and repeats its last line while it is silent."""
        pool = ThreadPoolExecutor(1)
        running = pool.submit(work)
        pool.shutdown(wait=False)  # a stopped run does not wait for `work`: the plugin ends
        while True:
            try:
                return running.result(POLL_S)
            except TimeoutError:
                if running.done():
                    raise
                self.say(self._last)
