"""Prometheus and promtool, where this machine can have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modelfleet.serving.config.errors import SetupError
from tools.prometheus import amtool as amtool_here
from tools.prometheus import prometheus


def _program(name: str, of: Callable[[str], Path] = prometheus) -> Path:
    try:
        return of(name)
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


@pytest.fixture(scope="session")
def amtool() -> Path:
    """The real amtool."""
    return _program("amtool", lambda _: amtool_here())
