"""The roles of pods have the rights that the serving code needs, and no other: found by running it, not by reading it."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import smart_open
from botocore.exceptions import ClientError

from modelfleet.infra.aws import policies
from modelfleet.infra.kubernetes.manifests.mirror import mirrored
from modelfleet.infra.kubernetes.scripts import mirror_job
from modelfleet.infra.names import MANIFEST_KEY_FILE
from modelfleet.infra.planning import Plan
from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror import Status, complete_version, fetch, fill, fill_from, status
from modelfleet.serving.mirror import upload as upload_module
from modelfleet.serving.mirror.origin import Folder, OriginFile
from modelfleet.serving.mirror.prefix import fetch_prefix
from modelfleet.serving.mirror.proof import Expected, KmsKey
from modelfleet.serving.seal import Machine, take, write
from modelfleet.serving.seal.copy import is_sealed
from modelfleet.serving.usage_bucket import BucketCopy
from tests.unit.aws import builders
from tests.unit.aws.builders import planned
from tests.unit.cloud.conftest import BUCKET, REGION, Fleet, made
from tools.cloud.server import Listening

MIB = 2**20
CODE_KEY = "code/serving-1.zip"
URI = f"s3://{BUCKET}/models/org--m"
WRITER_ACTIONS = (
    "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:ListBucket", "s3:ListBucketMultipartUploads",
    "s3:ListMultipartUploadParts", "s3:PutObject", "kms:Decrypt", "kms:GenerateDataKey",
)  # fmt: skip


class Killed(BaseException):
    """Plays SIGKILL: nothing in the code under test catches it."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(11 * MIB))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Job's script changes the path and writes to a pod's volume."""
    monkeypatch.setattr(mirror_job, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(sys, "path", list(sys.path))


def with_code(fleet: Fleet) -> Fleet:
    """Puts the code artifact into the fleet's bucket."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("modelfleet/x.txt", "x")
    fleet.cloud.client("s3").put_object(Bucket=BUCKET, Key=CODE_KEY, Body=packed.getvalue())
    return fleet


def weights_of_another(cloud: Listening, *keys: str) -> None:
    """A bucket that the fleet did not make, with these objects."""
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="weights", CreateBucketConfiguration={"LocationConstraint": REGION})
    for key in keys:
        s3.put_object(Bucket="weights", Key=key, Body=b"{}")


@contextmanager
def acting_as(fleet: Fleet, service_account: str) -> Iterator[None]:
    """In the block boto3's own clients have the pod's credentials, from the environment."""
    environ = fleet.cloud.environment(fleet.credentials(service_account), REGION)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        boto3.setup_default_session()
        try:
            yield
        finally:
            boto3.setup_default_session()


def copies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A mirror Job's life: its code, a copy that is killed, one that finishes it, a damaged origin, three versions.

    Returns what it said.
    """
    mirror_job.load_code(f"s3://{BUCKET}/{CODE_KEY}")
    lines: list[str] = []
    names: dict[str, Any] = {"model_id": "org/m", "source": "org/m", "chunk_bytes": 5 * MIB, "report": lines.append}
    send = upload_module._Fill._send_part

    def dies(self: Any, target: Any, upload: str, number: int, body: bytes) -> dict[str, Any]:
        if number == 2:
            raise Killed
        return send(self, target, upload, number, body)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(upload_module._Fill, "_send_part", dies)
        fill(folder, URI, **names)
    fill(folder, URI, **names)

    class Damaged(Folder):
        def files(self) -> list[OriginFile]:
            return [OriginFile(f.path, f.size, None if f.path == "config.json" else "1" * 64) for f in super().files()]

    with pytest.raises(MirrorError, match="has other bytes than its SHA-256 says"):
        fill_from(Damaged(folder), URI, **names)
    for text in ("[1]", "[2]"):
        (folder / "config.json").write_text(text)
        fill(folder, URI, **names)
    assert status(URI) is Status.COMPLETE
    return lines


def reads(cache: Path) -> None:
    """A replica's life: its code as Ray reads it (with smart_open), waiting for the mirror, and both ways to load it."""
    with smart_open.open(f"s3://{BUCKET}/{CODE_KEY}", "rb", transport_params={}) as stream:
        assert stream.read(2) == b"PK"
    assert status(f"{URI}-that-is-not-there-yet") is Status.ABSENT
    assert status(URI) is Status.COMPLETE
    assert complete_version(URI) is not None
    fetch(URI, cache)


def records(folder: Path, plan: Plan) -> BucketCopy:
    """A worker's life beside that: what it used goes to the bucket, by the address that the plan gives its replicas."""
    uri = plan.models[0].application.args["usage"]
    for place in ("org--m", "-nodes"):
        file = folder / place / "date=2026-11-30" / "hour=16" / "r.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}\n")
    return BucketCopy(folder, uri, "r")


