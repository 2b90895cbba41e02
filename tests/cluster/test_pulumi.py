"""`pulumi up` and `destroy` of the cluster half on the real engine, the real API server and the real operator."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.teardown import release
from modelfleet.infra.planning import Plan
from tests.cluster.conftest import wait_for
from tests.cluster.eks_nodes import pool_nodes, system_nodes
from tests.cluster.fleet import model, planned
from tests.cluster.head import FakeRay, head_address, head_token, on_loopback
from tests.engine.engine import PULUMI, Background, Project, Run
from tools.kubernetes.control_plane import ControlPlane

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
L4 = [{"name": "l4", "accelerator": "L4", "maxNodes": 3, "instanceTypes": ["g6.2xlarge"]}]

PROGRAM = f"""\
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import pulumi
import modelfleet.infra.kubernetes.operator
from modelfleet.infra.kubernetes.fleet import KubernetesFleet
from modelfleet.infra.kubernetes.preflight import check_cluster
from modelfleet.infra.planning import plan
from modelfleet.infra.planning.plan import CodeArtifact
from modelfleet.infra.reading.workspace import read_workspace
from modelfleet.serving.config.errors import ModelfleetError

config = pulumi.Config()
if not config.get_bool("crds"):
    # The cluster has them, and they are most of the work of a run; one test applies them.
    modelfleet.infra.kubernetes.operator.custom_resource_definitions = list
workspace = read_workspace(Path(os.environ["FLEET_ROOT"]), os.environ["FLEET_STACK"])
planned = plan(workspace.models, workspace.stack, code=CodeArtifact("0" * 64))
try:
    if notice := check_cluster(planned):  # as infra/targets.py, whose bucket these tests do not need
        pulumi.log.warn(notice)
    fleet = KubernetesFleet(
        "fleet",
        planned,
        huggingface_token=config.get_secret("token"),
        api_keys=config.get_secret_object("keys"),
    )
except ModelfleetError as error:
    pulumi.log.error(str(error))
    sys.exit(32)  # as infra/program.py
