"""Faults of a stack on the real control plane: what its API lets anybody break, and what a kubelet would write.

kwok stands for the kubelets, so what only a kubelet knows (images, containers, a node's disk) is written to the
object's status in the kubelet's own words. Scheduler, controllers, admission and KubeRay's operator are the real ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from modelfleet.infra.kubernetes.api import ApiError
from tests.cluster.conftest import MANAGER, Stack, wait_for
from tests.doctor_faults import Doctor, Fault

MERGE: Final = "application/merge-patch+json"
POOL: Final = "modelfleet.dev/pool"
Broken = AbstractContextManager[object]
#: A pod that every Pod Security level allows.
SAFE: Final[Mapping[str, Any]] = {
    "containers": [
        {
            "name": "c",
            "image": "busybox",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
    "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
}


@dataclass
class Live:
    """A stack that serves, and its doctor. `spare` is a node that only faults use."""

    stack: Stack
    doctor: Doctor
    spare: str

    def merge(self, version: str, kind: str, name: str, patch: Mapping[str, Any], *, status: bool = False) -> None:
        """Merge into an object of the stack's namespace, or into its status."""
        where = None if kind in ("Node", "Namespace") else self.stack.namespace
        sub = "/status" if status else ""
        self.stack.api.call("patch", version, kind, name, where, sub, body=dict(patch), content_type=MERGE)

    def pod(self, node_type: str = "worker", group: str = "l4") -> dict[str, Any]:
        """The one pod of the worker group, or the head."""

        def look() -> dict[str, Any] | None:
            pods = self.stack.api.list("v1", "Pod", self.stack.namespace, f"ray.io/node-type={node_type}")
            own = [pod for pod in pods if node_type == "head" or pod["metadata"]["labels"]["ray.io/group"] == group]
            return next((pod for pod in own if "deletionTimestamp" not in pod["metadata"]), None)

        found: dict[str, Any] = wait_for(f"the {node_type}'s pod", look)
        return found

    def node(self) -> dict[str, Any]:
        """The pool's one node."""
        found = self.stack.api.get("v1", "Node", f"{self.stack.plan.stack}-l4-0")
        assert found is not None
        return found

    def give_up(self, pod: dict[str, Any]) -> None:
        """What Ray's autoscaler does with a worker that it needs no more: without its name KubeRay deletes none."""
        ray = self.stack.ray_cluster()
        groups = ray["spec"]["workerGroupSpecs"]
        for group in groups:
            if group["groupName"] == pod["metadata"]["labels"]["ray.io/group"]:
                group |= {"replicas": 0, "scaleStrategy": {"workersToDelete": [pod["metadata"]["name"]]}}
        self.merge("ray.io/v1", "RayCluster", ray["metadata"]["name"], {"spec": {"workerGroupSpecs": groups}})

    def delete_worker(self) -> None:
        """Ends the worker's pod; KubeRay makes another one, if it may."""
        self.stack.api.delete("v1", "Pod", self.pod()["metadata"]["name"], self.stack.namespace)


# --- what a kubelet writes ------------------------------------------------------------------------------------


@contextmanager
def condition(kind: str, status: str, reason: str, message: str, live: Live) -> Iterator[None]:
    """A condition of the spare node."""
    node = live.stack.api.get("v1", "Node", live.spare)
    assert node is not None
    before = node["status"]["conditions"]
    others = [one for one in before if one["type"] != kind]
    changed = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": _now()}
    live.merge("v1", "Node", live.spare, {"status": {"conditions": [*others, changed]}}, status=True)
    try:
        yield
    finally:
        live.merge("v1", "Node", live.spare, {"status": {"conditions": before}}, status=True)


