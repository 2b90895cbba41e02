"""How long reading a file may take."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if what is inside takes longer: only its thread's own work counts, not a collection of torch's garbage."""
    collects = gc.isenabled()
    gc.disable()
    started = time.thread_time()
    try:
        yield
        took = time.thread_time() - started
    finally:
        if collects:
            gc.enable()
    assert took < seconds, f"took {took:.2f} s"
