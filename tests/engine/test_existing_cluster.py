"""Stacks on existing clusters: buckets in the emulated account, what they prove there, our program's check of the cluster."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from modelfleet.cli import pulumi_run, up
from modelfleet.cli.main import app
from modelfleet.infra.planning import Plan
from modelfleet.serving.config.errors import InputErrors
from modelfleet.serving.mirror import fetch, fill
from tests.engine.aws_account import Account
from tests.engine.aws_fleet import REGION, REPOSITORY, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tools.cloud.app import QUOTAS

BUCKET = "company-fleet-weights"
PROGRAM = """\
import os
from pathlib import Path

import pulumi

from modelfleet.infra.aws.storage import make_storage
from modelfleet.infra.planning import plan
from modelfleet.infra.planning.plan import CodeArtifact
from modelfleet.infra.reading.workspace import read_workspace

root = Path(os.environ["FLEET_ROOT"])
workspace = read_workspace(root, os.environ["FLEET_STACK"])
archive = root / "serving.zip"
archive.write_bytes(b"the serving package")
planned = plan(workspace.models, workspace.stack, code=CodeArtifact("c0de" * 16))
storage = make_storage("test", planned, code=pulumi.FileAsset(str(archive)))
pulumi.export("bucket", storage.bucket)
"""
POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.2xlarge"]}


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory, emulator: Emulator) -> Iterator[FleetProject]:
    made = FleetProject(tmp_path_factory.mktemp("bucket"), emulator)
    made.program(PROGRAM, prelude="")
    yield made
    assert not made.living_processes(), "processes outlive their test"


def files(project: FleetProject, **mirror: object) -> None:
    stack = stack_of(target="kubernetes", pools=[POOL], mirror=mirror, tags={"team": "ml"})
    project.files(stack, {"org--m": model("org/m", "L4")})


def test_the_bucket_is_tls_only_private_encrypted_versioned_tidy_and_goes_with_the_stack(
    project: FleetProject, emulator: Emulator
) -> None:
    files(project, create=True, bucket=BUCKET)
    run = project.up()
    account = Account(emulator, REGION)
    s3 = account.s3
    (policy,) = project.resources("aws:s3/bucketPolicy:BucketPolicy")
    (statement,) = json.loads(policy["outputs"]["policy"])["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert statement["Resource"] == [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
    block = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
    assert block == dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
    )
    assert s3.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
    (rule,) = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}, "pods have no right to use our key"
    (tidy,) = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert tidy["NoncurrentVersionExpiration"]["NoncurrentDays"] == 30
    assert s3.get_bucket_ownership_controls(Bucket=BUCKET)["OwnershipControls"]["Rules"] == [
        {"ObjectOwnership": "BucketOwnerEnforced"}
    ]
    tags = {tag["Key"]: tag["Value"] for tag in s3.get_bucket_tagging(Bucket=BUCKET)["TagSet"]}
    assert tags.items() >= {"team": "ml", "modelfleet.dev/stack": "test"}.items()
    code = s3.get_object(Bucket=BUCKET, Key=f"code/serving-{'c0de' * 16}.zip")["Body"].read()
    assert code == b"the serving package"
    assert [name for _, name in run.steps()][-1].startswith("test-code-"), "the code was uploaded before the policy"
    assert project.up().changes == {"same": run.changes["create"]}
    s3.put_object(Bucket=BUCKET, Key="models/org--m/model.bin", Body=b"weights, written by a pod")
    project.destroy()
    assert account.everything() == []


def test_a_bucket_that_the_stack_names_gets_the_code_and_is_left_as_it_is(
    project: FleetProject, emulator: Emulator
) -> None:
    s3 = Account(emulator, REGION).s3
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    files(project, create=False, bucket=BUCKET)
    project.up()
    assert s3.get_object(Bucket=BUCKET, Key=f"code/serving-{'c0de' * 16}.zip")["Body"].read() == b"the serving package"
    assert "Status" not in s3.get_bucket_versioning(Bucket=BUCKET)
    project.destroy()
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0
    s3.delete_bucket(Bucket=BUCKET)


def test_the_shipped_program_looks_at_the_cluster_with_the_kubernetes_client(project: FleetProject) -> None:
    """Python searches a program's own folder first, and in ours `kubernetes` is another package."""
    files(project, create=True, bucket=BUCKET)
    for folder in ("models", "stacks"):
        shutil.copytree(project.root / folder, project.folder / folder)
    settings = yaml.safe_load((project.folder / "Pulumi.yaml").read_text())
    (project.folder / "Pulumi.yaml").write_text(yaml.safe_dump({**settings, "main": str(REPOSITORY)}))
    kubeconfig = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c"}}],
        "current-context": "c",
    }
    (project.folder / "kubeconfig").write_text(json.dumps(kubeconfig))
    del project.environ["PYTHONPATH"]  # nobody sets it
    project.environ["KUBECONFIG"] = str(project.folder / "kubeconfig")
    run = project.preview(check=False)
    assert run.code != 0
    errors = [line for line in run.diagnostics() if "127.0.0.1:1" in line]
    assert len(errors) == 1 and "Traceback" not in run.text, run.text
    assert errors[0].startswith("no Kubernetes API answers at https://127.0.0.1:1: ")
    assert errors[0].endswith("; start the cluster or correct $KUBECONFIG")


