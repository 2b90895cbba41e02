"""One message reports everything that is wrong with a cluster, before anything is made."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.preflight import check_cluster
from modelfleet.infra.planning import Plan
from modelfleet.serving.config.errors import SetupError
from tests.cluster.conftest import MANAGER, Stack
from tests.cluster.eks_nodes import allocatable, pool_nodes
from tests.cluster.fleet import model, planned
from tools.kubernetes.control_plane import ControlPlane
from tools.kubernetes.nodes import fake_node

pytestmark = pytest.mark.slow

POOLS = [{"name": "l4", "accelerator": "L4", "maxNodes": 1, "instanceTypes": ["g6.2xlarge"]}]


def plan_for(root: Path, stack: str, kubeconfig: Path | str, **kubernetes: str | bool) -> Plan:
    settings = {"kubeconfig": str(kubeconfig), **kubernetes}
    return planned(root, [model("org/one", "L4")], stack=stack, pools=POOLS, kubernetes=settings)


def message(plan: Plan) -> str:
    with pytest.raises(SetupError) as caught:
        check_cluster(plan)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_kubeconfig_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in message(plan_for(tmp_path, "a", tmp_path / "none"))


@pytest.mark.parametrize("text", ["", "][", "{}", "kind: Config\ncurrent-context: x\n"])
def test_a_file_that_is_no_kubeconfig(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    assert "cannot be used: " in message(plan_for(tmp_path, "a", tmp_path / "config"))


def test_nobody_answers(tmp_path: Path, cluster: ControlPlane) -> None:
    config = json.loads(cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "config").write_text(json.dumps(config))
    assert "no Kubernetes API answers at https://127.0.0.1:1" in message(plan_for(tmp_path, "a", tmp_path / "config"))


def test_another_clusters_certificate(tmp_path: Path, cluster: ControlPlane) -> None:
    config = json.loads(cluster.kubeconfig.read_text())
    del config["clusters"][0]["cluster"]["certificate-authority-data"]
    (tmp_path / "config").write_text(json.dumps(config))
    assert "certificate is not trusted" in message(plan_for(tmp_path, "a", tmp_path / "config"))


def test_a_token_that_is_not_known(tmp_path: Path, cluster: ControlPlane) -> None:
    config = json.loads(cluster.kubeconfig.read_text())
    config["users"][0]["user"]["token"] = "wrong"
    (tmp_path / "config").write_text(json.dumps(config))
    text = message(plan_for(tmp_path, "a", tmp_path / "config"))
    assert "refused" in text and "wrong" not in text


def test_a_user_without_rights_learns_all_that_are_missing(tmp_path: Path, cluster: ControlPlane) -> None:
    api = cluster.api
    api.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "weak", "namespace": "default"}},
        manager=MANAGER,
    )
    reader = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    nodes = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "nodes"}}
    api.apply({**nodes, "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]}, manager=MANAGER)
    for name, role in (("weak-view", reader), ("weak-nodes", {**reader, "name": "nodes"})):
        subject = {"kind": "ServiceAccount", "name": "weak", "namespace": "default"}
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
        }
        api.apply({**binding, "roleRef": role, "subjects": [subject]}, manager=MANAGER)
    weak = cluster.kubeconfig_for("default", "weak")
    text = message(plan_for(tmp_path, "a", weak))
    for part in ("create/patch/delete namespaces", "rayservices", "secrets", "customresourcedefinitions"):
        assert part in text
    assert "lacks the rights to" in text
    given = message(plan_for(tmp_path, "a", weak, namespace="default", createNamespace=False))
    assert "namespaces" not in given and "create/patch/delete secrets" in given


def test_a_pool_without_a_node_says_how_to_label_one(tmp_path: Path, cluster: ControlPlane, stack_name: str) -> None:
    text = message(plan_for(tmp_path, stack_name, cluster.kubeconfig))
    assert f"kubectl label node NAME modelfleet.dev/pool=l4 modelfleet.dev/stack={stack_name}" in text


def test_a_pool_whose_nodes_have_no_gpus(tmp_path: Path, cluster: ControlPlane, stack_name: str) -> None:
    plan = plan_for(tmp_path, stack_name, cluster.kubeconfig)
    amounts = {k: v for k, v in allocatable("g6.2xlarge").items() if "gpu" not in k}
    cluster.api.create(fake_node(f"{stack_name}-bare", amounts, labels=plan.pools[0].labels))
    assert "no node of pool l4 offers 1 nvidia.com/gpu" in message(plan)
    cluster.api.delete("v1", "Node", f"{stack_name}-bare")


def test_a_cluster_that_fits_is_accepted(tmp_path: Path, cluster: ControlPlane, stack_name: str) -> None:
    plan = plan_for(tmp_path, stack_name, cluster.kubeconfig)
    (node,) = pool_nodes(plan, plan.pools[0], 1)
    cluster.api.create(node)
    check_cluster(plan)
    cluster.api.delete("v1", "Node", node["metadata"]["name"])


@contextmanager
def operator_in(cluster: ControlPlane, namespace: str, *arguments: str) -> Iterator[None]:
    """Someone else's operator, as far as the cluster shows."""
    name = {"name": "kuberay-operator", "namespace": namespace}
    container = {"name": "o", "image": "quay.io/kuberay/operator:v1.3.0", "args": list(arguments)}
    labels = {"matchLabels": {"a": "b"}}
    spec = {
        "selector": labels,
        "template": {"metadata": {"labels": labels["matchLabels"]}, "spec": {"containers": [container]}},
    }
    cluster.api.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": name, "spec": spec}, manager=MANAGER)
    try:
        yield
    finally:
        cluster.api.delete("apps/v1", "Deployment", "kuberay-operator", namespace)


