"""Compose files (compose-spec): each service that serves with vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelfleet.infra.interchange.containers import Container, environment_of, words_of, workloads_of
from modelfleet.infra.interchange.shell import interpolate
from modelfleet.infra.interchange.tree import items, mapping, text, whole
from modelfleet.infra.interchange.workload import Workload
from modelfleet.infra.names import GPU
from modelfleet.serving.config.document import Document


def read_compose(document: Document) -> Iterator[Workload]:
    """The workloads of a compose file; `${NAME:-default}` takes its default, for `.env` is not in the file."""
    for name, service in mapping(document.data, "services").items():
        if not isinstance(service, dict):
            continue
        data = _interpolated(service)
        devices = [
            one for one in items(data, "deploy", "resources", "reservations", "devices") if isinstance(one, dict)
        ]
        gpus = [_count(one) for one in devices if "gpu" in map(str, items(one, "capabilities"))]
        entrypoint = words_of(data.get("entrypoint"))
        container = Container(
            command=entrypoint,
            arguments=words_of(data.get("command")),
            environment=environment_of(data.get("environment")),
            image=text(data, "image"),
            resources={GPU: gpus[0]} if gpus and gpus[0] else {},
        )
        where = f"{document.file}:{document.line(('services', name))} (service {name})"
        yield from workloads_of(
            container, where, hardware=(text(data, "runtime"),), replicas=whole(data, "deploy", "replicas")
        )


def _count(device: dict[str, Any]) -> int | None:
    return whole(device, "count") or len(items(device, "device_ids")) or None


def _interpolated(value: Any) -> Any:
    if isinstance(value, str):
        return interpolate(value, {})
    if isinstance(value, Mapping):
        return {key: _interpolated(one) for key, one in value.items()}
    return [_interpolated(one) for one in value] if isinstance(value, list) else value
