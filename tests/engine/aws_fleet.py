"""A fleet on the emulated AWS: the real planner and components, from a stack file and model files in a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from modelfleet.infra.planning import Plan, plan
from modelfleet.infra.planning.plan import CodeArtifact
from modelfleet.infra.reading.image import image_source
from modelfleet.infra.reading.workspace import read_workspace
from tests.engine.conftest import Emulator
from tests.engine.engine import PULUMI, Project

REPOSITORY = Path(__file__).resolve().parents[2]
#: Where the plugin `modelfleet` is.
PLUGINS = PULUMI.parent
REGION = "us-west-2"
ACCOUNT = "123456789012"
#: The least that moto takes for an image.
IMAGE_MANIFEST = json.dumps(
    {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": []}
)

PROGRAM = """\
import os
import sys
from pathlib import Path

import pulumi

from modelfleet.infra.aws import AwsFleet
from modelfleet.infra.planning import plan
from modelfleet.infra.planning.plan import CodeArtifact
from modelfleet.infra.reading.image import build_image_zip, image_source
from modelfleet.infra.reading.workspace import read_workspace
from modelfleet.serving.config.errors import ModelfleetError

root = Path(os.environ["FLEET_ROOT"])
workspace = read_workspace(root, os.environ["FLEET_STACK"])
code = CodeArtifact("c0de" * 16)  # a fixed one: the serving package may change between two runs of a test
archive = root / "serving.zip"
archive.write_bytes(b"the serving package")
image, source = None, None
if os.environ.get("FLEET_IMAGE"):
    image, source = image_source(), root / "image.zip"
    source.write_bytes(build_image_zip())
try:
    fleet = AwsFleet(
        "aws",
        plan(workspace.models, workspace.stack, code=code, image=image),
        code=pulumi.FileAsset(str(archive)),
        image_source=source and pulumi.FileAsset(str(source)),
        alert_webhook=pulumi.Config().get_secret("alertWebhook"),
    )
except ModelfleetError as error:
    pulumi.log.error(str(error))
    sys.exit(32)  # as infra/program.py
pulumi.export("kubeconfig", fleet.kubeconfig)
pulumi.export("endpoint", fleet.endpoint)
pulumi.export("bucket", fleet.bucket)
pulumi.export("pools", fleet.pools)
if store := fleet.head_storage:
    pulumi.export("store", {"address": store.address, "password": store.password})
if key := fleet.manifest_key:
    pulumi.export("manifest_key", {"arn": key.arn, "public": key.public})
pulumi.export("image", fleet.image)
"""


def model(
    model_id: str, accelerator: str, *, workers: int = 1, replicas: tuple[int, int] = (0, 2), **engine: Any
) -> Any:
    """A model file's content."""
    least, most = replicas
    gpu = accelerator != "CPU"
    return {
        "deployment_config": {
            "autoscaling_config": {"min_replicas": least, "initial_replicas": least, "max_replicas": most},
        },
        "engine_config": {"model_id": model_id, "type": "VLLMEngine", **engine},
        "scaling_config": {
            "num_workers": workers,
            "num_gpus_per_worker": 1 if gpu else 0,
            "num_cpus_per_worker": 1,
            "placement_strategy": "STRICT_PACK",
            "resources_per_worker": {f"accelerator_type:{accelerator}": 0.001},
        },
    }


FIVE = {
    "org--on-t4": model("org/on-t4", "T4"),
    "org--on-l4": model("org/on-l4", "L4"),
    "org--on-a10g": model("org/on-a10g", "A10G", replicas=(1, 3)),
    "org--on-a100-40g": model("org/on-a100-40g", "A100-40G", workers=8),
    "org--on-a100-80g": model(
        "org/on-a100-80g", "A100-80G", workers=8, s3_mirror_config={"bucket_uri": "s3://company-weights/llama"}
    ),
}
POOLS = [
    {
        "name": "t4",
        "accelerator": "T4",
        "purchase": "spot",
        "maxNodes": 4,
        "instanceTypes": ["g4dn.xlarge", "g4dn.2xlarge"],
    },
    {"name": "l4", "accelerator": "L4", "maxNodes": 4, "instanceTypes": ["g6.xlarge"]},
    {"name": "a10g", "accelerator": "A10G", "minNodes": 0, "maxNodes": 4, "instanceTypes": ["g5.xlarge"]},
    {"name": "a100", "accelerator": "A100-40G", "maxNodes": 2, "instanceTypes": ["p4d.24xlarge"]},
    {
        "name": "block",
        "accelerator": "A100-80G",
        "purchase": "capacity-block",
        "capacityReservationId": "cr-0123456789abcdef0",
        "maxNodes": 2,
        "instanceTypes": ["p4de.24xlarge"],
        "zones": ["us-west-2b"],
    },
]


