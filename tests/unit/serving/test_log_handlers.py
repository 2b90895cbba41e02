"""A replica's log continues after a library has reconfigured logging."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest

from modelfleet.serving.log_handlers import kept_targets


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[logging.Logger]:
    """Like the logger that Ray Serve gives a replica: a file behind a buffer that every line flushes."""
    made = logging.getLogger("replica-of-a-test")
    made.setLevel(logging.INFO)
    handler = MemoryHandler(1, target=logging.FileHandler(tmp_path / "replica.log"))
    made.addHandler(handler)
    yield made
    made.removeHandler(handler)
    handler.close()


def test_lines_after_a_new_configuration_reach_the_file_and_use_no_memory(
    logger: logging.Logger, tmp_path: Path
) -> None:
    with kept_targets(logger):
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        logger.info("meanwhile")
    logger.info("afterwards")
    assert (tmp_path / "replica.log").read_text() == "meanwhile\nafterwards\n"
    (buffer,) = logger.handlers
    assert isinstance(buffer, MemoryHandler) and buffer.buffer == []