@contextmanager
def waiting(reason: str, message: str, live: Live, *, last: Mapping[str, Any] | None = None) -> Iterator[None]:
    """A container of the worker that does not run."""
    pod = live.pod()
    name, before = pod["metadata"]["name"], pod["status"]["containerStatuses"]
    after = copy.deepcopy(before)
    after[0] |= {"ready": False, "state": {"waiting": {"reason": reason, "message": message}}}
    if last is not None:
        after[0] |= {
            "restartCount": 3,
            "lastState": {"terminated": {"startedAt": _now(), "finishedAt": _now(), **last}},
        }
    live.merge("v1", "Pod", name, {"status": {"containerStatuses": after}}, status=True)
    try:
        yield
    finally:
        live.merge("v1", "Pod", name, {"status": {"containerStatuses": before}}, status=True)


def pulls(message: str) -> Callable[[Live], Broken]:
    """The kubelet's words about an image, around containerd's."""
    image = "quay.io/org/serving:1"
    said = f'Back-off pulling image "{image}": ErrImagePull: failed to pull and unpack image "{image}": {message}'
    return partial(waiting, "ImagePullBackOff", said)


@contextmanager
def evicted(message: str, live: Live) -> Iterator[None]:
    """A pod of the pool that its kubelet evicted."""
    with _pod(live, "evicted", {"nodeName": live.node()["metadata"]["name"]}):
        status = {"phase": "Failed", "reason": "Evicted", "message": message}
        live.merge("v1", "Pod", "evicted", {"status": status}, status=True)
        yield


# --- what anybody may do --------------------------------------------------------------------------------------


@contextmanager
def no_gpus(live: Live) -> Iterator[None]:
    """The pool's node offers no GPUs, as without NVIDIA's device plugin."""
    node, gpu = live.node(), "nvidia.com/gpu"
    name, own = node["metadata"]["name"], {part: node["status"][part][gpu] for part in ("allocatable", "capacity")}
    live.merge("v1", "Node", name, {"status": {part: {gpu: None} for part in own}}, status=True)
    try:
        yield
    finally:
        live.merge("v1", "Node", name, {"status": {part: {gpu: amount} for part, amount in own.items()}}, status=True)


@contextmanager
def without_label(live: Live) -> Iterator[None]:
    """Somebody takes the pool's label from its node."""
    name = live.node()["metadata"]["name"]
    live.merge("v1", "Node", name, {"metadata": {"labels": {POOL: None}}})
    try:
        yield
    finally:
        live.merge("v1", "Node", name, {"metadata": {"labels": {POOL: "l4"}}})


@contextmanager
def tainted(live: Live) -> Iterator[None]:
    """Somebody taints the pool's node, and the worker has to start again."""
    node = live.node()
    taints = node["spec"].get("taints", [])
    more = {"key": "maintenance", "value": "today", "effect": "NoSchedule"}
    live.merge("v1", "Node", node["metadata"]["name"], {"spec": {"taints": [*taints, more]}})
    live.delete_worker()
    try:
        yield
    finally:
        live.merge("v1", "Node", node["metadata"]["name"], {"spec": {"taints": taints}})


@contextmanager
def taken(what: str, amount: str, live: Live) -> Iterator[None]:
    """Somebody else's pod takes from the pool's node what the worker needs."""
    amounts = {"requests": {what: amount}, "limits": {what: amount}}
    container = {"name": "c", "image": "busybox", "resources": amounts}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "thief", "namespace": "default"}}
    worker = live.pod()
    live.stack.api.create({**body, "spec": {"nodeName": worker["spec"]["nodeName"], "containers": [container]}})
    live.delete_worker()
    try:
        yield
    finally:
        live.stack.api.delete("v1", "Pod", "thief", "default")


@contextmanager
def no_volume(live: Live) -> Iterator[None]:
    """A pod that needs a claim which nobody made."""
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "nobodys"}}
    with _pod(live, "claims", {"volumes": [volume]}):
        yield


@contextmanager
def quota(live: Live) -> Iterator[None]:
    """A quota that leaves no room for the worker."""
    with _quota(live, live.stack.namespace):
        live.delete_worker()
        yield


