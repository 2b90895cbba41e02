"""Keeps Ray Serve's log alive while a library reconfigures logging."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler


@contextmanager
def kept_targets(logger: logging.Logger) -> Iterator[None]:
    """Restores the targets of the buffers of `logger` at the end.

    vLLM calls `logging.config.dictConfig` when it makes an engine's configuration, and that closes every handler. Serve
    writes a replica's log through a `MemoryHandler`; a closed one keeps every later line in memory and writes none.
    """
    buffers = [(handler, handler.target) for handler in logger.handlers if isinstance(handler, MemoryHandler)]
    try:
        yield
    finally:
        for handler, target in buffers:
            handler.setTarget(target)
            handler.flush()
