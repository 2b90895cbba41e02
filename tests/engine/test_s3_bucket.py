"""The aws stand-in and the language host under the real engine: one bucket with all its settings, made to deleted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine.engine import Project

SETTINGS = """
provider = local_aws(default_tags={"tags": {"stack": "test"}})
options = pulumi.ResourceOptions(provider=provider)
bucket = aws.s3.Bucket("mirror", force_destroy=True, tags={"team": config.get("team") or "a"}, opts=options)
aws.s3.BucketVersioning("versions", bucket=bucket.bucket, versioning_configuration={"status": "Enabled"}, opts=options)
aws.s3.BucketServerSideEncryptionConfiguration(
    "encryption",
    bucket=bucket.bucket,
    rules=[{
        "apply_server_side_encryption_by_default": {"sse_algorithm": "aws:kms", "kms_master_key_id": "alias/models"},
        "bucket_key_enabled": True,
    }],
    opts=options,
)
aws.s3.BucketPublicAccessBlock(
    "access",
    bucket=bucket.bucket,
    block_public_acls=True,
    block_public_policy=True,
    ignore_public_acls=True,
    restrict_public_buckets=True,
    opts=options,
)
aws.s3.BucketOwnershipControls(
    "owner", bucket=bucket.bucket, rule={"object_ownership": "BucketOwnerEnforced"}, opts=options
)
aws.s3.BucketLifecycleConfiguration(
    "lifecycle",
    bucket=bucket.bucket,
    rules=[
        {
            "id": "unfinished",
            "status": "Enabled",
            "filter": {"prefix": ""},
            "abort_incomplete_multipart_upload": {"days_after_initiation": 7},
        },
        {
            "id": "old",
            "status": "Enabled",
            "filter": {"prefix": "models/"},
            "noncurrent_version_expiration": {"noncurrent_days": int(config.get("days") or 30)},
        },
    ],
    opts=options,
)
aws.s3.BucketPolicy(
    "policy",
    bucket=bucket.bucket,
    policy=bucket.arn.apply(lambda arn: json.dumps({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "TlsOnly",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [arn, f"{arn}/*"],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            },
        ],
    })),
    opts=options,
)
pulumi.export("bucket", bucket.bucket)
pulumi.export("arn", bucket.arn)
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, emulator: Any) -> Project:
    """One stack for the whole file: a deployment costs seconds."""
    project = Project(tmp_path_factory.mktemp("stack"), config={"endpoint": emulator.url})
    project.program(SETTINGS)
    return project


@pytest.fixture
def settled(stack: Project, emulator: Any) -> Project:
    """The stack with all its settings, whatever the test before changed."""
    stack.config = {"endpoint": emulator.url}
    stack.up("--refresh")
    return stack


def test_a_bucket_really_has_every_setting_that_was_asked_for(settled: Project, emulator: Any) -> None:
    name, s3 = settled.outputs()["bucket"], emulator.client()
    assert name.startswith("mirror-"), "an unnamed bucket is named after its resource"
    assert settled.outputs()["arn"] == f"arn:aws:s3:::{name}"
    tags = {tag["Key"]: tag["Value"] for tag in s3.get_bucket_tagging(Bucket=name)["TagSet"]}
    assert tags == {"team": "a", "stack": "test"}, "the provider's default tags are added"
    assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    rule = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "alias/models"}
    assert rule["BucketKeyEnabled"] is True
    assert set(s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"].values()) == {True}
    owner = s3.get_bucket_ownership_controls(Bucket=name)["OwnershipControls"]["Rules"]
    assert owner == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    rules = {rule["ID"]: rule for rule in s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]}
    assert rules["unfinished"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert rules["old"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    assert rules["old"]["Filter"] == {"Prefix": "models/"}
    statement = json.loads(s3.get_bucket_policy(Bucket=name)["Policy"])["Statement"][0]
    assert (statement["Sid"], statement["Effect"]) == ("TlsOnly", "Deny")
    s3.put_object(Bucket=name, Key="models/x", Body=b"the emulator ignores conditions; the statement must not bite")


def test_a_second_up_changes_nothing_and_a_refresh_sees_no_drift(settled: Project) -> None:
    assert settled.preview().changes == {"same": 9}
    assert settled.up("--refresh").changes == {"same": 9}, "what the emulator returns must not look like drift"


def test_a_changed_setting_updates_that_setting_only(settled: Project, emulator: Any) -> None:
    settled.config.update({"days": "31", "team": "b"})
    preview = settled.preview("--diff")
    assert preview.changes == {"same": 7, "update": 2}
    assert "noncurrentDays" in preview.text, "the preview shows the nested key"
    run = settled.up()
    assert sorted(run.steps()) == [("update", "lifecycle"), ("update", "mirror")]
    rules = emulator.client().get_bucket_lifecycle_configuration(Bucket=settled.outputs()["bucket"])["Rules"]
    assert [rule.get("NoncurrentVersionExpiration") for rule in rules] == [None, {"NoncurrentDays": 31}]


def test_a_setting_changed_behind_the_engines_back_is_put_right(settled: Project, emulator: Any) -> None:
    name, s3 = settled.outputs()["bucket"], emulator.client()
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Suspended"})
    s3.delete_bucket_policy(Bucket=name)
    run = settled.up("--refresh")
    assert ("update", "versions") in run.steps()
    assert ("create", "policy") in run.steps(), "a setting that was removed is made again"
    assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"


def test_an_emulator_that_forgot_everything_is_noticed_and_filled_again(settled: Project, emulator: Any) -> None:
    emulator.restart()
    assert emulator.buckets() == set()
    run = settled.up("--refresh")
    assert run.changes == {"create": 7, "same": 2}, "seven resources were lost, the stack and its provider stay"
    assert settled.outputs()["bucket"] in emulator.buckets()


def test_an_emulator_that_is_not_running_counts_as_empty_and_says_so(settled: Project, emulator: Any) -> None:
    emulator.stop()
    try:
        run = settled.refresh()
    finally:
        emulator.start()
    assert run.changes.get("delete") == 7
    assert "the emulator is not running" in run.text


def test_destroy_leaves_no_bucket_even_with_versions_and_unfinished_uploads(settled: Project, emulator: Any) -> None:
    name, s3 = settled.outputs()["bucket"], emulator.client()
    for body in (b"one", b"two"):
        s3.put_object(Bucket=name, Key="models/x", Body=body)
    s3.delete_object(Bucket=name, Key="models/x")
    s3.create_multipart_upload(Bucket=name, Key="models/y")
    settled.destroy()
    assert name not in emulator.buckets()
    assert settled.resources() == []


def test_destroy_goes_through_when_the_emulator_has_ended(settled: Project, emulator: Any) -> None:
    emulator.stop()
    try:
        run = settled.destroy()
    finally:
        emulator.start()
    assert settled.resources() == []
    assert "counts as gone" in run.text


def test_a_bucket_with_objects_is_not_deleted_unless_it_was_asked_for(project: Project, emulator: Any) -> None:
    project.program("""
        provider = local_aws()
        aws.s3.Bucket("kept", bucket="kept-bucket", opts=pulumi.ResourceOptions(provider=provider))
    """)
    project.up()
    emulator.client().put_object(Bucket="kept-bucket", Key="weights", Body=b"precious")
    run = project.destroy(check=False)
    assert run.code != 0
    assert "bucket kept-bucket still holds objects; empty it or set forceDestroy" in run.text
    assert "kept-bucket" in emulator.buckets()
    emulator.client().delete_object(Bucket="kept-bucket", Key="weights")
    project.destroy()