def test_the_mirror_jobs_role_has_what_its_code_calls_and_nothing_else(
    fleet: Fleet, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with acting_as(with_code(fleet), "mirror"):
        copies(model, monkeypatch)
    assert fleet.granted("mirror") == fleet.used("mirror") == set(WRITER_ACTIONS)


@pytest.mark.parametrize("action", sorted({*WRITER_ACTIONS} - {"s3:DeleteObject"}))
def test_each_right_of_the_mirror_jobs_role_is_needed(
    action: str, fleet: Fleet, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is also the proof that the test above sees a right that is missing."""
    with_code(fleet).take("mirror", action)
    with acting_as(fleet, "mirror"), pytest.raises(Exception, match="AccessDenied"):
        copies(model, monkeypatch)


def test_without_the_right_to_delete_a_copy_is_whole_and_says_what_stays(
    fleet: Fleet, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeleteObjects answers 200 and lists what it could not delete."""
    with_code(fleet).take("mirror", "s3:DeleteObject")
    with acting_as(fleet, "mirror"):
        lines = copies(model, monkeypatch)
    assert any("files of older versions stay and cost storage" in line and "AccessDenied" in line for line in lines)


@pytest.mark.parametrize("service_account", ["ray-head", "ray-worker"])
def test_a_replicas_role_has_what_its_code_calls_and_nothing_else(
    service_account: str, fleet: Fleet, model: Path, tmp_path: Path
) -> None:
    plan, _ = planned(tmp_path / "project", mirror={"bucket": BUCKET})
    fill(model, URI, model_id="org/m", source="org/m", s3=with_code(fleet).cloud.client("s3"))
    runs_replicas = service_account == "ray-worker"
    with acting_as(fleet, service_account):
        reads(tmp_path / "cache")
        if runs_replicas:
            records(tmp_path / "usage", plan).send()
    writes = {"s3:PutObject", "kms:GenerateDataKey"} if runs_replicas else set()
    assert fleet.granted(service_account) == fleet.used(service_account)
    assert fleet.used(service_account) == {"s3:GetObject", "s3:ListBucket", "kms:Decrypt", *writes}


@pytest.mark.parametrize("taken", ["s3:PutObject", "kms:GenerateDataKey"])
def test_a_worker_that_may_not_write_its_records_says_so_and_keeps_them(
    taken: str, fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """This is also the proof that each right is needed."""
    plan, _ = planned(tmp_path / "project", mirror={"bucket": BUCKET})
    fleet.take("ray-worker", taken)
    with acting_as(fleet, "ray-worker"):
        records(tmp_path / "usage", plan).send()
    assert "AccessDenied" in caplog.text and f"s3://{BUCKET}" in caplog.text
    assert len(list((tmp_path / "usage").rglob("*.jsonl"))) == 2


def test_a_worker_writes_records_of_its_own_stack_and_reads_none(fleet: Fleet, tmp_path: Path) -> None:
    plan, _ = planned(tmp_path / "project", mirror={"bucket": BUCKET})
    s3 = fleet.s3("ray-worker")
    with acting_as(fleet, "ray-worker"):
        copy = records(tmp_path / "usage", plan)
        copy.send()
    keys = [copy.key_of(path) for path in (tmp_path / "usage").rglob("*.jsonl")]
    assert all(key.startswith(("usage/stack=test/", "usage/nodes/stack=test/")) for key in keys) and len(keys) == 2
    for refused in (
        lambda: s3.put_object(Bucket=BUCKET, Key="usage/stack=other/dt=2026-11-30/hour=16/r.jsonl.gz", Body=b""),
        lambda: s3.put_object(Bucket=BUCKET, Key="usage/stack=test2/x", Body=b""),
        lambda: s3.get_object(Bucket=BUCKET, Key=keys[0]),
        lambda: s3.delete_object(Bucket=BUCKET, Key=keys[0]),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            refused()


def test_a_mirror_job_may_read_the_bucket_that_it_copies_and_replicas_may_not(
    account: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mirror.sources` names it; the Job's role had the rights for buckets that models name, which it never reads."""
    settings = {"bucket": BUCKET, "sources": {"org/model": "s3://weights/llama"}}
    plan, _ = planned(tmp_path / "project", mirror=settings)
    fleet = with_code(made(account, plan))
    weights_of_another(account, "llama/config.json", "llama/model.safetensors")
    ((job, _),) = mirrored(plan)
    assert job.mirror.source == "s3://weights/llama"
    uri = f"s3://{BUCKET}/{job.mirror.prefix}"
    said = {"SOURCE": job.mirror.source, "MIRROR": uri, "MODEL_ID": "org/m", "CODE": f"s3://{BUCKET}/{CODE_KEY}"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with acting_as(fleet, "mirror"):
        assert mirror_job.main() == 0
    with acting_as(fleet, "ray-worker"):
        assert status(uri) is Status.COMPLETE
        with pytest.raises(MirrorError, match="AccessDenied"):
            fetch_prefix("s3://weights/llama", tmp_path / "cache")


def test_a_replica_reads_a_bucket_that_its_model_names_and_no_other(account: Listening, tmp_path: Path) -> None:
    plan, _ = planned(tmp_path / "project", mirror={"bucket": BUCKET})
    named = replace(plan, bucket=replace(plan.bucket, read_only=("weights/llama",)))
    fleet = made(account, named)
    weights_of_another(account, "llama/config.json", "secret/config.json")
    with acting_as(fleet, "ray-worker"):
        assert (fetch_prefix("s3://weights/llama", tmp_path / "cache") / "config.json").read_bytes() == b"{}"
        with pytest.raises(MirrorError, match="AccessDenied"):
            fetch_prefix("s3://weights/secret", tmp_path / "cache")


MACHINE = Machine(card="NVIDIA L4", architecture="x86_64", features=["avx2"], python="3.12.11", packages={})
SEALING = [{"name": "l4", "accelerator": "L4", "maxNodes": 4, "instanceTypes": ["g6.xlarge"], "sealedCaches": True}]


def test_a_seal_is_written_by_the_warm_up_job_and_taken_by_replicas_and_changed_by_nobody_else(
    account: Listening, model: Path, tmp_path: Path
) -> None:
    """Each with its own role: replicas run what is in it, and the Job runs models."""
    plan, _ = planned(tmp_path / "project", mirror={"bucket": BUCKET}, pools=SEALING)
    fleet = with_code(made(account, plan))
    fill(model, URI, model_id="org/m", source="org/m", s3=fleet.cloud.client("s3"))
    (found,) = plan.models
    assert found.seal is not None
    uri, key = found.application.args["weights"]["seal"], found.seal.key
    compiled = tmp_path / "compiled"
    (compiled / "triton").mkdir(parents=True)
    (compiled / "triton" / "kernel").write_bytes(b"machine code")
    seal: dict[str, Any] = {"key": key, "model_id": "org/m", "machine": MACHINE}
    for account_name in ("ray-worker", "mirror"):
        with acting_as(fleet, account_name), pytest.raises(MirrorError, match="AccessDenied"):
            write(compiled, uri, **seal)
    said: list[str] = []
    with acting_as(fleet, "ray-worker"):
        assert not take(uri, tmp_path / "node" / key, MACHINE, said.append)
        assert "has none yet" in said[0], "S3 says 403 of what is absent to who may not list"
    with acting_as(fleet, "warm-up"):
        mirror_job.load_code(f"s3://{BUCKET}/{CODE_KEY}")
        fetch(URI, tmp_path / "job")
        assert not is_sealed(uri)
        write(compiled, uri, **seal)
        assert is_sealed(uri, MACHINE)
        with pytest.raises(MirrorError, match="AccessDenied"):
            fill(model, f"{URI}-other", model_id="org/m", source="org/m")
    with acting_as(fleet, "ray-worker"):
        assert take(uri, tmp_path / "node" / key, MACHINE)
    assert (tmp_path / "node" / key / "triton" / "kernel").read_bytes() == b"machine code"


def test_a_mirror_job_signs_with_the_stacks_key_and_a_replica_verifies_and_cannot_sign(
    account: Listening, model: Path, tmp_path: Path
) -> None:
    """A replica that somebody took over reads weights and asks KMS nothing."""
    kms = account.client("kms")
    policy = json.dumps(policies.account_key(partition="aws", account=builders.ACCOUNT))
    key = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY", Policy=policy)["KeyMetadata"]["Arn"]
    der = base64.b64encode(kms.get_public_key(KeyId=key)["PublicKey"]).decode()
    named = {"kms": key, "publicKey": f"-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n"}
    plan, _ = planned(tmp_path / "project", mirror={"bucket": BUCKET}, trust={"manifestKey": named})
    fleet = with_code(made(account, plan))
    expected = Expected.of({"manifest_key": plan.models[0].application.args["weights"]["manifest_key"]}, URI)
    assert expected is not None and expected.key == der
    with acting_as(fleet, "mirror"):
        fill(model, URI, model_id="org/m", source="org/m", key=KmsKey(key))
    with acting_as(fleet, "ray-worker"):
        assert (fetch(URI, tmp_path / "cache", expected=expected) / "config.json").read_text() == "{}"
        with pytest.raises(MirrorError, match="KMS returned AccessDenied"):
            KmsKey(key).sign(b"a manifest of its own")
    assert {"kms:Sign", "kms:GetPublicKey"} <= fleet.used("mirror")
    assert not {"kms:Sign", "kms:GetPublicKey"} & fleet.granted("ray-worker")


def test_only_mirror_jobs_sign_with_the_key_that_the_stack_makes(
    account: Listening, model: Path, tmp_path: Path
) -> None:
    """Not even who may everything with every key of the account, which IAM alone would let sign."""
    plan, _ = planned(tmp_path / "project", mirror={"bucket": BUCKET}, trust={"manifestKey": {"kms": "own"}})
    fleet = with_code(made(account, plan))
    der = base64.b64encode(account.client("kms").get_public_key(KeyId=fleet.manifest_key)["PublicKey"]).decode()
    public = tmp_path / "manifest-key" / "public"
    public.parent.mkdir()
    public.write_text(der)
    weights = dict(plan.models[0].application.args["weights"])
    assert weights["manifest_key"] == f"file://{MANIFEST_KEY_FILE}"
    expected = Expected.of({**weights, "manifest_key": f"file://{public}"}, URI)
    with acting_as(fleet, "mirror"):
        fill(model, URI, model_id="org/m", source="org/m", key=KmsKey(fleet.manifest_key, public=der))
    iam = account.client("iam")
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*"}]}
    iam.put_role_policy(
        RoleName=fleet.roles["ray-worker"], PolicyName="everything", PolicyDocument=json.dumps(everything)
    )
    with acting_as(fleet, "ray-worker"):
        assert (fetch(URI, tmp_path / "cache", expected=expected) / "config.json").read_text() == "{}"
        KmsKey(fleet.manifest_key).public()
        with pytest.raises(MirrorError, match="KMS returned AccessDenied"):
            KmsKey(fleet.manifest_key).sign(b"a manifest of its own")
    assert "kms:Sign" in fleet.used("mirror") and "kms:GetPublicKey" not in fleet.granted("mirror")
