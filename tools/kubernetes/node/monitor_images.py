"""Prometheus and Alertmanager for nodes, in the place of their makers' images, which no registry is asked for.

As in those (their repositories' Dockerfile): the program at /bin as the entrypoint, the user `nobody`, and a folder of
its own as working directory and volume. Different are the base, which is Debian and not busybox, the files beside the
program (no promtool, amtool and example configuration, so no arguments by default), and the program itself, as each
recipe says.
"""

from __future__ import annotations

from modelfleet.infra.catalog.images import reference
from tools import prometheus as programs
from tools.kubernetes.binaries import BINARIES
from tools.kubernetes.node.images import DEBIAN, Recipe


def monitor() -> list[Recipe]:
    """Both images, under the names that pods of `observability.metrics: own` give them."""
    return [prometheus(), alertmanager()]


def prometheus() -> Recipe:
    """The official image's version, built from its Go module: of what finds targets it has Kubernetes alone, and no
    page for a browser, whose files the module lacks.
    """
    binary = BINARIES["prometheus"]
    return Recipe(
        reference("prometheus"),
        _dockerfile("prometheus"),
        (binary.module.name,),
        {"prometheus": lambda: binary.path},
    )


def alertmanager() -> Recipe:
    """An older version than the official image's (`tools/prometheus.py` says why), built from its Go module."""
    return Recipe(
        reference("alertmanager"),
        _dockerfile("alertmanager"),
        (programs.ALERTMANAGER,),
        {"alertmanager": programs.alertmanager},
    )


def _dockerfile(name: str) -> str:
    return (
        f"FROM {DEBIAN}\n"
        f"COPY {name} /bin/{name}\n"
        f"RUN mkdir /{name} && chown nobody:nogroup /{name}\n"
        "USER nobody\n"
        f'VOLUME ["/{name}"]\n'
        f"WORKDIR /{name}\n"
        f'ENTRYPOINT ["/bin/{name}"]\n'
    )
