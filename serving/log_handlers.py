"""Keeps Ray Serve's log alive while a library configures logging anew."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler


@contextmanager
def kept_targets(logger: logging.Logger) -> Iterator[None]:
    """Gives the buffers of `logger` their targets back at the end.

    vLLM calls `logging.config.dictConfig` when it makes an engine's configuration, which closes every handler there is.
    Serve writes a replica's log through a `MemoryHandler`; closed, that keeps each later line in memory, writes none.
    """
    buffers = [(handler, handler.target) for handler in logger.handlers if isinstance(handler, MemoryHandler)]
    try:
        yield
    finally:
        for handler, target in buffers:
            handler.setTarget(target)
            handler.flush()