class Life:
    """Two stacks of one fleet on clusters that are there already: all is real but the clusters.

    `up` is `modelfleet up` with the engine and the account. Where it would wait for a cluster's models to answer, the
    mirror is filled, which the cluster's Job has done by then.
    """

    def __init__(self, project: FleetProject, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.patch, self.content = project.root, monkeypatch, "one"
        self.there: set[str] = set()
        self.s3 = emulator.client("s3", REGION)
        for name in [name for name in os.environ if name.startswith(("PULUMI_", "AWS_"))]:
            monkeypatch.delenv(name)
        for name, value in project.environ.items():
            monkeypatch.setenv(name, value)
        self.root.mkdir(exist_ok=True)
        settings = yaml.safe_load((project.folder / "Pulumi.yaml").read_text())
        main = str(project.folder / "infra")
        (self.root / "Pulumi.yaml").write_text(yaml.safe_dump({**settings, "main": main, "stackConfigDir": "stacks"}))
        monkeypatch.chdir(self.root)
        monkeypatch.setattr(up, "_prepare", lambda root, plan: None)
        monkeypatch.setattr(up, "_show_endpoint", self._fill)

    def stack(self, name: str, **more: object) -> None:
        mirror = {"create": True, "bucket": f"company-{name}"}
        kubernetes = {"image": f"registry.example/serving@sha256:{'a' * 64}"}
        keys = stack_of(target="kubernetes", models=[f"{name}/*"], pools=[POOL], mirror=mirror, kubernetes=kubernetes)
        settings = {f"modelfleet:{key}": value for key, value in {**keys, **more}.items()}
        config = {"aws:region": REGION, "aws:skipCredentialsValidation": True, **settings}
        (self.root / "stacks").mkdir(exist_ok=True)
        (self.root / "stacks" / f"Pulumi.{name}.yaml").write_text(yaml.safe_dump({"config": config}))
        (self.root / "models" / name).mkdir(parents=True, exist_ok=True)

    def file(self, stack: str) -> Path:
        return self.root / "models" / stack / "Qwen--Qwen3-8B.yaml"

    def write(self, stack: str, commit: str, content: str) -> str:
        """The model at another commit, whose weights have that content; returns the file's text."""
        self.content = content
        text = yaml.safe_dump(model("Qwen/Qwen3-8B", "L4", revision=commit * 40, max_total_tokens=4096))
        self.file(stack).write_text(text)
        return text

    def fill(self, stack: str, commit: str, content: str) -> None:
        """What the stack's mirror Job does."""
        weights = self.root / "weights"
        weights.mkdir(exist_ok=True)
        (weights / "config.json").write_text("{}")
        (weights / "model.safetensors").write_text(content)
        name = "Qwen/Qwen3-8B"
        fill(weights, self.uri(stack), model_id=name, source=name, source_revision=commit * 40)

    def _fill(self, root: Path, plan: Plan) -> None:
        (one,) = plan.models
        assert one.mirror.revision
        self.fill(plan.stack, one.mirror.revision[0], self.content)

    def uri(self, stack: str) -> str:
        return f"s3://company-{stack}/models/Qwen--Qwen3-8B"

    def up(self, stack: str) -> None:
        self.patch.setenv("FLEET_STACK", stack)
        self.there.add(stack)
        assert up.run_up(stack) == 0

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, [*words])

    def weights(self, stack: str, cache: Path) -> str:
        """What a replica that starts now would load."""
        return (fetch(self.uri(stack), cache) / "model.safetensors").read_text()


@pytest.fixture
def life(project: FleetProject, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    made = Life(project, emulator, monkeypatch)
    yield made
    for stack in made.there:
        monkeypatch.setenv("FLEET_STACK", stack)
        assert pulumi_run.operate(made.root, stack, "destroy").code == 0
    assert Account(emulator, REGION).everything() == [], "what was proved goes with the bucket"


@pytest.mark.long(why="six runs of the engine; tests/unit/test_promote_and_rollback.py has the same without them")
def test_staging_proves_prod_takes_it_and_goes_back_although_the_mirror_was_cleaned(
    life: Life, emulator: Emulator, tmp_path: Path
) -> None:
    promote = ("promote", "Qwen/Qwen3-8B", "--from", "staging", "--to", "prod")
    life.stack("staging")
    life.stack("prod", licence={"forbid": ["apache"]})
    one = life.write("staging", "1", "one")
    life.up("staging")
    refused = life.run(*promote, "--yes")
    assert isinstance(refused.exception, InputErrors) and "licence" in str(refused.exception)
    life.stack("prod", target="eks", mirror={})
    emulator.switch(QUOTAS, {"L-DB2E81BA": 4})
    refused = life.run(*promote, "--yes")
    emulator.switch(QUOTAS, {})
    assert "quota L-DB2E81BA in us-west-2 is 4" in str(refused.exception), (refused.output, refused.exception)
    life.stack("prod")
    assert "--yes writes it" in life.run(*promote).stderr and not life.file("prod").exists()
    done = life.run(*promote, "--yes")
    assert done.exit_code == 0 and "+ model Qwen/Qwen3-8B" in done.stdout, done.output
    assert life.file("prod").read_text() == one
    life.up("prod")
    assert life.weights("prod", tmp_path / "a") == "one"

    two = life.write("prod", "2", "two")
    life.up("prod")
    life.write("prod", "3", "three")  # these fail, and nobody proves them
    for commit, content in (("3", "three"), ("4", "four"), ("5", "five")):
        life.fill("prod", commit, content)
    back = life.run("rollback", "Qwen/Qwen3-8B", "--stack", "prod", "--yes")
    assert back.exit_code == 0, (back.output, back.exception)
    assert life.file("prod").read_text() == two and life.weights("prod", tmp_path / "b") == "two"
    life.content = "two"
    life.up("prod")
    assert life.run("rollback", "--stack", "prod", "--yes").exit_code == 0
    assert life.file("prod").read_text() == one and life.weights("prod", tmp_path / "c") == "one"
    keys = [one["Key"] for one in life.s3.list_objects_v2(Bucket="company-prod", Prefix="proved/prod/")["Contents"]]
    assert len(keys) == 2, "a state that was proved again is not kept twice"
