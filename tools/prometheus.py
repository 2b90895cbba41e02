"""Prometheus, promtool, Alertmanager and amtool for tests, from Debian's packages."""

from __future__ import annotations

from pathlib import Path

from tools.cache import once
from tools.debian import unpacked


def prometheus(program: str = "prometheus") -> Path:
    """The program `prometheus` or `promtool`; raises `SetupError` where Debian's package cannot be had."""
    return unpacked("prometheus-debian", ["prometheus"]) / "usr/bin" / program


def amtool() -> Path:
    """The program `amtool`; raises as `prometheus`."""
    return _debians_alertmanager() / "usr/bin/amtool"


def alertmanager() -> Path:
    """The program `alertmanager`; raises as `prometheus`.

    Debian's reads its templates at /usr/share, so it runs where that has its package's files too: in a mount namespace
    of its own, under the same process id.
    """
    package = _debians_alertmanager()

    def write(folder: Path) -> None:
        shares = f"lowerdir={package}/usr/share:/usr/share"
        mount = f"mount -t overlay overlay -o '{shares}' /usr/share"
        script = f"""#!/bin/sh
exec unshare -rm sh -c "{mount} && exec '{package}/usr/bin/prometheus-alertmanager' \\"\\$@\\"" alertmanager "$@"
"""
        (folder / "alertmanager").write_text(script)
        (folder / "alertmanager").chmod(0o755)

    return once("alertmanager-run", write) / "alertmanager"


def _debians_alertmanager() -> Path:
    return unpacked("prometheus-alertmanager-debian", ["prometheus-alertmanager"])
