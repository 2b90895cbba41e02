"""What runs in a cluster does its work on the emulated cloud with its own role; `test_pod_rights.py`: with no other right.

The real code of `modelfleet.serving` runs here, with credentials as EKS Pod Identity gives them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from modelfleet.serving.mirror import Status, fill, status
from modelfleet.serving.mirror.node import fetch_manifest
from modelfleet.serving.mirror.read import read_manifest
from modelfleet.serving.mirror.store import S3Store, parse_uri
from tests.unit.cloud.conftest import BUCKET, REGION, Fleet
from tools.cloud.backends.pod_identity import service_account_token

URI = f"s3://{BUCKET}/models/org--tiny"
MIB = 2**20
CHUNK = 5 * MIB


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(2 * CHUNK))
    return folder


def mirrored(fleet: Fleet, folder: Path, *, chunk_bytes: int = CHUNK) -> None:
    s3 = fleet.s3("mirror")
    fill(folder, URI, model_id="org/tiny", source="org/tiny", chunk_bytes=chunk_bytes, s3=s3)


def fetched(fleet: Fleet, service_account: str, cache: Path) -> Path:
    location = parse_uri(URI)
    store = S3Store(location.bucket, fleet.s3(service_account))
    manifest = read_manifest(store, location)
    assert manifest is not None
    return fetch_manifest(store, location, manifest, cache, lambda line: None)


def test_the_mirror_job_fills_a_mirror_of_several_parts_with_its_own_role(fleet: Fleet, model: Path) -> None:
    """Above one part (32 MiB in the cluster) an upload needs actions of its own."""
    mirrored(fleet, model)
    assert status(URI, s3=fleet.s3("mirror")) is Status.COMPLETE


def test_the_mirror_job_resumes_an_interrupted_upload_with_its_own_role(fleet: Fleet, model: Path) -> None:
    admin = fleet.cloud.client("s3")
    interrupted(fleet, model)
    assert admin.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    mirrored(fleet, model)
    assert status(URI, s3=fleet.s3("mirror")) is Status.COMPLETE
    assert "Uploads" not in admin.list_multipart_uploads(Bucket=BUCKET), "the half-sent file was sent a second time"


def interrupted(fleet: Fleet, folder: Path) -> None:
    """Leaves a file of which every part was sent, in an upload that was not completed."""
    s3 = _StopsBeforeCompleting(fleet.cloud.client("s3"))
    fill(folder, URI, model_id="org/tiny", source="org/tiny", chunk_bytes=CHUNK, s3=s3)


class _StopsBeforeCompleting:
    """An S3 client that loses the connection when an upload would be complete."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3

    def __getattr__(self, name: str) -> Any:
        return getattr(self._s3, name)

    def complete_multipart_upload(self, **_: Any) -> None:
        """Does nothing."""

    def put_object(self, **params: Any) -> Any:
        """Sends no manifest."""
        return {} if params["Key"].endswith("manifest.json") else self._s3.put_object(**params)


@pytest.mark.parametrize("service_account", ["ray-head", "ray-worker"])
def test_a_replica_reads_weights_and_code_with_its_own_role(
    fleet: Fleet, model: Path, tmp_path: Path, service_account: str
) -> None:
    admin = fleet.cloud.client("s3")
    fill(model, URI, model_id="org/tiny", source="org/tiny", chunk_bytes=CHUNK, s3=admin)
    admin.put_object(Bucket=BUCKET, Key="code/0123.zip", Body=b"zip")
    folder = fetched(fleet, service_account, tmp_path / "cache")
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    s3 = fleet.s3(service_account)
    assert s3.get_object(Bucket=BUCKET, Key="code/0123.zip")["Body"].read() == b"zip"
    for refused in (
        lambda: s3.put_object(Bucket=BUCKET, Key="models/org--tiny/manifest.json", Body=b"{}"),
        lambda: s3.delete_object(Bucket=BUCKET, Key="models/org--tiny/manifest.json"),
        lambda: s3.list_objects_v2(Bucket=BUCKET),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            refused()


def test_a_waiting_replica_sees_that_a_mirror_is_absent(fleet: Fleet) -> None:
    """S3 answers 403 for an absent manifest unless the role may list the bucket without a prefix."""
    assert status(URI, s3=fleet.s3("ray-worker")) is Status.ABSENT


def test_a_waiting_mirror_job_sees_that_a_mirror_is_absent(fleet: Fleet) -> None:
    assert status(URI, s3=fleet.s3("mirror")) is Status.ABSENT


def test_old_weights_are_gone_or_left_to_the_bucket_but_never_silently_kept(fleet: Fleet, model: Path) -> None:
    """DeleteObjects answers 200 with an error for each key: whoever asks must read them, or not ask."""
    for _ in range(3):
        (model / "model.safetensors").write_bytes(os.urandom(CHUNK // 5))
        mirrored(fleet, model)
    assert "s3:DeleteObject" not in fleet.cloud.cloud.judge.trail.actions(fleet.roles["mirror"], allowed=False)


def test_a_service_account_without_an_association_gets_no_credentials(fleet: Fleet) -> None:
    eks = fleet.cloud.client("eks-auth", fleet.node, REGION)
    token = service_account_token("default", "default", "pod")
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        eks.assume_role_for_pod_identity(clusterName=fleet.cluster, token=token)


def test_a_role_is_for_one_service_account_of_one_cluster(fleet: Fleet) -> None:
    """The trust's conditions on session tags: another service account with the same role gets nothing."""
    admin = fleet.cloud.client("eks")
    role = fleet.cloud.client("iam").get_role(RoleName=fleet.roles["mirror"])["Role"]["Arn"]
    admin.create_pod_identity_association(
        clusterName=fleet.cluster, namespace="elsewhere", serviceAccount="mirror", roleArn=role
    )
    with pytest.raises(ClientError, match="AccessDenied"):
        fleet.cloud.pod(fleet.node, fleet.cluster, "elsewhere", "mirror")
