"""One reader a layer. Each returns a `Reading` and never raises; what it cannot read it says in `unread`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from modelfleet.doctor.evidence import Layer
from modelfleet.doctor.look import Reader
from modelfleet.doctor.readers import files, state
from modelfleet.doctor.subject import Subject


def readers_of(subject: Subject, export: Callable[[float], state.Exported]) -> dict[Layer, Reader]:
    """The readers that a stack's target has; `export` gets its state, within the seconds that it is given."""
    target = subject.stack.config.target
    return {
        Layer.FILES: partial(files.read, subject),
        Layer.STATE: partial(state.read, subject, export),
        **(_on_this_machine(subject) if target.on_this_machine else _in_a_cluster(subject)),
        **(_in_aws(subject) if target.makes_cluster else {}),
    }


# Each imports what it needs: the clients of AWS and Kubernetes take a second or more to load.


def _on_this_machine(subject: Subject) -> dict[Layer, Reader]:
    from modelfleet.doctor.dashboard import Dashboard
    from modelfleet.doctor.readers import gateway, logs, monitor, ray, serve
    from modelfleet.infra.local.provider.ray import logs_folder
    from modelfleet.infra.local.token import headers

    port = subject.stack.config.local.dashboard_port
    watched = subject.stack.config.observability.metrics == "own"
    dashboard = Dashboard(f"http://127.0.0.1:{port}", headers(subject.folder), partial(_is_ours, subject.folder, port))
    return {
        Layer.RAY: partial(ray.read, subject, dashboard),
        Layer.SERVE: partial(serve.read, subject, dashboard),
        Layer.ENGINE: partial(logs.read, subject, logs_folder(str(subject.folder))),
        Layer.GATEWAY: partial(gateway.read, subject),
        **({Layer.MONITOR: partial(monitor.read, subject)} if watched else {}),
    }


def _is_ours(folder: Path, port: int) -> None:
    """Raises `Silent` where another program has the dashboard's port: it would get the token of this stack's Ray."""
    from modelfleet.doctor.dashboard import Silent
    from modelfleet.infra.local.ports import listens, owner
    from modelfleet.infra.local.provider.last_start import has_port

    # In this order: a dashboard that begins to listen in between is found as ours.
    if listens(port) and not has_port(folder, port):
        raise Silent(f"port {port} is taken{owner(port)}, not by this stack's Ray")


def _in_a_cluster(subject: Subject) -> dict[Layer, Reader]:
    """Serve's applications come with the RayService: Ray's dashboard is closed to all but its operator."""
    from modelfleet.doctor.readers import cluster, engine, kubernetes

    connect = partial(cluster.connect, subject)
    return {
        Layer.KUBERNETES: partial(kubernetes.read, subject, connect),
        Layer.ENGINE: partial(engine.read, subject, connect),
    }


def _in_aws(subject: Subject) -> dict[Layer, Reader]:
    from modelfleet.doctor.readers import aws

    return {Layer.AWS: partial(aws.read, subject)}
