"""What the Kubernetes tokens of the head and of `ladder-return` cannot do: an admission policy over their rights.

Ray's autoscaler runs in the head's pod and patches the RayCluster. KubeRay's role for it allows any patch of
RayClusters and pods (`BuildRole`, KubeRay 1.6.2 `controllers/ray/common/rbac.go`), and rights cannot be finer. Every
replica can run code in the head, so whoever takes one over could give a worker group or the autoscaler's own container
another account, image or Secret of the namespace, such as the operator's.
The policy leaves what the autoscaler does: replicas and which workers go (`worker_replica_patch`,
`worker_delete_patch`, Ray 2.60 `autoscaler/_private/kuberay/node_provider.py`). KubeRay reads a RayCluster's
annotations and labels too: they turn fault tolerance off, name the store of the head's state or the file that pods
start with (`ray.io/ft-enabled`, `ray.io/external-storage-namespace`, `ray.io/overwrite-container-cmd`; KubeRay 1.6.2
`controllers/ray/utils/constant.go`).

`ladder-return` patches RayClusters too, and makes pods. A right to make pods is one to every account, Secret and label
of the namespace, so the policy leaves it placeholders alone.

https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/, stable since Kubernetes 1.30.
"""

from __future__ import annotations

from typing import Any, Final

from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.names import HEAD_ACCOUNT, LADDER_RETURN, PLACEHOLDER, head_policy, labels
from modelfleet.infra.names import PLACEHOLDER_LABEL
from modelfleet.infra.planning.plan import Plan

API: Final = "admissionregistration.k8s.io/v1"
#: What the autoscaler may change of a RayCluster: in its spec, and in each worker group. `idleSuspend` only stops.
FREE: Final = ["workerGroupSpecs", "idleSuspend"]
FREE_IN_GROUP: Final = ["replicas", "scaleStrategy"]
#: Of a RayCluster's metadata all that somebody reads; the API server itself keeps the rest, such as `managedFields`.
KEPT_METADATA: Final = ("labels", "annotations", "finalizers", "ownerReferences")


def head_guard(plan: Plan) -> list[Manifest]:
    """The policy and its binding; none for who may make only what is in a namespace: they belong to the cluster."""
    name = head_policy(plan)
    if name is None:
        return []
    return [
        {
            "apiVersion": API,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name, "labels": labels(plan, "guard")},
            "spec": _policy(plan),
        },
        {
            "apiVersion": API,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name, "labels": labels(plan, "guard")},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    ]


def _policy(plan: Plan) -> Manifest:
    accounts = [f"system:serviceaccount:{plan.namespace}:{name}" for name in (HEAD_ACCOUNT, LADDER_RETURN)]
    return {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "resourceRules": [
                _rule("ray.io", "v1", "rayclusters", "UPDATE"),
                _rule("", "v1", "pods", "CREATE", "UPDATE"),
                _rule("", "v1", "pods/resize", "UPDATE"),  # which no rule for pods covers, and KubeRay's role allows
            ]
        },
        "matchConditions": [{"name": "who-scales", "expression": f"request.userInfo.username in {accounts}"}],
        "validations": [
            {
                "expression": "request.resource.resource == 'rayclusters' || request.operation == 'CREATE'",
                "message": f"Ray's autoscaler and {LADDER_RETURN} change no pods",
            },
            {
                "expression": f"request.operation != 'CREATE' || ({_only_waits(plan)})",
                "message": f"{LADDER_RETURN} makes only pods that wait for a node, with no account, Secret or volume",
            },
            {
                "expression": " || ".join(["request.resource.resource != 'rayclusters'", f"({_only_counts()})"]),
                "message": f"Ray's autoscaler and {LADDER_RETURN} change only how many workers there are, and which",
            },
        ],
    }


def _rule(group: str, version: str, resource: str, *operations: str) -> dict[str, Any]:
    return {"apiGroups": [group], "apiVersions": [version], "resources": [resource], "operations": [*operations]}


def _only_waits(plan: Plan) -> str:
    """CEL: the new pod has a placeholder's labels and no others, which a Service could select, and nothing to read.

    The API server has filled in the namespace's default account by then.
    """
    own = labels(plan, PLACEHOLDER)
    has = "object.metadata.labels"
    spec = "object.spec"
    return " && ".join(
        [
            f"'{PLACEHOLDER_LABEL}' in {has} && {has}.size() == {len(own) + 1}",
            *(f"{has}['{key}'] == '{value}'" for key, value in own.items()),
            f"(!has({spec}.serviceAccountName) || {spec}.serviceAccountName == 'default')",
            f"has({spec}.automountServiceAccountToken) && !{spec}.automountServiceAccountToken",
            *(f"(!has({spec}.{field}) || {spec}.{field}.size() == 0)" for field in ("volumes", "initContainers")),
            f"{spec}.containers.all(one, !has(one.env) && !has(one.envFrom))",
        ]
    )


def _only_counts() -> str:
    """CEL: the old and the new spec differ in nothing but `FREE`, their groups in nothing but `FREE_IN_GROUP`.

    Of the metadata `KEPT_METADATA` is the same. A field that is not set is not there, which CEL asks with `has`.
    """
    groups = "object.spec.workerGroupSpecs", "oldObject.spec.workerGroupSpecs"
    group = " && ".join([_same("new", "old", FREE_IN_GROUP), "new.groupName == old.groupName"])
    return " && ".join(
        [
            _same("object.spec", "oldObject.spec", FREE),
            f"{groups[0]}.size() == {groups[1]}.size()",
            f"{groups[0]}.all(new, {groups[1]}.exists(old, {group}))",
            *(_same_field(f"object.metadata.{field}", f"oldObject.metadata.{field}") for field in KEPT_METADATA),
        ]
    )


def _same_field(new: str, old: str) -> str:
    return f"(has({new}) ? has({old}) && {new} == {old} : !has({old}))"


def _same(new: str, old: str, free: list[str]) -> str:
    keys = "[" + ", ".join(f"'{key}'" for key in free) + "]"
    kept = f"{new}.all(key, key in {keys} || (key in {old} && {new}[key] == {old}[key]))"
    return f"{kept} && {old}.all(key, key in {keys} || key in {new})"
