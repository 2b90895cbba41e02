"""After a stack is gone: what AWS still holds with its tag, and what of that only its lists still know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from modelfleet.cli import down
from modelfleet.infra.aws.leftovers import leftovers
from tests.unit.aws.builders import planned

REGION = "us-west-2"
TAGS = [{"Key": "modelfleet.dev/stack", "Value": "test"}]


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        yield


def tagged(kind: str) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": TAGS}]


def key() -> str:
    kms: Any = boto3.client("kms", region_name=REGION)
    made = kms.create_key(Tags=[{"TagKey": one["Key"], "TagValue": one["Value"]} for one in TAGS])
    return str(made["KeyMetadata"]["Arn"])


def found() -> dict[str, str | None]:
    return {one.arn: one.note for one in leftovers("test", REGION, None)}


def test_an_account_without_the_tag_holds_nothing() -> None:
    ec2: Any = boto3.client("ec2", region_name=REGION)
    ec2.create_vpc(CidrBlock="10.0.0.0/16")
    assert found() == {}


def test_a_network_that_stayed_is_named_and_has_no_excuse() -> None:
    ec2: Any = boto3.client("ec2", region_name=REGION)
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16", TagSpecifications=tagged("vpc"))["Vpc"]["VpcId"]
    assert found() == {f"arn:aws:ec2:{REGION}:123456789012:vpc/{vpc}": None}


def test_a_key_that_kms_keeps_for_its_days_is_named_with_its_last_day() -> None:
    arn = key()
    assert found() == {arn: None}
    kms: Any = boto3.client("kms", region_name=REGION)
    last = kms.schedule_key_deletion(KeyId=arn.rpartition("/")[2], PendingWindowInDays=30)["DeletionDate"]
    assert found() == {arn: f"goes on {last:%Y-%m-%d}, as KMS wants it; it costs nothing until then"}


def test_an_instance_that_has_ended_is_no_leftover() -> None:
    ec2: Any = boto3.client("ec2", region_name=REGION)
    image = ec2.describe_images()["Images"][0]["ImageId"]
    made = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=tagged("instance"))
    (one,) = made["Instances"]
    arn = f"arn:aws:ec2:{REGION}:123456789012:instance/{one['InstanceId']}"
    assert found() == {arn: None}
    ec2.terminate_instances(InstanceIds=[one["InstanceId"]])
    assert found() == {}


def test_down_says_what_is_left_and_where_to_look_when_it_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stack = planned(tmp_path)
    arn = key()
    down._show_leftovers(stack)
    said = capsys.readouterr().err
    assert f"AWS holds 1 resource with the tag modelfleet.dev/stack=test in {REGION}:\n  {arn}\n" in said
    monkeypatch.setenv("AWS_PROFILE", "absent")
    down._show_leftovers(stack)
    said = capsys.readouterr().err
    assert "could not be read" in said and "aws resourcegroupstaggingapi get-resources --region us-west-2" in said
