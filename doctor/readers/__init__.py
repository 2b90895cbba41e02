"""One reader a layer. Each returns a `Reading` and never raises; what it cannot read it says in `unread`."""

from __future__ import annotations

from functools import partial

from modelfleet.doctor.dashboard import Dashboard
from modelfleet.doctor.evidence import Layer
from modelfleet.doctor.look import Reader
from modelfleet.doctor.readers import files, ray, serve
from modelfleet.doctor.subject import Subject


def readers_of(subject: Subject) -> dict[Layer, Reader]:
    """The readers that a stack's target has."""
    dashboard = _dashboard(subject)
    return {
        Layer.FILES: partial(files.read, subject),
        Layer.RAY: partial(ray.read, subject, dashboard),
        Layer.SERVE: partial(serve.read, subject, dashboard),
    }


def _dashboard(subject: Subject) -> Dashboard | None:
    config = subject.stack.config
    return Dashboard(f"http://127.0.0.1:{config.local.dashboard_port}") if config.target.on_this_machine else None
