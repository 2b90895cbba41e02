"""Prometheus and Alertmanager for nodes, in the place of their makers' images, which no registry is asked for.

As in those (their repositories' Dockerfile): the program at /bin as the entrypoint, the user `nobody`, and a folder of
its own as working directory and volume. Different are the base, which is Debian and not busybox, the files beside the
program (no promtool, amtool and example configuration, so no arguments by default), and the program itself, as each
recipe says.
"""

from __future__ import annotations

from pathlib import Path

from modelfleet.infra.catalog.images import reference
from tools.debian import unpacked
from tools.kubernetes.binaries import BINARIES
from tools.kubernetes.node.images import DEBIAN, Recipe

_ALERTMANAGER = "prometheus-alertmanager"
_TEMPLATES = "usr/share/prometheus/alertmanager"


def monitor() -> list[Recipe]:
    """Both images, under the names that pods of `observability.metrics: own` give them."""
    return [prometheus(), alertmanager()]


def prometheus() -> Recipe:
    """The version that the official image has, built here from its Go module: of what finds targets it has Kubernetes
    alone, and no page for a browser, whose files the module lacks.
    """
    binary = BINARIES["prometheus"]
    dockerfile = f"FROM {DEBIAN}\nCOPY prometheus /bin/prometheus\n{_as_official('prometheus')}"
    return Recipe(reference("prometheus"), dockerfile, (binary.module.name,), {"prometheus": lambda: binary.path})


def alertmanager() -> Recipe:
    """Debian's version, which is older than the official image's and reads its templates at /usr/share."""

    def package() -> Path:
        return unpacked(f"{_ALERTMANAGER}-debian", [_ALERTMANAGER])

    dockerfile = (
        f"FROM {DEBIAN}\n"
        "COPY alertmanager /bin/alertmanager\n"
        f"COPY templates /{_TEMPLATES}\n"
        f"{_as_official('alertmanager')}"
    )
    files = {"alertmanager": lambda: package() / "usr/bin" / _ALERTMANAGER, "templates": lambda: package() / _TEMPLATES}
    return Recipe(reference("alertmanager"), dockerfile, (_ALERTMANAGER,), files)


def _as_official(name: str) -> str:
    return (
        f"RUN mkdir /{name} && chown nobody:nogroup /{name}\n"
        "USER nobody\n"
        f'VOLUME ["/{name}"]\n'
        f"WORKDIR /{name}\n"
        f'ENTRYPOINT ["/bin/{name}"]\n'
    )
