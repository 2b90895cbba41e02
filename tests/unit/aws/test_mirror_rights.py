"""The roles of pods have the rights that the serving code needs, and no other: found by running it, not by reading it."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import smart_open
from moto import mock_aws

from modelfleet.infra.aws.documents import iam_documents, site_without_account
from modelfleet.infra.kubernetes.manifests.mirror import mirrored
from modelfleet.infra.kubernetes.scripts import mirror_job
from modelfleet.infra.planning import Plan
from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror import Status, complete_version, fetch, fill, fill_from, status
from modelfleet.serving.mirror import upload as upload_module
from modelfleet.serving.mirror.origin import Folder, OriginFile
from modelfleet.serving.mirror.prefix import fetch_prefix
from tests.unit.aws.builders import ACCOUNT, REGION, planned
from tests.unit.aws.guarded_s3 import TABLE, Role, acting_as

MIB = 2**20
CODE_KEY = "code/serving-1.zip"
KEY_ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/BUCKET-KEY-ID"
WRITER_ACTIONS = (
    "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:ListBucket", "s3:ListBucketMultipartUploads",
    "s3:ListMultipartUploadParts", "s3:PutObject", "kms:Decrypt", "kms:GenerateDataKey",
)  # fmt: skip


class Killed(BaseException):
    """Plays SIGKILL: nothing in the code under test catches it."""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planned(tmp_path / "project")[0]


@pytest.fixture
def bucket(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The stack's bucket in moto, with the serving code in it, and a bucket of somebody else."""
    name = str(plan.bucket.name)
    for key, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    with mock_aws():
        boto3.setup_default_session()
        s3 = boto3.client("s3")
        for one in (name, "weights"):
            s3.create_bucket(Bucket=one)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("modelfleet/x.txt", "x")
        s3.put_object(Bucket=name, Key=CODE_KEY, Body=packed.getvalue())
        yield name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(11 * MIB))
    return folder


def role(plan: Plan, account: str) -> Role:
    documents = iam_documents(plan, site_without_account(plan))
    mine = [one for name, one in documents.items() if name.startswith((f"{account}-access", f"{account}-uses-key"))]
    statements = [statement for document in mine for statement in document["Statement"]]
    return Role(statements, key_arn=KEY_ARN, region=REGION)


def copies(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror Job's life: its code, a copy that is killed, one that finishes it, a damaged origin, three versions."""
    mirror_job.load_code(f"s3://{uri.split('/')[2]}/{CODE_KEY}")
    names: dict[str, Any] = {"model_id": "org/m", "source": "org/m", "chunk_bytes": 5 * MIB}
    send = upload_module._Fill._send_part

    def dies(self: Any, target: Any, upload: str, number: int, body: bytes) -> dict[str, Any]:
        if number == 2:
            raise Killed
        return send(self, target, upload, number, body)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(upload_module._Fill, "_send_part", dies)
        fill(folder, uri, **names)
    fill(folder, uri, **names)

    class Damaged(Folder):
        def files(self) -> list[OriginFile]:
            return [OriginFile(f.path, f.size, None if f.path == "config.json" else "1" * 64) for f in super().files()]

    with pytest.raises(MirrorError, match="has other bytes than its SHA-256 says"):
        fill_from(Damaged(folder), uri, **names)
    for text in ("[1]", "[2]"):
        (folder / "config.json").write_text(text)
        fill(folder, uri, **names)
    assert status(uri) is Status.COMPLETE


def reads(uri: str, cache: Path) -> None:
    """A replica's life: its code as Ray reads it (with smart_open), waiting for the mirror, and both ways to load it."""
    with smart_open.open(f"s3://{uri.split('/')[2]}/{CODE_KEY}", "rb", transport_params={}) as stream:
        assert stream.read(2) == b"PK"
    assert status(f"{uri}-that-is-not-there-yet") is Status.ABSENT
    assert status(uri) is Status.COMPLETE
    assert complete_version(uri) is not None
    fetch(uri, cache)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Job's script changes the path and writes to a pod's volume."""
    monkeypatch.setattr(mirror_job, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_the_mirror_jobs_role_has_what_its_code_calls_and_nothing_else(
    plan: Plan, bucket: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = role(plan, "mirror")
    with acting_as(writer):
        copies(f"s3://{bucket}/models/org--m", model, monkeypatch)
    assert writer.granted == writer.used == set(WRITER_ACTIONS)


@pytest.mark.parametrize("action", WRITER_ACTIONS)
def test_each_right_of_the_mirror_jobs_role_is_needed(
    action: str, plan: Plan, bucket: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is also the proof that the test above sees a right that is missing."""
    with acting_as(role(plan, "mirror").without(action)), pytest.raises(Exception, match="AccessDenied"):
        copies(f"s3://{bucket}/models/org--m", model, monkeypatch)


def test_a_mirror_job_may_read_the_bucket_that_it_copies_and_replicas_may_not(
    tmp_path: Path, bucket: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mirror.sources` names it; the Job's role had the rights for buckets that models name, which it never reads."""
    plan, _ = planned(tmp_path / "project", mirror={"sources": {"org/model": "s3://weights/llama"}})
    (job,) = mirrored(plan)
    assert job.mirror.source == "s3://weights/llama"
    for path in model.iterdir():
        boto3.client("s3").put_object(Bucket="weights", Key=f"llama/{path.name}", Body=path.read_bytes())
    uri = f"s3://{bucket}/{job.mirror.prefix}"
    said = {"SOURCE": job.mirror.source, "MIRROR": uri, "MODEL_ID": "org/m", "CODE": f"s3://{bucket}/{CODE_KEY}"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with acting_as(role(plan, "mirror")):
        assert mirror_job.main() == 0
    with acting_as(role(plan, "ray-worker")):
        assert status(uri) is Status.COMPLETE
        with pytest.raises(MirrorError, match="AccessDenied"):
            fetch_prefix("s3://weights/llama", tmp_path / "cache")


@pytest.mark.parametrize("account", ["ray-head", "ray-worker"])
def test_a_replicas_role_has_what_its_code_calls_and_nothing_else(
    account: str, plan: Plan, bucket: str, model: Path, tmp_path: Path
) -> None:
    uri = f"s3://{bucket}/models/org--m"
    fill(model, uri, model_id="org/m", source="org/m")
    reader = role(plan, account)
    with acting_as(reader):
        reads(uri, tmp_path / "cache")
    assert reader.granted == reader.used == {"s3:GetObject", "s3:ListBucket", "kms:Decrypt"}


def test_a_replica_reads_a_bucket_that_its_model_names_and_no_other(bucket: str, tmp_path: Path) -> None:
    from modelfleet.infra.aws import policies

    s3 = boto3.client("s3")
    for key in ("llama/config.json", "secret/config.json"):
        s3.put_object(Bucket="weights", Key=key, Body=b"{}")
    statements = policies.read_existing(["weights/llama"], partition="aws")
    opens = policies.use_key(KEY_ARN, write=False, region=REGION)
    with acting_as(Role([*statements, *opens], key_arn=KEY_ARN, region=REGION)):
        assert (fetch_prefix("s3://weights/llama", tmp_path / "cache") / "config.json").read_bytes() == b"{}"
        with pytest.raises(MirrorError, match="AccessDenied"):
            fetch_prefix("s3://weights/secret", tmp_path / "cache")


def test_the_table_names_operations_that_boto3_has() -> None:
    known = set(boto3.client("s3", region_name="us-east-1").meta.service_model.operation_names)
    assert set(TABLE) <= known
