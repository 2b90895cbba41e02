"""An end in time, whatever is waited for: the kernel's alarm raises `OutOfTime` in the main thread."""

from __future__ import annotations

import signal
import time


class OutOfTime(BaseException):
    """The time is up. Not an `Exception`: no server's own handling may swallow it."""


def arm(ends: float) -> None:
    """From now on `OutOfTime` is raised once at `ends` (of `time.monotonic`)."""

    def over(*_: object) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, ends - time.monotonic()))


def disarm() -> None:
    """Nothing is raised any more: what follows ends servers and must come to its end."""
    signal.setitimer(signal.ITIMER_REAL, 0)
