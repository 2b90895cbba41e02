"""One real control plane per test process; each test has its own stack, and so its own namespace and nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.api import ApiError
from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.operator import custom_resource_definitions
from modelfleet.infra.planning import Plan
from modelfleet.serving.config.errors import SetupError
from tests.cluster.eks_nodes import pool_nodes, system_nodes
from tests.cluster.fleet import planned
from tests.waiting import wait_until
from tools.go_toolchain import go_command
from tools.kubernetes.api import WritingApi
from tools.kubernetes.binaries import build_all, missing
from tools.kubernetes.control_plane import ControlPlane

MANAGER = "modelfleet-tests"
numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[ControlPlane]:
    """The control plane with KubeRay's CRDs."""
    if missing():
        try:
            go_command("the control plane of these tests")
        except SetupError as error:
            pytest.skip(str(error))
    build_all()
    with ControlPlane() as plane:
        for crd in custom_resource_definitions():
            plane.api.apply(crd, manager=MANAGER, force=True)
        wait_for("the CRDs", lambda: plane.api.list("ray.io/v1", "RayService") is not None)
        yield plane


@pytest.fixture
def stack_name() -> str:
    """A name that no other test of this process uses."""
    return f"t{next(numbers)}"


@dataclass
class Stack:
    """A stack applied to the cluster, with its nodes and its own operator."""

    plan: Plan
    cluster: ControlPlane
    root: Path

    @property
    def api(self) -> WritingApi:
        return self.cluster.api

    @property
    def namespace(self) -> str:
        return self.plan.namespace

    def apply(self, plan: Plan | None = None) -> None:
        """Apply every manifest as the renderer wrote it."""
        self.plan = plan or self.plan
        apply_all(self.api, everything(self.plan))

    def start_operator(self) -> None:
        """The real operator with the rights of its ServiceAccount, and no others."""
        kubeconfig = self.cluster.kubeconfig_for(self.namespace, "kuberay-operator")
        flags = (f"-watch-namespace={self.namespace}", f"-leader-election-namespace={self.namespace}")
        self.cluster.start_operator(kubeconfig, arguments=flags)

    def ray_cluster(self) -> dict[str, Any]:
        """The one RayCluster of the stack."""
        found = wait_for("a RayCluster", lambda: self.api.list("ray.io/v1", "RayCluster", self.namespace))
        assert len(found) == 1, [item["metadata"]["name"] for item in found]
        return found[0]

    def workers(self) -> list[dict[str, Any]]:
        """Worker pods that are not being deleted."""
        pods = self.api.list("v1", "Pod", self.namespace, "ray.io/node-type=worker")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def scale(self, replicas: dict[str, int]) -> None:
        """What Ray's autoscaler does: set `replicas` of worker groups in the RayCluster."""
        live = self.ray_cluster()
        groups = live["spec"]["workerGroupSpecs"]
        for group in groups:
            group["replicas"] = replicas.get(group["groupName"], group.get("replicas", 0))
        self.api.merge(
            "ray.io/v1", "RayCluster", live["metadata"]["name"], self.namespace, {"spec": {"workerGroupSpecs": groups}}
        )


@pytest.fixture
def stack_of(cluster: ControlPlane, stack_name: str, tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Plans a project, makes its nodes, applies it and starts its operator; deletes all of it afterwards."""
    made: list[Stack] = []

    def make(models: list[dict[str, Any]], *, most_nodes: int = 9, **config: Any) -> Stack:
        stack = Stack(planned(tmp_path, models, stack=stack_name, **config), cluster, tmp_path)
        made.append(stack)
        pools = stack.plan.node_groups
        fleet = [node for pool in pools for node in pool_nodes(stack.plan, pool, min(pool.max_nodes, most_nodes))]
        for node in [*system_nodes(stack.plan), *fleet]:
            cluster.api.create(node)
        stack.apply()
        stack.start_operator()
        return stack

    yield make
    for stack in made:
        take_away(stack)


def _let_go(stack: Stack) -> None:
    """Placeholders of a test that failed before they were needed no more: no object owns them."""
    for pod in stack.api.list("v1", "Pod", stack.namespace, "modelfleet.dev/placeholder"):
        stack.api.delete("v1", "Pod", pod["metadata"]["name"], stack.namespace)


def take_away(stack: Stack) -> None:
    """Leave the shared cluster as it was, in the order of `pulumi destroy`: workloads, operator, namespace."""
    api, where = stack.api, stack.namespace
    api.delete("ray.io/v1", "RayService", "fleet", where)
    for deployment in api.list("apps/v1", "Deployment", where):
        api.delete("apps/v1", "Deployment", deployment["metadata"]["name"], where)
    for kind in ("nvidia-device-plugin", "dcgm-exporter", "log-collector"):
        api.delete("apps/v1", "DaemonSet", kind, "kube-system")
    copies = stack.plan.mirror_namespace
    for job in api.list("batch/v1", "Job", copies):
        api.delete("batch/v1", "Job", job["metadata"]["name"], copies)
    if "kuberay-operator" not in stack.cluster.pids():
        stack.start_operator()
    spaces = dict.fromkeys((where, copies))
    _let_go(stack)
    wait_for("all pods to go", lambda: not [pod for one in spaces for pod in api.list("v1", "Pod", one)], seconds=120)
    if "kuberay-operator" in stack.cluster.pids():
        stack.cluster.kill("kuberay-operator")
    for one in spaces:
        api.delete("v1", "Namespace", one)
    for name in ("front", "placeholder"):
        api.delete("scheduling.k8s.io/v1", "PriorityClass", f"{where}-{name}")
    for kind in ("ClusterRoleBinding", "ClusterRole"):
        api.delete("rbac.authorization.k8s.io/v1", kind, f"{where}-ladder-return")
    for kind in ("ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy"):
        api.delete("admissionregistration.k8s.io/v1", kind, f"{where}-head")
    for node in api.list("v1", "Node", selector=f"modelfleet.dev/stack={stack.plan.stack}"):
        api.delete("v1", "Node", node["metadata"]["name"])


def apply_all(api: WritingApi, manifests: list[dict[str, Any]]) -> None:
    """Apply in order, as one manager."""
    for manifest in manifests:
        api.apply(manifest, manager=MANAGER, force=True)


def wait_for(what: str, probe: Callable[[], Any], *, seconds: float = 30.0) -> Any:
    """The first true value of `probe`; fails with `what` after `seconds`."""
    return wait_until(probe, what=what, seconds=seconds, retry=ApiError, every_s=0.2)
