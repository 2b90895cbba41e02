"""Prometheus and promtool for tests, from Debian's packages; Alertmanager and amtool, built from their Go module."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tools.debian import unpacked
from tools.gobuild import GoCommand, GoModule, build
from tools.paths import ROOT

#: Its module has its page, which 0.34's leaves to a browser's build tools. Debian 12 has 0.25, which takes no URL from
#: a file.
ALERTMANAGER: Final = "0.28.1"
_MAIN: Final = "github.com/prometheus/alertmanager/cmd"
_VERSION: Final = "-X github.com/prometheus/common/version.Version="


def prometheus(program: str = "prometheus") -> Path:
    """The program `prometheus` or `promtool`; raises `SetupError` where Debian's package cannot be had."""
    return unpacked("prometheus-debian", ["prometheus"]) / "usr/bin" / program


def amtool() -> Path:
    """The program `amtool`; raises as `alertmanager`."""
    return _built() / "amtool"


def alertmanager() -> Path:
    """The program `alertmanager`; raises `SetupError` without Go or its modules."""
    return _built() / "alertmanager"


def _built() -> Path:
    return build(
        GoModule(
            f"alertmanager-{ALERTMANAGER}",
            ROOT / "tools" / "go" / "alertmanager",
            [GoCommand(name, f"{_MAIN}/{name}", f"{_VERSION}{ALERTMANAGER}") for name in ("alertmanager", "amtool")],
            minutes="about 2 minutes",
            needed_for="tests of alerts",
            inline=False,
        )
    )
