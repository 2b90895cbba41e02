"""Nodes without machines: real Node objects, with kwok as their kubelet, on which the real scheduler places pods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FAKE = {"kwok.x-k8s.io/node": "fake"}


def fake_node(
    name: str,
    allocatable: Mapping[str, str],
    *,
    labels: Mapping[str, str] | None = None,
    taints: Iterable[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Return a Node manifest; `allocatable` is in Kubernetes quantities (`cpu`, `memory`, `nvidia.com/gpu`, `pods`)."""
    amounts = {"pods": "110", "ephemeral-storage": "200Gi", **allocatable}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": FAKE,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                **(labels or {}),
            },
        },
        "spec": {"taints": [dict(taint) for taint in taints]},
        "status": {"allocatable": amounts, "capacity": amounts},
    }