@contextmanager
def admission_policy(live: Live) -> Iterator[None]:
    """A policy of the cluster's owner that refuses all new pods of the namespace."""
    group, name = "admissionregistration.k8s.io/v1", "no-pods"
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
    spec = {"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": "false", "message": "no"}]}
    policy = {"apiVersion": group, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name}, "spec": spec}
    where = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": live.stack.namespace}}}
    bound = {"policyName": name, "validationActions": ["Deny"], "matchResources": where}
    binding = {
        "apiVersion": group,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": bound,
    }
    for one in (policy, binding):
        live.stack.api.apply(one, manager=MANAGER)

    def refuses() -> bool:
        try:
            with _pod(live, "probe", {}):
                return False
        except ApiError as error:
            return "denied request" in error.message

    wait_for("the policy", refuses)
    live.delete_worker()
    try:
        yield
    finally:
        for kind in ("ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy"):
            live.stack.api.delete(group, kind, name)


@contextmanager
def another_operator(live: Live) -> Iterator[None]:
    """Somebody installs a KubeRay operator that watches all namespaces."""
    container = {"name": "o", "image": "quay.io/kuberay/operator:v1.6.2"}
    labels = {"app": "theirs"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "theirs", "namespace": "default"}}
    live.stack.api.create({**body, "spec": {"selector": {"matchLabels": labels}, "template": template}})
    try:
        yield
    finally:
        live.stack.api.delete("apps/v1", "Deployment", "theirs", "default")


@contextmanager
def switched_off(live: Live) -> Iterator[None]:
    """Somebody scales the gateway to nothing."""
    deployment = live.stack.api.get("apps/v1", "Deployment", "gateway", live.stack.namespace)
    assert deployment is not None
    live.merge("apps/v1", "Deployment", "gateway", {"spec": {"replicas": 0}})
    try:
        yield
    finally:
        live.merge("apps/v1", "Deployment", "gateway", {"spec": {"replicas": deployment["spec"]["replicas"]}})


@contextmanager
def refused_spec(live: Live) -> Iterator[None]:
    """Somebody edits the RayService to what the operator does not take."""
    head = {"headService": {"metadata": {"name": "mine"}}}
    _spec(live, {"rayClusterConfig": {"headGroupSpec": head}})
    try:
        yield
    finally:
        _spec(live, {"rayClusterConfig": {"headGroupSpec": {"headService": None}}})


@contextmanager
def dead_operator(live: Live) -> Iterator[None]:
    """The operator is gone when the RayService changes."""
    live.stack.cluster.kill("kuberay-operator")
    _spec(live, {"rayClusterDeletionDelaySeconds": 61})
    try:
        yield
    finally:
        live.stack.start_operator()


@contextmanager
def failed_job(name: str, live: Live) -> Iterator[None]:
    """A Job for the model whose pod never ends in time, until its controller gives up."""
    with _job(live, name, {**SAFE, "nodeSelector": {"no": "node"}}, activeDeadlineSeconds=1):
        yield


@contextmanager
def job_above_quota(live: Live) -> Iterator[None]:
    """A quota in the Jobs' namespace keeps a new Job from its pod."""
    with _quota(live, live.stack.plan.mirror_namespace), _job(live, "mirror-late", SAFE):
        yield


@contextmanager
def unsafe_job(live: Live) -> Iterator[None]:
    """A Job's pod that the Pod Security level of the Jobs' namespace does not allow."""
    with _job(live, "mirror-unsafe", {"containers": [{"name": "c", "image": "busybox"}]}):
        yield


@contextmanager
def unserved_pool(live: Live, event: tuple[str, str] | None = None) -> Iterator[None]:
    """Ray asks for a worker of the pool that has no node, and the cluster's autoscaler may say why it adds none."""
    live.stack.scale({"l4": 1, "t4": 1})
    if event is not None:
        pod, (reason, message) = live.pod(group="t4"), event
        about = {"apiVersion": "v1", "kind": "Pod", "uid": pod["metadata"]["uid"], "name": pod["metadata"]["name"]}
        body = {"apiVersion": "v1", "kind": "Event", "metadata": _meta(live, f"autoscaler-{reason.lower()}")}
        told = {"involvedObject": {**about, "namespace": live.stack.namespace}, "reason": reason, "message": message}
        source = {"source": {"component": "cluster-autoscaler"}, "firstTimestamp": _now(), "lastTimestamp": _now()}
        live.stack.api.create({**body, **told, **source, "type": "Normal", "count": 1})
    try:
        yield
    finally:
        live.give_up(live.pod(group="t4"))
        for one in live.stack.api.list("v1", "Event", live.stack.namespace):
            if one["metadata"]["name"].startswith("autoscaler-"):
                live.stack.api.delete("v1", "Event", one["metadata"]["name"], live.stack.namespace)


