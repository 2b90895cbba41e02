"""What the tools say while they work: on stderr, alive on a terminal, plain lines elsewhere.

with Step("building the Pulumi CLI") as step:
    ...                      # every few seconds a line tells that it still runs
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console

HEARTBEAT_SECONDS = 5.0


def console() -> Console:
    """A console on the current stderr, which honours NO_COLOR and is plain where there is no terminal."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line on stderr, as it is (no markup)."""
    console().print(message, markup=False)


class Step:
    """A piece of work that may take long: says that it starts, that it goes on, and how long it took."""

    def __init__(self, title: str, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._title = title
        self._heartbeat_seconds = heartbeat_seconds
        self._started = time.monotonic()
        self._done = threading.Event()
        self._detail = ""
        self._thread: threading.Thread | None = None

    def detail(self, text: str) -> None:
        """What it is at just now; shown with the next sign of life."""
        self._detail = text

    def __enter__(self) -> Step:
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        word = "done" if error is None else "failed"
        say(f"{self._title}: {word} after {self._seconds():.0f} s")

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _line(self) -> str:
        detail = f" ({self._detail})" if self._detail else ""
        return f"{self._title}{detail}: {self._seconds():.0f} s"

    def _show(self) -> None:
        if sys.stderr.isatty():
            with console().status("") as status:
                while not self._done.wait(0.2):
                    status.update(self._line().replace("[", "\\["))
            return
        say(f"{self._title} …")
        while not self._done.wait(self._heartbeat_seconds):
            say(self._line())
