"""How every test waits: for something that it can see, until a deadline. No test sleeps for a fixed time and hopes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Seen = TypeVar("Seen")


def wait_until(
    condition: Callable[[], Seen],
    *,
    what: str,
    seconds: float = 60.0,
    retry: type[Exception] | tuple[type[Exception], ...] = (),
    every_s: float = 0.05,
) -> Seen:
    """The first true value of `condition`; an `AssertionError` that says `what` did not happen within `seconds`.

    An exception of `retry` counts as not yet; the last one is the cause of the failure.
    """
    deadline = time.monotonic() + seconds
    while True:
        error: Exception | None = None
        try:
            if seen := condition():
                return seen
        except retry as raised:
            error = raised
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s{f' ({error})' if error else ''}") from error
        time.sleep(every_s)


def logged(log: Path, request_id: str) -> dict[str, Any]:
    """The entry of a request in a gateway's access log, once it exists."""

    def look() -> dict[str, Any] | None:
        entries = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
        return next((entry for entry in entries if entry.get("request_id") == request_id), None)

    return wait_until(look, what=f"a log entry for {request_id}") or {}
