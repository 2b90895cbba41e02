"""From a manifest to the pulumi-kubernetes resource of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from modelfleet.infra.kubernetes.manifests.pods import Manifest

ADMISSION = "admissionregistration.k8s.io/v1"
#: The typed resource of each kind that this project renders; anything else is a CustomResource.
KINDS: Mapping[tuple[str, str], Any] = {
    ("v1", "Namespace"): k8s.core.v1.Namespace,
    ("v1", "ResourceQuota"): k8s.core.v1.ResourceQuota,
    ("v1", "ServiceAccount"): k8s.core.v1.ServiceAccount,
    ("v1", "ConfigMap"): k8s.core.v1.ConfigMap,
    ("v1", "Secret"): k8s.core.v1.Secret,
    ("v1", "PersistentVolumeClaim"): k8s.core.v1.PersistentVolumeClaim,
    ("v1", "Service"): k8s.core.v1.Service,
    ("apps/v1", "Deployment"): k8s.apps.v1.Deployment,
    ("apps/v1", "DaemonSet"): k8s.apps.v1.DaemonSet,
    ("storage.k8s.io/v1", "StorageClass"): k8s.storage.v1.StorageClass,
    ("batch/v1", "Job"): k8s.batch.v1.Job,
    ("scheduling.k8s.io/v1", "PriorityClass"): k8s.scheduling.v1.PriorityClass,
    (ADMISSION, "ValidatingAdmissionPolicy"): k8s.admissionregistration.v1.ValidatingAdmissionPolicy,
    (ADMISSION, "ValidatingAdmissionPolicyBinding"): k8s.admissionregistration.v1.ValidatingAdmissionPolicyBinding,
    ("policy/v1", "PodDisruptionBudget"): k8s.policy.v1.PodDisruptionBudget,
    ("networking.k8s.io/v1", "NetworkPolicy"): k8s.networking.v1.NetworkPolicy,
    ("networking.k8s.io/v1", "Ingress"): k8s.networking.v1.Ingress,
    ("rbac.authorization.k8s.io/v1", "Role"): k8s.rbac.v1.Role,
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): k8s.rbac.v1.RoleBinding,
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): k8s.rbac.v1.ClusterRole,
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): k8s.rbac.v1.ClusterRoleBinding,
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"): k8s.apiextensions.v1.CustomResourceDefinition,
}

#: An annotation for what a run does not wait for.
SKIP_AWAIT: Mapping[str, str] = {"pulumi.com/skipAwait": "true"}

#: An annotation for what others write, too: a run takes it over, whoever owned it.
FORCE: Mapping[str, str] = {"pulumi.com/patchForce": "true"}

#: Top-level fields of manifests, spelled as the SDK spells its arguments.
ARGUMENTS: Mapping[str, str] = {
    "automountServiceAccountToken": "automount_service_account_token",
    "allowVolumeExpansion": "allow_volume_expansion",
    "preemptionPolicy": "preemption_policy",
    "reclaimPolicy": "reclaim_policy",
    "volumeBindingMode": "volume_binding_mode",
    "roleRef": "role_ref",
    "stringData": "string_data",
}


def resource(name: str, manifest: Manifest, opts: pulumi.ResourceOptions) -> pulumi.CustomResource:
    """The resource `name` for a manifest, whose values may be outputs."""
    key = (manifest["apiVersion"], manifest["kind"])
    fields = {ARGUMENTS.get(k, k): v for k, v in manifest.items() if k not in ("apiVersion", "kind")}
    if typed := KINDS.get(key):
        made: pulumi.CustomResource = typed(name, **fields, opts=opts)
        return made
    return k8s.apiextensions.CustomResource(name, api_version=key[0], kind=key[1], **fields, opts=opts)


def forced(manifest: Manifest) -> Manifest:
    """The same object, which a run takes over from others that wrote it."""
    metadata = manifest["metadata"]
    return {**manifest, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), **FORCE}}}


def each(prefix: str, manifests: list[Manifest], opts: pulumi.ResourceOptions) -> list[pulumi.CustomResource]:
    """One resource per manifest, named `<prefix>-<kind>-<name>`."""
    return [
        resource(f"{prefix}-{manifest['kind'].lower()}-{manifest['metadata']['name']}", manifest, opts)
        for manifest in manifests
    ]


def job_once(
    name: str, job: Manifest, parent: pulumi.Resource, first: Sequence[pulumi.Resource]
) -> pulumi.CustomResource:
    """The resource of a Job after `first`, for which no run waits.

    Its spec is written once: what it does is in its name, and a new image is no reason to do that again.
    """
    manifest = {**job, "metadata": {**job["metadata"], "annotations": dict(SKIP_AWAIT)}}
    return resource(name, manifest, pulumi.ResourceOptions(parent=parent, depends_on=first, ignore_changes=["spec"]))


def with_image(manifest: Manifest, name: str, image: pulumi.Input[str] | None) -> Manifest:
    """The manifest with `image`, which may be an output, where a container's image is `name`; None changes nothing."""

    def swapped(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: image if (key, one) == ("image", name) else swapped(one) for key, one in part.items()}
        return [swapped(one) for one in part] if isinstance(part, list) else part

    return manifest if image is None else swapped(manifest)
