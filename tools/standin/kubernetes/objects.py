"""Any Kubernetes kind as a `ResourceDef`: create, read, update and delete by server-side apply."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from modelfleet.infra.kubernetes.api import ApiError, Manifest
from modelfleet.infra.provider import Call, Made, NotDone, PartlyMade, Props, Refused, ResourceDef, contains_unknown
from tools.standin.kubernetes.awaiting import NotReady, wait_until_gone, wait_until_ready
from tools.standin.kubernetes.session import FIELD_MANAGER, Kubernetes

PACKAGE = "kubernetes:"
#: Top-level fields of the kinds that a program can make.
FIELDS = frozenset(
    {"apiVersion", "kind", "metadata", "spec", "data", "stringData", "binaryData", "immutable", "type", "rules"}
    | {"roleRef", "subjects", "secrets", "automountServiceAccountToken", "imagePullSecrets", "aggregationRule"}
    | {"value", "globalDefault", "description", "preemptionPolicy", "handler", "overhead", "webhooks"}
    | {"provisioner", "parameters", "reclaimPolicy", "volumeBindingMode", "allowVolumeExpansion"}
)
#: Not API objects: the real plugin makes these from charts and files.
NOT_OBJECTS = ("helm.sh/", "yaml:", "yaml/", "kustomize:", "kustomize/")

IDENTITY = ("apiVersion", "kind", "metadata.name", "metadata.namespace")
#: Fields that the API server never changes; from `pulumi-kubernetes provider/pkg/provider/diff.go`.
FORCE_NEW: Mapping[str, tuple[str, ...]] = {
    "Job": ("spec.template", "spec.selector", "spec.completions", "spec.completionMode"),
    "Deployment": ("spec.selector",),
    "DaemonSet": ("spec.selector",),
    "StatefulSet": ("spec.selector", "spec.serviceName", "spec.volumeClaimTemplates", "spec.podManagementPolicy"),
    "Service": ("spec.clusterIP",),
    "Secret": ("type",),
    "RoleBinding": ("roleRef",),
    "ClusterRoleBinding": ("roleRef",),
    "CustomResourceDefinition": ("spec.group", "spec.scope", "spec.names.plural"),
    "Pod": ("spec",),
}
#: Values that the API server drops, because they are defaults.
EMPTY: tuple[Any, ...] = (None, {}, [], "", 0, False)
DATA = ("data", "binaryData", "stringData")


class AnyKind(Mapping[str, ResourceDef[Kubernetes]]):
    """The table of resource types: every kind that the cluster has."""

    def __init__(self) -> None:
        self.session: Kubernetes | None = None

    def __getitem__(self, token: str) -> ResourceDef[Kubernetes]:
        if not token.startswith(PACKAGE) or token.endswith("Patch"):
            raise KeyError(token)
        if any(token.removeprefix(PACKAGE).startswith(prefix) for prefix in NOT_OBJECTS):
            raise NotDone(token)
        kind = token.rpartition(":")[2]
        return ResourceDef(
            token=token,
            create=create,
            read=read,
            update=update,
            delete=delete,
            inputs=FIELDS,
            outputs=frozenset({"status"}),
            required=frozenset({"metadata"}),
            force_new=frozenset((*IDENTITY, *FORCE_NEW.get(kind, ()), *self._immutable(kind))),
            delete_before_replace=True,  # an object's name cannot change
            secret_outputs=frozenset({"data", "stringData"}) if kind == "Secret" else frozenset(),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def _immutable(self, kind: str) -> tuple[str, ...]:
        if self.session is None:
            return ()
        mutable = {"ConfigMap": self.session.config_map_mutable, "Secret": self.session.secret_mutable}
        return DATA if mutable.get(kind) is False else ()


def manifest_of(token: str, inputs: Props) -> Manifest:
    """The object that the inputs describe."""
    group, kind = token.removeprefix(PACKAGE).rsplit(":", 1)
    api_version = inputs.get("apiVersion") or group.removeprefix("core/")
    return {"apiVersion": api_version, "kind": inputs.get("kind") or kind, **_fields(inputs)}


def dry_run(call: Call[Kubernetes], inputs: Props) -> Props:
    """At preview, have the API server validate and admit the object without storing it.

    A first preview has no namespace and no custom kind yet, and some values are unknown; these pass.
    """
    if contains_unknown(inputs):
        return {}
    manifest = manifest_of(call.token, inputs)
    try:
        live = _apply(call, manifest, dry_run=True)
    except ApiError as error:
        if error.reason == "NoSuchKind" or (error.code == 404 and error.details.get("kind") == "namespaces"):
            return {}
        raise
    return {"status": live.get("status", {})}


def create(call: Call[Kubernetes], inputs: Props) -> Made:
    """Apply the object and wait until it is ready; raises `Refused` if one of that name already exists."""
    manifest = manifest_of(call.token, inputs)
    api, meta = call.session.api, manifest["metadata"]
    there = api.get(manifest["apiVersion"], manifest["kind"], meta["name"], meta.get("namespace"))
    if there is not None and not call.session.take_over:
        raise Refused(
            f"{manifest['kind']} {_id(meta)} already exists but is not a resource of this stack; "
            "delete it, or bring it into the stack with `pulumi import`"
        )
    live = _apply(call, manifest)
    return Made(_id(live["metadata"]), _ready(call, live))


def read(call: Call[Kubernetes], id: str, state: Props) -> Props | None:
    """The current values of the fields that the program set, without those of others; None if the object is gone."""
    manifest = manifest_of(call.token, state)
    namespace, _, name = id.rpartition("/")
    live = call.session.api.get(manifest["apiVersion"], manifest["kind"], name, namespace or None)
    if live is None or live["metadata"].get("deletionTimestamp"):
        return None
    if live["kind"] == "Secret":
        live["stringData"] = {k: base64.b64decode(v).decode() for k, v in (live.get("data") or {}).items()}
    seen = {key: live[key] for key in FIELDS if key in live}
    return {**{k: _as_wanted(state.get(k, v), v) for k, v in seen.items()}, "status": live.get("status", {})}


def update(call: Call[Kubernetes], id: str, state: Props, inputs: Props) -> Props:
    """Apply again; removes what the program no longer sets and keeps what others set."""
    return _ready(call, _apply(call, manifest_of(call.token, inputs)))


def delete(call: Call[Kubernetes], id: str, state: Props) -> None:
    """Delete and wait until it is gone, dependants, finalizers and all.

    In the foreground, as the plugin does: pulumi-kubernetes `provider/pkg/metadata`, `DeletionPropagation`.
    """
    manifest = manifest_of(call.token, state)
    api, meta = call.session.api, manifest["metadata"]
    live = api.get(manifest["apiVersion"], manifest["kind"], meta["name"], meta.get("namespace"))
    if live is None:
        return
    api.delete(live["apiVersion"], live["kind"], meta["name"], meta.get("namespace"), propagation="Foreground")
    try:
        wait_until_gone(api, live, call.timeout_seconds, call.step)
    except TimeoutError as error:
        raise Refused(str(error)) from error


def _apply(call: Call[Kubernetes], manifest: Manifest, *, dry_run: bool = False) -> Manifest:
    annotations = manifest["metadata"].get("annotations") or {}
    force = call.session.force or annotations.get("pulumi.com/patchForce") == "true"
    # At preview a custom resource may be newer than its definition, which this same run updates.
    strict = not (dry_run and _is_custom(manifest["apiVersion"]))
    return call.session.api.apply(manifest, manager=FIELD_MANAGER, force=force, dry_run=dry_run, strict=strict)


def _is_custom(api_version: str) -> bool:
    """Whether a CustomResourceDefinition makes this group: Kubernetes' own have no dot, or end in k8s.io."""
    group = api_version.rpartition("/")[0]
    return "." in group and not group.endswith("k8s.io")


def _ready(call: Call[Kubernetes], live: Manifest) -> Props:
    try:
        live = wait_until_ready(call.session.api, live, call.timeout_seconds, call.step)
    except NotReady as error:
        name = f"{live['kind']} {_id(live['metadata'])}"
        outputs = {"status": error.live.get("status", {})}
        raise PartlyMade(_id(live["metadata"]), outputs, [f"{name}: {reason}" for reason in error.reasons]) from error
    return {"status": live.get("status", {})}


def _id(meta: Mapping[str, Any]) -> str:
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def _fields(inputs: Props) -> Props:
    return {key: value for key, value in inputs.items() if key in FIELDS and value is not None}


def _as_wanted(wanted: Any, live: Any) -> Any:
    """`live`, but only the fields that `wanted` sets: defaults and the fields of others are not drift."""
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        return {k: _as_wanted(v, live.get(k)) for k, v in wanted.items() if k in live or v in EMPTY}
    if isinstance(wanted, list) and isinstance(live, list) and len(wanted) == len(live):
        return [_as_wanted(*pair) for pair in zip(wanted, live, strict=True)]
    return wanted if live is None and wanted in EMPTY else live
