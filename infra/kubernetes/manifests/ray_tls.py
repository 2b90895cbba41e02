"""TLS between Ray's processes (`kubernetes.rayTls`): what the pods of a cluster then have more.

Ray speaks TLS on its gRPC ports, and each side shows a certificate (Ray 2.60 `_common/tls_utils.py`). Ray connects to
addresses, so an init container makes the pod's certificate when it has one; only it sees the authority's key. KubeRay
appends its own init container, which already speaks TLS, after ours, with the environment and mounts of Ray's container
(1.6.2 `DefaultWorkerPodTemplate`), and adds ours to the autoscaler's (`mergeAutoscalerOverrides`).
https://docs.ray.io/en/latest/cluster/kubernetes/user-guides/tls.html
"""

from __future__ import annotations

from typing import Final

from modelfleet.infra.kubernetes.manifests.pods import (
    CAUSE_IN_STATUS,
    Manifest,
    container_security,
    environment,
    resources,
)
from modelfleet.infra.kubernetes.manifests.scripts import SCRIPTS_PATH
from modelfleet.infra.planning.plan import Plan

AUTHORITY_PATH: Final = "/etc/modelfleet/authority"
CERTIFICATES_PATH: Final = "/etc/modelfleet/certificates"
_MOUNT: Final = {"name": "certificates", "mountPath": CERTIFICATES_PATH}


def tls_environment(plan: Plan) -> dict[str, str | None]:
    """What each process of Ray needs; nothing without `rayTls`, so that it changes no cluster."""
    if plan.ray_cluster.authority is None:
        return {}
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": f"{CERTIFICATES_PATH}/tls.crt",
        "RAY_TLS_SERVER_KEY": f"{CERTIFICATES_PATH}/tls.key",
        "RAY_TLS_CA_CERT": f"{CERTIFICATES_PATH}/ca.crt",
    }


def tls_mounts(plan: Plan) -> list[Manifest]:
    """The pod's certificate in Ray's container."""
    return [{**_MOUNT, "readOnly": True}] if plan.ray_cluster.authority else []


def tls_autoscaler(plan: Plan) -> Manifest:
    """What the autoscaler beside the head needs to ask it."""
    if plan.ray_cluster.authority is None:
        return {}
    return {"env": environment(tls_environment(plan)), "volumeMounts": tls_mounts(plan)}


def tls_first(plan: Plan) -> Manifest:
    """The init container that makes the pod's certificate."""
    if plan.ray_cluster.authority is None:
        return {}
    own = {"POD_IP": "status.podIP", "NAMESPACE": "metadata.namespace"}
    container = {
        "name": "certificate",
        "image": plan.ray_cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", f"{SCRIPTS_PATH}/certificate.py"],
        "env": [
            *environment({"AUTHORITY": AUTHORITY_PATH, "CERTIFICATES": CERTIFICATES_PATH}),
            *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in own.items()),
        ],
        "resources": resources("100m", "128Mi"),
        **CAUSE_IN_STATUS,
        "securityContext": container_security(read_only=True),
        "volumeMounts": [
            {"name": "authority", "mountPath": AUTHORITY_PATH, "readOnly": True},
            _MOUNT,
            {"name": "scripts", "mountPath": SCRIPTS_PATH, "readOnly": True},
        ],
    }
    return {"initContainers": [container]}


def tls_volumes(plan: Plan) -> list[Manifest]:
    """The authority's Secret, and the pod's certificate in memory."""
    if plan.ray_cluster.authority is None:
        return []
    return [
        # For the group of the pod's user, as which it runs.
        {"name": "authority", "secret": {"secretName": plan.ray_cluster.authority, "defaultMode": 0o440}},
        {"name": "certificates", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]
