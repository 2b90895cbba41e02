"""Prometheus and promtool for tests, from Debian's package."""

from __future__ import annotations

from pathlib import Path

from tools.debian import unpacked


def prometheus(program: str = "prometheus") -> Path:
    """The program `prometheus` or `promtool`; raises `SetupError` where Debian's package cannot be had."""
    return unpacked("prometheus-debian", ["prometheus"]) / "usr/bin" / program