@contextmanager
def another_namespace(live: Live, *, there: bool) -> Iterator[None]:
    """The stack file names a namespace in which the stack is not: `there` says whether it exists."""
    file = live.doctor.root / "stacks" / f"Pulumi.{live.doctor.stack}.yaml"
    before, name = file.read_text(), "empty" if there else "nowhere"
    if there:
        live.stack.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    file.write_text(f"{before}  modelfleet:kubernetes: {{namespace: {name}}}\n")
    try:
        yield
    finally:
        file.write_text(before)
        if there:
            live.stack.api.delete("v1", "Namespace", name)


def _spec(live: Live, patch: Mapping[str, Any]) -> None:
    live.merge("ray.io/v1", "RayService", "fleet", {"spec": dict(patch)})


@contextmanager
def _pod(live: Live, name: str, spec: Mapping[str, Any]) -> Iterator[None]:
    """A pod of the stack's namespace that keeps to its Pod Security level."""
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": _meta(live, name)}
    live.stack.api.create({**body, "spec": {**SAFE, **spec}})
    try:
        yield
    finally:
        live.stack.api.delete("v1", "Pod", name, live.stack.namespace)


@contextmanager
def _job(live: Live, name: str, pod: Mapping[str, Any], **spec: Any) -> Iterator[None]:
    """A Job for the model, beside its mirror's."""
    api, where = live.stack.api, live.stack.plan.mirror_namespace
    labels = {"modelfleet.dev/model": "org-one"}
    template = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", **pod}}
    meta = {"name": name, "namespace": where, "labels": labels}
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta}
    api.create({**body, "spec": {**spec, "template": template}})
    try:
        yield
    finally:
        api.delete("batch/v1", "Job", name, where)


@contextmanager
def _quota(live: Live, where: str) -> Iterator[None]:
    """A quota of no pods, once the API server heeds it."""
    api, meta = live.stack.api, {"name": "few", "namespace": where}
    api.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": {"pods": "0"}}})
    try:
        wait_for("the quota", lambda: (api.get("v1", "ResourceQuota", "few", where) or {}).get("status"))
        yield
    finally:
        api.delete("v1", "ResourceQuota", "few", where)


def _meta(live: Live, name: str) -> dict[str, Any]:
    return {"name": name, "namespace": live.stack.namespace}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


