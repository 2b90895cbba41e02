"""Kubernetes objects: Deployments and their kin, LeaderWorkerSets, KubeAI's Models, and what scales them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from modelfleet.infra.interchange.containers import container_of, downloads_of, workloads_of
from modelfleet.infra.interchange.tree import items, mapping, text, walk, whole
from modelfleet.infra.interchange.workload import Note, Workload
from modelfleet.serving.config.document import Document

#: Labels of nodes that name a GPU or an instance type, in selectors and affinities.
_HARDWARE = ("gpu", "accelerator", "instance-type", "instance-gpu", "machine", "nvidia", "amd", "tpu")


def read_object(document: Document, others: Sequence[Document]) -> Iterator[Workload]:
    """The workloads of an object. `others` are all objects of the file, for what scales this one."""
    data = document.data
    if data.get("kind") == "Model" and text(data, "apiVersion").startswith("kubeai"):
        yield from _kubeai(document)
        return
    for path, pod in walk(data):
        if isinstance(pod, dict) and isinstance(pod.get("containers"), list):
            holder = _holder(data, path)
            yield from pod_workloads(pod, _where(document, path), scaled_by(data, others), holder)


def pod_workloads(
    pod: dict[str, Any], where: str, scaling: dict[str, Any], holder: dict[str, Any]
) -> Iterator[Workload]:
    """The workloads of a pod's containers; `holder` has the replicas."""
    containers = [one for one in items(pod, "containers") if isinstance(one, dict)]
    earlier = downloads_of([*items(pod, "initContainers"), *containers])
    nodes = whole(mapping(holder, "leaderWorkerTemplate"), "size") or whole(holder, "size") or 1
    notes = (
        (Note(f"{nodes} nodes for one replica", "without pipeline_parallel_size a replica's workers share one node"),)
        if nodes > 1
        else ()
    )
    for data in containers:
        for found in workloads_of(
            container_of(data), where, downloads=earlier, hardware=hardware_of(pod), replicas=whole(holder, "replicas")
        ):
            yield replace(found, notes=(*found.notes, *notes), autoscaling=scaling)


def hardware_of(pod: dict[str, Any]) -> tuple[str, ...]:
    """What the selectors of a pod say about its machine."""
    found = [str(value) for key, value in mapping(pod, "nodeSelector").items() if _is_hardware(key)]
    for _, term in walk(pod.get("affinity")):
        if isinstance(term, dict) and _is_hardware(text(term, "key")) and term.get("operator") in ("In", None):
            found += [str(value) for value in items(term, "values")]
    return tuple(found)


def _is_hardware(label: str) -> bool:
    return any(word in label.lower() for word in _HARDWARE)


def scaled_by(data: Any, others: Sequence[Document]) -> dict[str, Any]:
    """Bounds of the HorizontalPodAutoscaler or ScaledObject for an object, as `autoscaling_config` has them."""
    name = text(data, "metadata", "name")
    for other in others:
        spec = mapping(other.data, "spec")
        kind = text(other.data, "kind")
        if kind == "HorizontalPodAutoscaler" and text(spec, "scaleTargetRef", "name") == name:
            return replicas_between(whole(spec, "minReplicas"), whole(spec, "maxReplicas"))
        if kind == "ScaledObject" and text(spec, "scaleTargetRef", "name") == name:
            return replicas_between(whole(spec, "minReplicaCount") or 0, whole(spec, "maxReplicaCount"))
    return {}


def replicas_between(lowest: int | None, most: int | None) -> dict[str, Any]:
    """`autoscaling_config` of two bounds; nothing where the file has no upper one."""
    if not most:
        return {}
    lowest = 1 if lowest is None else lowest
    return {"min_replicas": lowest, "max_replicas": max(most, lowest)}


def _kubeai(document: Document) -> Iterator[Workload]:
    """KubeAI's Model: vLLM's arguments and a URL (kubeai.org/v1)."""
    spec = mapping(document.data, "spec")
    if text(spec, "engine") != "VLLM":
        return
    url = text(spec, "url")
    name = text(document.data, "metadata", "name")
    container = container_of(
        {
            "args": [url, f"--served-model-name={name}", *items(spec, "args")],
            "env": spec.get("env"),
            "image": "vllm-openai",
        }
    )
    for found in workloads_of(container, _where(document, ()), hardware=(text(spec, "resourceProfile"),)):
        scaling = replicas_between(whole(spec, "minReplicas") or 0, whole(spec, "maxReplicas"))
        if scaling and (target := whole(spec, "targetRequests")):
            scaling["target_ongoing_requests"] = target
        yield replace(
            found, autoscaling=scaling, replicas=whole(spec, "replicas") or whole(spec, "minReplicas") or None
        )


def _holder(data: Any, path: tuple[str | int, ...]) -> dict[str, Any]:
    """The nearest mapping above a pod that has `replicas`."""
    for end in range(len(path), -1, -1):
        above = mapping(data, *path[:end])
        if "replicas" in above:
            return above
    return {}


def _where(document: Document, path: tuple[str | int, ...]) -> str:
    kind, name = text(document.data, "kind"), text(document.data, "metadata", "name")
    what = " ".join(filter(None, (kind, name)))
    return f"{document.file}:{document.line(path)}{f' ({what})' if what else ''}"