class FleetProject(Project):
    """A project whose program is the AWS half, with stack and model files that a test writes.

    With `builds_image` a stack that names no image makes one; that takes a minute of each first `up`.
    """

    def __init__(
        self,
        folder: Path,
        emulator: Emulator,
        *,
        root: Path | None = None,
        stack: str = "test",
        builds_image: bool = False,
    ) -> None:
        self.root = root or folder / "root"
        self.builds_image = builds_image
        super().__init__(
            folder,
            name="modelfleet",
            stack=stack,
            pulumi_yaml={"plugins": {"providers": [{"name": "modelfleet", "path": str(PLUGINS)}]}},
            config={"aws:region": REGION, "aws:skipCredentialsValidation": True},
            environ={
                "AWS_ENDPOINT_URL": emulator.url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "PYTHONPATH": str(REPOSITORY),
                "PATH": with_aws_command(folder),
                "FLEET_ROOT": str(self.root),
                "FLEET_STACK": stack,
                "FLEET_IMAGE": "yes" if builds_image else "",
            },
        )
        self.emulator = emulator
        #: What `files` last wrote.
        self.written: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self.region = REGION
        self.program(PROGRAM, prelude="")

    def files(self, stack: Mapping[str, Any], models: Mapping[str, Any]) -> None:
        """Writes the stack file (keys without `modelfleet:`) and the model files; deletes other models."""
        self.written = dict(stack), dict(models)
        for folder in ("models", "stacks"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for old in (self.root / "models").glob("*.yaml"):
            old.unlink()
        for name, content in models.items():
            (self.root / "models" / f"{name}.yaml").write_text(yaml.safe_dump(content))
        settings = {f"modelfleet:{key}": value for key, value in stack.items()}
        text = yaml.safe_dump({"config": {"aws:region": self.region, **settings}})
        (self.root / "stacks" / f"Pulumi.{self.stack}.yaml").write_text(text)

    def plan(self) -> Plan:
        """The program's plan, made with the same functions."""
        workspace = read_workspace(self.root, self.stack)
        image = image_source() if self.builds_image else None
        return plan(workspace.models, workspace.stack, code=CodeArtifact("c0de" * 16), image=image)

    def copy_stack_file(self, name: str) -> None:
        """The repository's stack file and all its models, for the emulator's account and without API keys."""
        settings = yaml.safe_load((REPOSITORY / "stacks" / f"Pulumi.{name}.yaml").read_text())["config"]
        own = {
            key.removeprefix("modelfleet:"): value for key, value in settings.items() if key.startswith("modelfleet:")
        }
        self.region = settings["aws:region"]
        self.config["aws:region"] = self.region
        image = own["kubernetes"]["image"].replace(own["accountId"], ACCOUNT)
        self.push(image)
        self.files(
            {**own, "accountId": ACCOUNT, "auth": "none", "kubernetes": {**own["kubernetes"], "image": image}}, {}
        )
        shutil.copytree(REPOSITORY / "models", self.root / "models", dirs_exist_ok=True)

    def push(self, image: str) -> None:
        """Puts an image of that name into the emulated ECR, unless it is there."""
        ecr = self.emulator.client("ecr", self.region)
        repository, _, tag = image.partition("/")[2].partition(":")
        known = [one["repositoryName"] for one in ecr.describe_repositories()["repositories"]]
        if repository not in known:
            ecr.create_repository(repositoryName=repository)
            ecr.put_image(repositoryName=repository, imageManifest=IMAGE_MANIFEST, imageTag=tag)

    def faults(self, script: Mapping[str, Any] | None) -> None:
        """Makes AWS calls of the next commands fail by a script (tools/standin/aws/faults.py); None stops this."""
        self.environ.pop("MODELFLEET_STANDIN_FAULTS", None)
        if script is not None:
            path = self.folder / "faults.json"
            path.write_text(json.dumps(script))
            self.environ["MODELFLEET_STANDIN_FAULTS"] = str(path)


def with_aws_command(folder: Path) -> str:
    """PATH with an `aws` in front that the preflight finds; nothing runs it where no cluster answers."""
    command = folder / "bin" / "aws"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text("#!/bin/sh\nexit 2\n")
    command.chmod(0o755)
    return os.pathsep.join([str(command.parent), os.environ["PATH"]])


def stack_of(**more: Any) -> dict[str, Any]:
    """A small stack file: target, account, auth and two zones; `more` wins."""
    return {
        "models": ["*"],
        "target": "eks",
        "accountId": ACCOUNT,
        "auth": "none",
        "network": {"cidr": "10.0.0.0/16", "zones": 2},
        "pools": [],
        **more,
        "cluster": {"publicAccessCidrs": ["203.0.113.0/24"], **more.get("cluster", {})},
    }
