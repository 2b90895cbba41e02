"""Pods that do something and say what came of it in their log."""

from __future__ import annotations

import itertools
from typing import Any

from modelfleet.infra.kubernetes.api import ApiError
from tests.waiting import wait_until
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.node import images

NAMESPACE = "pods"
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
_numbers = itertools.count(1)


class Pods:
    """Makes pods in a namespace."""

    def __init__(self, cluster: Cluster, namespace: str = NAMESPACE) -> None:
        self.cluster, self.namespace = cluster, namespace

    def create(self, name: str, script: str, **more: Any) -> dict[str, Any]:
        """A pod that runs a script; `container` adds to its container, `labels` to its labels, the rest to its spec."""
        container = {
            "name": "main",
            "image": self.cluster.images.reference(images.DEBIAN),
            "command": ["bash", "-c", script],
            "securityContext": RESTRICTED,
            **more.pop("container", {}),
        }
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": more.pop("labels", {})},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 1000,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [container],
                **more,
            },
        }
        return self.cluster.api.create(manifest)

    def get(self, name: str) -> dict[str, Any]:
        """The pod as it is now."""
        found = self.cluster.api.get("v1", "Pod", name, self.namespace)
        assert found is not None, f"pod {name} is gone"
        return found

    def wait(self, name: str, *phases: str, seconds: float = 120) -> dict[str, Any]:
        """Wait until the pod is in one of the phases; returns it."""
        return wait_until(
            lambda: pod if (pod := self.get(name))["status"].get("phase") in phases else None,
            what=f"pod {name} {' or '.join(phases)}",
            seconds=seconds,
        )

    def ready(self, name: str) -> dict[str, Any]:
        """Wait until the pod is Ready; returns it."""

        def look() -> dict[str, Any] | None:
            pod = self.get(name)
            conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
            return pod if conditions.get("Ready") == "True" else None

        return wait_until(look, what=f"pod {name} Ready", seconds=120)

    def log(self, name: str) -> str:
        """What its container has written so far, through the API server and its kubelet."""
        try:
            return self.cluster.api.log(self.namespace, name)
        except ApiError as error:
            if error.code not in (400, 404):  # it has not started, or its kubelet has not heard of it
                raise
            return ""

    def says(self, script: str, **more: Any) -> str:
        """What a new pod's script writes until it ends; it must end well."""
        name = f"asks-{next(_numbers)}"
        self.create(name, script, **more)
        pod = self.wait(name, "Succeeded", "Failed")
        said = self.log(name)
        assert pod["status"]["phase"] == "Succeeded", said
        return said.strip()

    def delete(self, name: str) -> None:
        """Delete the pod and wait until it is gone."""
        self.cluster.api.delete("v1", "Pod", name, self.namespace)
        wait_until(
            lambda: self.cluster.api.get("v1", "Pod", name, self.namespace) is None, what=f"pod {name} gone", seconds=60
        )
