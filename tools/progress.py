"""The tools' progress on stderr: live on a terminal, plain lines elsewhere.

with Step("building the Pulumi CLI") as step:
    ...                      # prints a line every few seconds while it runs
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console

HEARTBEAT_SECONDS = 5.0


def console() -> Console:
    """Returns a console on the current stderr; it honours NO_COLOR and is plain without a terminal."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Prints one line on stderr, without markup."""
    console().print(message, markup=False)


class Step:
    """Work that may take long: prints when it starts, that it is still running, and how long it took."""

    def __init__(self, title: str, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._title = title
        self._heartbeat_seconds = heartbeat_seconds
        self._started = time.monotonic()
        self._done = threading.Event()
        self._detail = ""
        self._thread: threading.Thread | None = None

    def detail(self, text: str) -> None:
        """Sets what it is working on; shown in the next progress line."""
        self._detail = text

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
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
