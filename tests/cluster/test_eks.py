"""A whole stack with `target: eks`: the AWS half on the emulated account, the cluster half on a real API server.

The cluster that the stand-in makes has the control plane's address; what `aws eks get-token` prints is its token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.test_pulumi import Fleet
from tests.engine.aws_account import Account
from tests.engine.aws_fleet import ACCOUNT, REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tests.engine.engine import Run
from tools.cloud.app import API_SERVERS
from tools.kubernetes.control_plane import ControlPlane

pytestmark = pytest.mark.slow

TOKEN = "hf_0123456789abcdefghijklmnop"
KEY = "sk-alice-0123456789abcdef"
POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.2xlarge"]}
SET = {"secure": "its value is in the project's own settings"}
#: From `-v=9` on the engine logs each property that it receives or sends, secret or not. We cannot change that.
ENGINES_OWN = "arshaling property for RPC["  # Marshaling and Unmarshaling
PROGRAM = """\
import os
from pathlib import Path

import pulumi

import modelfleet.infra.kubernetes.operator
from modelfleet.infra.targets import Given, build
from modelfleet.infra.reading.workspace import make_plan

modelfleet.infra.kubernetes.operator.custom_resource_definitions = list  # the cluster has them, and they are most of the work
root = Path(os.environ["FLEET_ROOT"])
secrets = pulumi.Config("modelfleet")
given = Given(secrets.get_secret("huggingFaceToken"), secrets.get_secret_object("apiKeys"))
for name, value in build(root, make_plan(root, os.environ["FLEET_STACK"]), given).items():
    pulumi.export(name, value)
