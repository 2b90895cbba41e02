"""How long reading a file may take, and how much a command may compute."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: CPU seconds of `_lap` on the machine for which the limits were written.
LAP_S = 0.05


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if what is inside takes longer: only its thread's own work counts, not a collection of torch's garbage.

    On a machine that is slower just then, as where two threads share a core, the limit is as much higher.
    """
    collects = gc.isenabled()
    gc.disable()
    started = time.thread_time()
    try:
        yield
        took = time.thread_time() - started
    finally:
        if collects:
            gc.enable()
    if took >= seconds:  # thousands of files are read within it, and a lap takes longer than each
        allowed = seconds * slowness()
        assert took < allowed, f"took {took:.2f} s of {allowed:.2f} s"


def slowness() -> float:
    """How many times longer this machine computes now than the one for which limits were written; 1 at least."""
    return max(1.0, _lap() / LAP_S)


def _lap() -> float:
    started = time.thread_time()
    sum({str(number): number for number in range(200_000)}.values())
    return time.thread_time() - started
