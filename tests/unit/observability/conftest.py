"""Prometheus and promtool, where this machine can have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelfleet.serving.config.errors import SetupError
from tools.prometheus import prometheus


def _program(name: str) -> Path:
    try:
        return prometheus(name)
    except SetupError as error:
        pytest.skip(f"no {name}: {error}")


@pytest.fixture(scope="session")
def promtool() -> Path:
    """The real promtool."""
    return _program("promtool")


@pytest.fixture(scope="session")
def prometheus_server() -> Path:
    """The real Prometheus."""
    return _program("prometheus")