"""
#: What a workload needs to run and to be deleted: none of it may go while an object of the cluster exists.
NEEDED = (
    "aws:eks/cluster:Cluster",
    "aws:eks/nodeGroup:NodeGroup",
    "aws:eks/accessEntry:AccessEntry",
    "aws:eks/accessPolicyAssociation:AccessPolicyAssociation",
    "aws:eks/podIdentityAssociation:PodIdentityAssociation",
    "aws:eks/addon:Addon",
    "aws:ec2/route:Route",
    "aws:ec2/natGateway:NatGateway",
    "aws:ec2/vpcEndpoint:VpcEndpoint",
    "aws:s3/bucketObjectv2:BucketObjectv2",
)


class EksFleet(Fleet):
    """A project whose program is the shipped one for `target: eks`."""

    def __init__(self, folder: Path, cluster: ControlPlane, name: str, emulator: Emulator) -> None:
        self.cluster, self.name, self._after = cluster, name, ExitStack()
        self.project: FleetProject = FleetProject(folder / "project", emulator, stack=name)
        self.project.program(PROGRAM, prelude="")
        self.logs = folder / "logs"
        self.logs.mkdir()
        settings = yaml.safe_load(cluster.kubeconfig.read_text())
        server = settings["clusters"][0]["cluster"]
        emulator.switch(API_SERVERS, {f"modelfleet-{name}": [server["server"], server["certificate-authority-data"]]})
        self.project.environ |= {
            "PATH": f"{_aws_command(folder / 'bin', settings['users'][0]['user']['token'])}:{os.environ['PATH']}",
            "TMPDIR": str(self.logs),  # where `-v` writes
        }

    def files(self, **stack: Any) -> None:
        """Writes the stack and its one model."""
        self.project.files(stack_of(pools=[POOL], **stack), {"org--m": model("org/m", "L4", replicas=(1, 1))})
        self.plan = self.project.plan()


def _aws_command(folder: Path, token: str) -> Path:
    """The part of the `aws` command that an EKS kubeconfig runs."""
    folder.mkdir()
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "kind": "ExecCredential",
        "status": {"token": token},
    }
    (folder / "answer").write_text(json.dumps(credential))
    (folder / "aws").write_text(f"#!/bin/sh\n[ \"$3 $4\" = 'eks get-token' ] && exec cat '{folder}/answer'\nexit 2\n")
    (folder / "aws").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    running = Emulator(tmp_path_factory.mktemp("emulator"))
    yield running
    running.stop()


@pytest.fixture
def fleet(cluster: ControlPlane, tmp_path: Path, stack_name: str, emulator: Emulator) -> Iterator[EksFleet]:
    made = EksFleet(tmp_path, cluster, stack_name, emulator)
    yield made
    made.close()


def test_a_stack_comes_up_keeps_its_secrets_and_goes_from_the_top_down(fleet: EksFleet, emulator: Emulator) -> None:
    fleet.files(auth="keys", apiKeys=SET, huggingFaceToken=SET)
    fleet.project.set_secret("huggingFaceToken", TOKEN)
    fleet.project.set_secret("apiKeys", json.dumps({"alice": KEY}))
    with _process_lists() as seen:
        preview = fleet.project.preview("-v=8", "--logtostderr")
        up = fleet.first_up("-v=9")
    api, where = fleet.cluster.api, fleet.plan.namespace
    secret = api.get("v1", "Secret", "gateway-keys", where)
    assert secret is not None and base64.b64decode(secret["data"]["keys.map"]), "the keys have not arrived"
    written = [line for file in fleet.logs.glob("pulumi*") for line in file.read_text(errors="replace").splitlines()]
    assert any(ENGINES_OWN in line for line in written), "no log was written, or the engine no longer logs secrets"
    logs = "\n".join(line for line in written if ENGINES_OWN not in line)
    _is_nowhere_in_plain_text(
        {
            "output of preview": preview.text,
            "output of up": up.text,
            "logs": logs,
            "events": json.dumps(preview.events + up.events),
            "state on disk": fleet.project.everything_on_disk(),
            "stack export": json.dumps(fleet.project.deployment()),
            "process lists": "\n".join(seen),
            "objects": _objects(fleet),
        }
    )
    outputs = fleet.project.outputs()
    assert outputs.keys() >= {"base_url", "kubeconfig", "endpoint", "bucket", "image", "pools"}
    _pods_run_what_was_built(fleet, outputs["image"], emulator)
    assert outputs["pools"] and all(key.startswith("l4-us-west-2") for key in outputs["pools"])
    down = fleet.project.destroy()
    _is_deleted_last(down)
    assert api.get("v1", "Namespace", where) is None
    assert Account(emulator, REGION).everything() == []


def _pods_run_what_was_built(fleet: EksFleet, image: str, emulator: Emulator) -> None:
    assert image == _built(fleet, "serving", emulator)
    service = fleet.cluster.api.get("ray.io/v1", "RayService", "fleet", fleet.plan.namespace)
    assert service is not None
    config = service["spec"]["rayClusterConfig"]
    templates = [config["headGroupSpec"]["template"], *(group["template"] for group in config["workerGroupSpecs"])]
    assert {one["image"] for template in templates for one in template["spec"]["containers"]} == {image}
    job = fleet.cluster.api.list("batch/v1", "Job", fleet.plan.mirror_namespace)[0]
    copying = {one["image"] for one in job["spec"]["template"]["spec"]["containers"]}
    assert copying == {_built(fleet, "mirror", emulator)}


def _built(fleet: EksFleet, what: str, emulator: Emulator) -> str:
    repository = f"modelfleet-{fleet.name}/{what}"
    (built,) = emulator.client("ecr").describe_images(repositoryName=repository)["imageDetails"]
    return f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{repository}@{built['imageDigest']}"


@contextmanager
def _process_lists() -> Iterator[set[str]]:
    """All command lines of this machine while the block runs."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            for line in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(line.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue  # it has ended

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def _objects(fleet: EksFleet) -> str:
    """All of the stack's objects except its Secrets."""
    kinds = {
        "v1": ("Pod", "ConfigMap", "Service", "ServiceAccount"),
        "apps/v1": ("Deployment", "DaemonSet"),
        "batch/v1": ("Job",),
        "ray.io/v1": ("RayService", "RayCluster"),
    }
    spaces = fleet.plan.namespace, fleet.plan.mirror_namespace
    found = [
        [one for space in spaces for one in fleet.cluster.api.list(version, kind, space)]
        for version, all in kinds.items()
        for kind in all
    ]
    assert all(found[kind] for kind in (0, 1, 4, 7)), "there is nothing to check"
    return json.dumps(found)


def _is_nowhere_in_plain_text(texts: dict[str, str]) -> None:
    forms = {"token": TOKEN, "key": KEY, "hash of the key": hashlib.sha256(KEY.encode()).hexdigest()}
    forms |= {f"base64 of the {name}": base64.b64encode(value.encode()).decode() for name, value in forms.items()}
    forms["kubeconfig"] = '"current-context"'
    forms["kubeconfig in a string"] = '\\"current-context\\"'
    found = [
        f"{name} in {place}: {line[:300]}"
        for place, text in texts.items()
        for name, form in forms.items()
        for line in text.splitlines()
        if form in line
    ]
    assert not found, found


def _is_deleted_last(down: Run) -> None:
    """The last object of the cluster is deleted before the first thing that it needs."""
    gone: list[int] = []
    going: list[int] = []
    for index, event in enumerate(down.events):
        if done := event.get("resOutputsEvent"):
            kind = done["metadata"]["type"]
            if kind.startswith("kubernetes:"):
                gone.append(index)
        begun = event.get("resourcePreEvent", {}).get("metadata", {})
        # Objects wait for no pool's nodes, neither to come nor to go: they need the system pool's.
        if begun.get("type") in NEEDED and "modelfleet:aws:NodeGroups$" not in begun["urn"]:
            going.append(index)
    assert len(gone) > 20 and len(going) > 10
    assert max(gone) < min(going), "objects of the cluster cannot be deleted without its access, nodes and network"
