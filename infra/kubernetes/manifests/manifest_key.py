"""The key that the stack makes to sign manifests with (`trust.manifestKey.kms: own`): what pods know of it.

It is known only once it is made. In a ConfigMap it changes neither Serve's configuration nor a pod's specification.
"""

from __future__ import annotations

from typing import Any, Final

from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.names import MANIFEST_KEY, labels
from modelfleet.infra.names import MANIFEST_KEY_FILE, MANIFEST_KEY_FOLDER
from modelfleet.infra.planning.plan import Plan

#: The ConfigMap's keys: the public half, base64 of its DER, and the ARN.
PUBLIC: Final = MANIFEST_KEY_FILE.removeprefix(f"{MANIFEST_KEY_FOLDER}/")
KMS: Final = "kms"


def manifest_key(plan: Plan, arn: Any, public: Any) -> list[Manifest]:
    """The ConfigMaps: for replicas, and for mirror Jobs in a namespace of their own; the values may be outputs."""
    if not _made(plan):
        return []
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": MANIFEST_KEY, "namespace": namespace, "labels": labels(plan, MANIFEST_KEY)},
            "data": {KMS: arn, PUBLIC: public},
        }
        for namespace in dict.fromkeys((plan.namespace, plan.mirror_namespace))
    ]


def job_environment(plan: Plan) -> list[Manifest]:
    """What a mirror Job signs with."""
    if not _made(plan):
        return []
    return [
        {"name": name, "valueFrom": {"configMapKeyRef": {"name": MANIFEST_KEY, "key": key}}}
        for name, key in (("MANIFEST_KEY", KMS), ("MANIFEST_PUBLIC_KEY", PUBLIC))
    ]


def key_mounts(plan: Plan) -> list[Manifest]:
    """The public half where `args` say that it is."""
    return [{"name": "manifest-key", "mountPath": MANIFEST_KEY_FOLDER, "readOnly": True}] if _made(plan) else []


def key_volumes(plan: Plan) -> list[Manifest]:
    """The volume of `key_mounts`."""
    if not _made(plan):
        return []
    public = [{"key": PUBLIC, "path": PUBLIC}]
    return [{"name": "manifest-key", "configMap": {"name": MANIFEST_KEY, "items": public}}]


def _made(plan: Plan) -> bool:
    return plan.manifest_key is not None and plan.manifest_key.made