CRASH = "back-off 40s restarting failed container=ray-worker"
NOT_TRIGGERED = "pod didn't trigger scale-up: "
KUBELET: Final = (
    Fault(
        "node-disk-pressure",
        "a node's disk is nearly full",
        partial(condition, "DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure"),
        "written",
    ),
    Fault(
        "node-memory-pressure",
        "a node's memory is nearly used up",
        partial(
            condition,
            "MemoryPressure",
            "True",
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ),
        "written",
    ),
    Fault(
        "node-pid-pressure",
        "a node's process ids are nearly used up",
        partial(
            condition, "PIDPressure", "True", "KubeletHasInsufficientPID", "kubelet has insufficient PID available"
        ),
        "written",
    ),
    Fault(
        "node-network",
        "a node has no pod network",
        partial(
            condition,
            "Ready",
            "False",
            "KubeletNotReady",
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
            "message:Network plugin returns error: cni plugin not initialized",
        ),
        "written",
    ),
    Fault(
        "node-lost",
        "a node's kubelet is silent",
        partial(condition, "Ready", "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status."),
        "written",
    ),
    Fault(
        "node-not-ready",
        "a node's container runtime is down",
        partial(condition, "Ready", "False", "KubeletNotReady", "container runtime is down"),
        "written",
    ),
    Fault(
        "image-denied",
        "the registry does not know the node",
        pulls(
            "failed to resolve reference: pull access denied, repository does not exist or may require authorization"
        ),
        "written",
    ),
    Fault(
        "image-platform",
        "the image is for another processor",
        pulls("no match for platform in manifest: not found"),
        "written",
    ),
    Fault(
        "registry-unreachable",
        "the registry does not answer",
        pulls('failed to do request: Head "https://quay.io/v2/org/serving": dial tcp: lookup quay.io: no such host'),
        "written",
    ),
    Fault(
        "image-absent",
        "the image's tag does not exist",
        pulls("failed to resolve reference: quay.io/org/serving:1: not found"),
        "written",
    ),
    Fault(
        "secret-absent",
        "a Secret of the worker was deleted",
        partial(waiting, "CreateContainerConfigError", 'secret "object-storage" not found'),
        "written",
    ),
    Fault(
        "pod-out-of-memory",
        "the kernel ends the worker for its memory",
        partial(waiting, "CrashLoopBackOff", CRASH, last={"exitCode": 137, "reason": "OOMKilled"}),
        "written",
    ),
    Fault(
        "container-crashes",
        "the worker's program ends",
        partial(waiting, "CrashLoopBackOff", CRASH, last={"exitCode": 1, "reason": "Error"}),
        "written",
    ),
    Fault(
        "evicted",
        "a node's disk is full",
        partial(evicted, "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 2Gi. "),
        "written",
    ),
    Fault(
        "storage-limit",
        "a pod writes more than it may",
        partial(evicted, "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "),
        "written",
    ),
    Fault(
        "pool-at-its-limit",
        "the pool has as many nodes as it may",
        partial(unserved_pool, event=("NotTriggerScaleUp", f"{NOT_TRIGGERED}1 max node group size reached")),
        "written",
    ),
    Fault(
        "pool-backs-off",
        "AWS gave the pool no node a moment ago",
        partial(unserved_pool, event=("NotTriggerScaleUp", f"{NOT_TRIGGERED}1 in backoff after failed scale-up")),
        "written",
    ),
)
REAL: Final = (
    Fault("gpu-not-offered", "a node without NVIDIA's device plugin", no_gpus),
    Fault("pool-without-node", "the pool's label is taken from its node", without_label),
    Fault("taint-not-tolerated", "a node is tainted", tainted),
    Fault("not-enough-gpus", "somebody's pod has the GPU", partial(taken, "nvidia.com/gpu", "1")),
    Fault("not-enough-of-a-node", "somebody's pod has the cores", partial(taken, "cpu", "6")),
    Fault("no-node-matches", "a pool that has no node", unserved_pool),
    Fault("pod-waits", "a volume that nobody made", no_volume),
    Fault("quota-exceeded", "a quota leaves no room for the worker", quota),
    Fault("quota-exceeded", "a quota leaves no room for a Job's pod", job_above_quota),
    Fault("admission-denied", "Pod Security does not allow a Job's pod", unsafe_job),
    Fault("admission-denied", "a policy of the cluster refuses pods", admission_policy),
    Fault("operator-at-fault", "a second operator watches all namespaces", another_operator),
    Fault("scaled-to-zero", "somebody switches the gateway off", switched_off),
    Fault("ray-spec-refused", "the RayService is edited by hand", refused_spec),
    Fault("operator-behind", "the operator is dead", dead_operator),
    Fault("mirror-job-failed", "the copy of the weights takes too long", partial(failed_job, "mirror-org-one-again")),
    Fault("warm-up-job-failed", "the warm-up takes too long", partial(failed_job, "warm-up-org-one-again")),
    Fault("namespace-absent", "the namespace does not exist", partial(another_namespace, there=False)),
    Fault("rayservice-absent", "the namespace is empty", partial(another_namespace, there=True)),
)
FAULTS: Final = (*KUBELET, *REAL)
