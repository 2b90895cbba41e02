"""A stack on an existing cluster: its bucket in the emulated account, and our program's check of the cluster."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
import yaml

from tests.engine.aws_account import Account
from tests.engine.aws_fleet import REGION, REPOSITORY, FleetProject, model, stack_of
from tests.engine.conftest import Emulator

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
