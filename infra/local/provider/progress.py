"""Progress lines: no step is silent for more than a few seconds."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

SAY_EVERY_S = 4.0
SHOWN = 200
POLL_S = 0.5
#: A part of a line that goes on (`graphs now`).
GOES_ON = re.compile(r"\b(\w+) now\b")

T = TypeVar("T")


class Progress:
    """Shows each new line, and repeats the last one with the seconds so far while there is no new one.

    Where a line says `PART now`, it is shown as `PART 12 s so far`, from the first line that said so.
    `step` raises when the user stops the run: see `Call.step`.
    """

    def __init__(self, step: Callable[[str], None]) -> None:
        self._step = step
        self._began = time.monotonic()
        self._said_at = 0.0
        self._changed_at = self._began
        self._last = ""
        self._part, self._part_began = "", self._began
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
                self._step(f"{self._with_seconds(line, now)[:SHOWN]} ({now - self._began:.0f} s)")

    def _with_seconds(self, line: str, now: float) -> str:
        if (found := GOES_ON.search(line)) is None:
            return line
        if found[1] != self._part:
            self._part, self._part_began = found[1], now
        return f"{line[: found.start()]}{found[1]} {now - self._part_began:.0f} s so far{line[found.end() :]}"

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