pulumi.export("base_url", fleet.base_url)
"""


class Fleet:
    """A project whose program is the cluster half, with the cluster's nodes and a server that answers for its head."""

    def __init__(self, folder: Path, cluster: ControlPlane, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.source = folder / "fleet"
        environ = {"FLEET_ROOT": str(self.source), "FLEET_STACK": name, "KUBECONFIG": str(cluster.kubeconfig)}
        plugins = {"providers": [{"name": "modelfleet", "path": str(PULUMI.parent)}]}
        self.project = Project(folder / "project", pulumi_yaml={"plugins": plugins}, environ=environ)
        self.project.program(PROGRAM, prelude="")
        self.plan: Plan
        self.ray: FakeRay
        self._after = ExitStack()

    def write(self, models: list[dict[str, Any]], **config: Any) -> None:
        self.plan = planned(self.source, models, stack=self.name, **{"pools": L4, **config})

    def make_nodes(self) -> None:
        """The nodes that someone labelled for the stack."""
        for node in [*system_nodes(self.plan), *(n for p in self.plan.pools for n in pool_nodes(self.plan, p, 1))]:
            self.cluster.api.create(node)

    def first_up(self, *more: str) -> Run:
        """`pulumi up` from nothing."""
        self.make_nodes()
        return self.up_with_operator(*more)

    def up_with_operator(self, *more: str) -> Run:
        """`pulumi up`: while it waits, the operator comes up and the head answers."""
        api = self.cluster.api
        running = self.project.start("up", *more)
        try:
            self.start_operator(running)
            address = self._after.enter_context(on_loopback(head_address(api, self.plan.namespace)))
            self.ray = self._after.enter_context(FakeRay(address, head_token(api, self.plan.namespace)))
        except BaseException:
            run = running.interrupt()
            print(run.text)
            raise
        run = running.finish()
        assert run.code == 0, run.text
        return run

    def stop_operator(self) -> None:
        self.cluster.kill("kuberay-operator")

    def start_operator(self, up: Background) -> None:
        where = self.plan.namespace

        def has_rights() -> object:
            assert not up.ended(), "`pulumi up` has ended before the operator got its rights"
            # The binding may be there before the account that it names: the engine makes both at once.
            parts = (("v1", "ServiceAccount"), ("rbac.authorization.k8s.io/v1", "RoleBinding"))
            return all(self.cluster.api.get(*part, "kuberay-operator", where) for part in parts)

        wait_for("the operator's rights", has_rights, seconds=240)
        kubeconfig = self.cluster.kubeconfig_for(where, "kuberay-operator")
        flags = (f"-watch-namespace={where}", f"-leader-election-namespace={where}")
        self.cluster.start_operator(kubeconfig, arguments=flags)

    def close(self) -> None:
        api = self.cluster.api
        if self.project.deployment().get("resources"):
            self.project.destroy(check=False)
        self._after.close()
        if "kuberay-operator" in self.cluster.pids():
            self.cluster.kill("kuberay-operator")
        for node in api.list("v1", "Node", selector=f"modelfleet.dev/stack={self.name}"):
            api.delete("v1", "Node", node["metadata"]["name"])


@pytest.fixture
def fleet(cluster: ControlPlane, tmp_path: Path, stack_name: str) -> Iterator[Fleet]:
    made = Fleet(tmp_path, cluster, stack_name)
    yield made
    made.close()


def test_up_is_ready_then_unchanged_then_an_edit_touches_the_ray_service_only_then_nothing_is_left(
    fleet: Fleet,
) -> None:
    fleet.write([model("org/one", "L4"), model("org/two", "L4", replicas=(0, 1))])
    fleet.first_up()
    api, where = fleet.cluster.api, fleet.plan.namespace
    service = api.get("ray.io/v1", "RayService", "fleet", where)
    assert service is not None
    conditions = {c["type"]: c["status"] for c in service["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    assert [a["name"] for a in fleet.ray.config["applications"]] == ["org--one", "org--two"]

    second = fleet.project.up("--refresh")
    assert set(second.changes) == {"same"}, second.text

    fleet.write([model("org/one", "L4", max_total_tokens=1024), model("org/two", "L4", replicas=(0, 1))])
    assert ("update", "fleet-ray-service") in fleet.project.preview().steps()
    third = fleet.project.up()
    assert third.steps() == [("update", "fleet-ray-service")], third.text

    (cluster,) = api.list("ray.io/v1", "RayCluster", where)
    fleet.write(
        [model("org/one", "L4", max_total_tokens=1024), model("org/two", "L4", replicas=(0, 1))],
        pools=[{**L4[0], "minNodes": 2, "maxNodes": 7}],
    )
    fleet.project.up()
    (resized,) = api.list("ray.io/v1", "RayCluster", where)
    (group,) = resized["spec"]["workerGroupSpecs"]
    assert resized["metadata"]["uid"] == cluster["metadata"]["uid"], "the cluster was rebuilt"
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 8), "KubeRay itself changes neither on a live cluster"

    fleet.project.destroy()
    assert api.get("v1", "Namespace", where) is None
    assert api.list("ray.io/v1", "RayService") == []
    assert api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "rayclusters.ray.io") is not None
    assert fleet.project.deployment().get("resources", []) == []


def test_an_interrupted_run_is_finished_by_the_next_and_what_is_gone_comes_back(fleet: Fleet) -> None:
    """Nothing half made remains, and afterwards state and cluster agree."""
    fleet.write([model("org/one", "L4")])
    fleet.make_nodes()
    api, where = fleet.cluster.api, fleet.plan.namespace
    running = fleet.project.start("up")
    wait_for("the RayService", lambda: api.get("ray.io/v1", "RayService", "fleet", where), seconds=240)
    assert running.interrupt().code != 0, "it must wait for an operator that does not exist"

    fleet.up_with_operator()
    service = api.get("ray.io/v1", "RayService", "fleet", where)
    assert service is not None
    assert {c["type"]: c["status"] for c in service["status"]["conditions"]}["Ready"] == "True"

    api.delete("apps/v1", "Deployment", "gateway", where)
    api.delete("networking.k8s.io/v1", "NetworkPolicy", "closed", where)
    again = fleet.project.up("--refresh")
    made = {("create", "fleet-gateway-deployment"), ("create", "fleet-base-networkpolicy-closed")}
    assert {step for step in again.steps() if step[0] != "refresh"} == made
    assert api.get("networking.k8s.io/v1", "NetworkPolicy", "closed", where) is not None
    assert set(fleet.project.up("--refresh").changes) == {"same"}


def test_a_changed_key_rolls_the_gateway_alone_and_no_secret_is_in_plain_text(fleet: Fleet) -> None:
    key, other, token = "sk-one-0123456789abcdef", "sk-two-0123456789abcdef", "hf_0123456789abcdefghij"
    fleet.write([model("org/one", "L4")], pools=[{**L4[0], "minNodes": 1}], kubernetes={"rayTls": True})
    fleet.project.set_secret("token", token)
    fleet.project.set_secret("keys", json.dumps({"alice": key}))
    fleet.first_up()
    api, where = fleet.cluster.api, fleet.plan.namespace
    before = api.list("ray.io/v1", "RayCluster", where)[0]["metadata"]["uid"]
    secret = api.get("v1", "Secret", "gateway-keys", where)
    assert secret is not None
    wanted = f"{hashlib.sha256(key.encode()).hexdigest()} alice\n"
    assert base64.b64decode(secret["data"]["keys.map"]).decode() == wanted

    authority = api.get("v1", "Secret", "ray-authority-1", where)
    assert authority is not None
    pods = api.list("v1", "Pod", where, "ray.io/cluster")
    first = {pod["metadata"]["labels"]["ray.io/node-type"]: pod["spec"]["initContainers"] for pod in pods}
    assert [one["name"] for one in first["worker"]] == ["certificate", "wait-gcs-ready"], "which needs the certificate"
    asks = {one["name"]: one.get("value") for one in first["worker"][1]["env"]}
    assert asks["RAY_USE_TLS"] == "1" and "certificates" in [one["name"] for one in first["worker"][1]["volumeMounts"]]

    fleet.project.set_secret("keys", json.dumps({"alice": key, "bob": other}))
    run = fleet.project.up()
    assert sorted(run.steps()) == [("update", "fleet-gateway-deployment"), ("update", "fleet-secrets-gateway-keys")]
    assert api.list("ray.io/v1", "RayCluster", where)[0]["metadata"]["uid"] == before
    now = api.get("v1", "Secret", "ray-authority-1", where)
    assert now is not None and now["data"] == authority["data"], "each run makes an authority; pods keep the first"
    private = base64.b64decode(authority["data"]["tls.key"]).decode()
    everything = fleet.project.everything_on_disk() + run.text
    hashes = [hashlib.sha256(one.encode()).hexdigest() for one in (key, other)]
    for value in (
        key,
        other,
        token,
        *hashes,
        private.splitlines()[1],
        authority["data"]["tls.key"][:60],
        base64.b64encode(token.encode()).decode(),
    ):
        assert value not in everything


@pytest.mark.long(why="waits until the operator counts as gone")
def test_without_its_operator_a_stack_can_still_be_taken_away(fleet: Fleet) -> None:
    fleet.write([model("org/one", "L4")])
    fleet.first_up()
    api, where = fleet.cluster.api, fleet.plan.namespace
    assert release(api, where, where) == [], "the operator exists, so the deletion is its task"
    fleet.stop_operator()
    api.delete("apps/v1", "Deployment", "kuberay-operator", where)
    wait_for("the Deployment to go", lambda: api.get("apps/v1", "Deployment", "kuberay-operator", where) is None)
    assert "RayService fleet" in release(api, where, where)
    fleet.project.destroy()
    assert api.get("v1", "Namespace", where) is None
    assert api.list("ray.io/v1", "RayCluster") == []


def test_a_cluster_that_does_not_answer_is_one_message(fleet: Fleet) -> None:
    fleet.write([model("org/one", "L4")])
    fleet.project.environ["KUBECONFIG"] = str(fleet.source / "nowhere")
    run = fleet.project.up(check=False)
    assert run.code != 0
    errors = [line for line in run.diagnostics() if "cannot be read" in line]
    assert len(errors) == 1 and "Traceback" not in run.text, run.text
    assert run.changes.get("create", 0) <= 1, "something was made"


def test_an_object_of_somebody_else_is_left_alone(fleet: Fleet) -> None:
    fleet.write([model("org/one", "L4")])
    api, where = fleet.cluster.api, fleet.plan.namespace
    for node in [*system_nodes(fleet.plan), *pool_nodes(fleet.plan, fleet.plan.pools[0], 1)]:
        api.create(node)
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": where, "labels": {"owner": "others"}}})
    run = fleet.project.up(check=False)
    assert f"Namespace {where} already exists" in run.text
    namespace = api.get("v1", "Namespace", where)
    assert namespace is not None and namespace["metadata"]["labels"]["owner"] == "others"
    assert "modelfleet.dev/stack" not in namespace["metadata"]["labels"]


@pytest.mark.long(why="another control plane")
def test_an_old_definition_is_brought_up_to_date_before_the_operator_starts(fleet: Fleet) -> None:
    """kuberay#2084: a new operator on an old CRD deleted all workers."""
    api = fleet.cluster.api
    crd = api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "rayservices.ray.io")
    assert crd is not None
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    groups = schema["rayClusterConfig"]["properties"]["workerGroupSpecs"]["items"]["properties"]
    del groups["resources"]
    api.replace(crd)

    fleet.write([model("org/one", "L4")])
    fleet.project.config["crds"] = "true"
    run = fleet.first_up()
    order = [name for _, name in run.steps()]
    crds = [index for index, name in enumerate(order) if "customresourcedefinition" in name]
    assert len(crds) == 3 and max(crds) < order.index("fleet-operator-deployment-kuberay-operator")
    service = api.get("ray.io/v1", "RayService", "fleet", fleet.plan.namespace)
    assert service is not None
    assert "resources" in service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0], "the field was dropped"
