"""The programs of docs/component.md that use a cluster of the user's, on a real control plane."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.eks_nodes import allocatable
from tests.engine.component_examples import REGION, ExampleProject, shown_outputs, would_make
from tests.engine.conftest import Emulator
from tests.engine.engine import Project
from tests.waiting import wait_until
from tools.kubernetes.control_plane import ControlPlane
from tools.kubernetes.nodes import fake_node

pytestmark = pytest.mark.slow

HERE = {"Your cluster", "Your cluster and bucket", "Your cluster and namespace", "A stack file, and what exists"}

#: What another team's stack says about its cluster.
PLATFORM = """\
import os
import pulumi

with open(os.environ["CLUSTER"]) as file:
    pulumi.export("kubeconfig", pulumi.Output.secret(file.read()))
pulumi.export("namespace", "team-llm")
pulumi.export("bucket", "company-llm-code")
"""
STACK = """\
config:
  modelfleet:target: kubernetes
  modelfleet:auth: none
  modelfleet:models: [HuggingFaceTB--SmolLM2-1.7B-Instruct]
  modelfleet:pools:
    - {name: l4, accelerator: L4, maxNodes: 2, instanceTypes: [g6.2xlarge]}
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    running = Emulator(tmp_path_factory.mktemp("emulator"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def project(
    cluster: ControlPlane, emulator: Emulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ExampleProject]:
    """A project beside another team's, whose stack `platform/prod` has the cluster; its nodes are labelled."""
    own = ExampleProject(tmp_path_factory.mktemp("own"), emulator)
    (own.folder / "stacks").mkdir()
    (own.folder / "stacks" / "Pulumi.prod.yaml").write_text(STACK)
    shared = {"PULUMI_BACKEND_URL": own.environ["PULUMI_BACKEND_URL"], "CLUSTER": str(cluster.kubeconfig)}
    platform = Project(tmp_path_factory.mktemp("platform"), name="platform", stack="prod", environ=shared)
    platform.program(PLATFORM, prelude="")
    platform.up()
    for stack in ("llm", "prod"):
        labels = {"modelfleet.dev/stack": stack, "modelfleet.dev/pool": "l4"}
        cluster.api.create(fake_node(f"{stack}-l4", allocatable("g6.2xlarge"), labels=labels))
    yield own
    for stack in ("llm", "prod"):
        cluster.api.delete("v1", "Node", f"{stack}-l4")
    assert own.living_processes() == []


@pytest.mark.parametrize(
    ("heading", "namespace", "buckets", "namespaces"),
    [
        pytest.param(
            "Your cluster",
            "modelfleet-llm",
            ["modelfleet-llm-123456789012"],
            ["modelfleet-llm", "modelfleet-llm-mirror"],
            id="alone",
        ),
        pytest.param(
            "Your cluster and namespace", "team-llm", ["modelfleet-llm-123456789012"], ["team-llm"], id="namespace"
        ),
    ],
)
def test_what_exists_is_used_and_the_rest_is_made(
    project: ExampleProject, heading: str, namespace: str, buckets: list[str], namespaces: list[str]
) -> None:
    project.example(heading)
    run = project.preview()
    made = would_make(run)
    assert shown_outputs(run)["base_url"] == f"http://gateway.{namespace}.svc.cluster.local/v1", "and it is no secret"
    assert [one["bucket"] for one in made["aws:s3/bucket:Bucket"]] == buckets
    assert sorted(one["metadata"]["name"] for one in made["kubernetes:core/v1:Namespace"]) == namespaces
    (service,) = made["kubernetes:ray.io/v1:RayService"]
    assert service["metadata"]["namespace"] == namespace


def test_a_bucket_of_the_program_is_deleted_after_what_the_fleet_has_in_it(
    project: ExampleProject, cluster: ControlPlane, emulator: Emulator
) -> None:
    project.example("Your cluster and bucket")
    up_until_ray_starts(project, cluster, "modelfleet-llm")
    (code,) = project.resources("aws:s3/bucketObjectv2:BucketObjectv2")
    assert code["inputs"]["bucket"] == "company-llm-code" and emulator.buckets() == {"company-llm-code"}
    (fleet,), (bucket,) = (project.resources(kind) for kind in ("modelfleet:index:Fleet", "aws:s3/bucket:Bucket"))
    assert bucket["urn"] in fleet["dependencies"], "otherwise only the depth of the tree decides what is deleted first"
    project.destroy()
    assert emulator.buckets() == set()
    assert cluster.api.get("v1", "Namespace", "modelfleet-llm") is None


def test_what_another_stack_has_stays_as_it_was_when_the_fleet_goes(
    project: ExampleProject, cluster: ControlPlane, emulator: Emulator
) -> None:
    s3, api = emulator.client(region=REGION), cluster.api
    s3.create_bucket(Bucket="company-llm-code")
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-llm", "labels": {"team": "llm"}}})
    labels = api.get("v1", "Namespace", "team-llm")["metadata"]["labels"]
    project.example("A stack file, and what exists")
    up_until_ray_starts(project, cluster, "team-llm")
    assert project.outputs()["base_url"] == "http://gateway.team-llm.svc.cluster.local/v1"
    assert s3.list_objects_v2(Bucket="company-llm-code")["KeyCount"] == 1, "the code"
    assert api.get("v1", "ResourceQuota", "gpus", "team-llm")
    project.destroy()
    assert api.get("v1", "Namespace", "team-llm")["metadata"]["labels"] == labels
    assert api.get("v1", "ResourceQuota", "gpus", "team-llm") is None
    assert s3.list_objects_v2(Bucket="company-llm-code")["KeyCount"] == 0
    s3.delete_bucket(Bucket="company-llm-code")
    api.delete("v1", "Namespace", "team-llm")


def up_until_ray_starts(project: ExampleProject, cluster: ControlPlane, namespace: str) -> None:
    """`pulumi up`, stopped as by Ctrl-C at what needs a KubeRay operator, which comes last."""
    running = project.start("up")

    def started() -> object:
        assert not running.ended(), running.finish().text
        return cluster.api.get("ray.io/v1", "RayService", "fleet", namespace)

    wait_until(started, what="the RayService", seconds=240)
    run = running.interrupt()
    assert "RayService" in "\n".join(run.diagnostics()) and "Traceback" not in run.text, run.text