def test_an_operator_that_watches_all_namespaces_is_named(
    tmp_path: Path, cluster: ControlPlane, stack_of: Callable[..., Stack], stack_name: str
) -> None:
    stack = stack_of([model("org/one", "L4")], pools=POOLS)
    plan = plan_for(tmp_path / "other", stack_name, cluster.kubeconfig)
    check_cluster(plan)  # our operator, and others that keep to their namespace, are not a problem
    with operator_in(cluster, "default"):
        assert "in namespace default watches all namespaces" in message(plan)
    assert stack.namespace != "default"


@contextmanager
def old_definition(cluster: ControlPlane) -> Iterator[None]:
    """The RayService definition of a KubeRay without `resources` in worker groups and without `authOptions`."""

    def live() -> dict[str, Any]:
        found = cluster.api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "rayservices.ray.io")
        assert found is not None
        return found

    def put(crd: dict[str, Any]) -> None:
        crd["metadata"]["resourceVersion"] = live()["metadata"]["resourceVersion"]
        cluster.api.replace(crd)

    new = live()
    old = copy.deepcopy(new)
    at = next(v for v in old["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    fields = at["properties"]["spec"]["properties"]["rayClusterConfig"]["properties"]
    del fields["workerGroupSpecs"]["items"]["properties"]["resources"], fields["authOptions"]
    put(old)
    try:
        yield
    finally:
        put(new)


def test_an_operator_that_the_cluster_has_must_be_there_and_watch_the_stack(
    tmp_path: Path, cluster: ControlPlane, stack_name: str
) -> None:
    plan = plan_for(tmp_path, stack_name, cluster.kubeconfig, operatorNamespace="default")
    (node,) = pool_nodes(plan, plan.pools[0], 1)
    cluster.api.create(node)
    assert "no KubeRay operator runs in namespace default" in message(plan)
    with operator_in(cluster, "default", "--watch-namespace=team-a,team-b"):
        assert f"in namespace default does not watch {plan.namespace}" in message(plan)
    with operator_in(cluster, "default", f"--watch-namespace=team-a,{plan.namespace}"):
        check_cluster(plan)
    with operator_in(cluster, "default"):
        check_cluster(plan)
        with old_definition(cluster):
            said = message(plan)
            assert "definition is too old: its worker groups have no `resources` and it has no `authOptions`" in said
            assert "install KubeRay" in said
        check_cluster(plan)
    cluster.api.delete("v1", "Node", node["metadata"]["name"])
