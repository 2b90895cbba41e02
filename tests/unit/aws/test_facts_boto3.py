"""`modelfleet plan --preflight` reads the same facts with boto3; moto plays EC2 with its real offerings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from modelfleet.infra.aws.facts_boto3 import read_facts_with_boto3, run_preflight
from modelfleet.serving.config.errors import SetupError, errors_in
from tests.unit.aws.builders import planned


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


def test_the_facts_are_the_accounts(tmp_path: Path, credentials: None) -> None:
    plan, _ = planned(tmp_path)
    with mock_aws():
        facts = read_facts_with_boto3(plan)
    assert (facts.account, facts.partition, facts.region) == ("123456789012", "aws", "us-west-2")
    assert facts.zones == ("us-west-2a", "us-west-2b", "us-west-2c", "us-west-2d")
    assert facts.offerings["g6.xlarge"] >= {"us-west-2a", "us-west-2b"}
    assert set(facts.unread) == {"L-1216C47A", "L-DB2E81BA"}, "moto has no EC2 quotas, and the facts say so"


def test_zones_without_a_control_plane_are_left_out(tmp_path: Path, credentials: None) -> None:
    plan, _ = planned(tmp_path)
    with mock_aws():
        client = boto3.client("ec2", "us-east-1")
        refused = {
            z["ZoneName"]
            for z in client.describe_availability_zones()["AvailabilityZones"]
            if z["ZoneId"] == "use1-az3"
        }
        facts = read_facts_with_boto3(dataclasses.replace(plan, region="us-east-1"))
    assert refused and not refused & set(facts.zones), "EKS refuses subnets of a control plane there"


def test_the_caller_of_a_session_is_its_role_with_the_roles_path(tmp_path: Path, credentials: None) -> None:
    plan, _ = planned(tmp_path)
    with mock_aws():
        boto3.client("iam", "us-east-1").create_role(RoleName="ci", Path="/teams/", AssumeRolePolicyDocument="{}")
        assumed = boto3.client("sts", "us-west-2").assume_role(
            RoleArn="arn:aws:iam::123456789012:role/teams/ci", RoleSessionName="run"
        )["Credentials"]
        session = boto3.Session(
            assumed["AccessKeyId"], assumed["SecretAccessKey"], assumed["SessionToken"], region_name="us-west-2"
        )
        facts = read_facts_with_boto3(plan, session)
    assert facts.caller_role_arn == "arn:aws:iam::123456789012:role/teams/ci", "access entries need the path"


def test_the_facts_of_an_existing_network_are_read(tmp_path: Path, credentials: None) -> None:
    with mock_aws():
        ec2 = boto3.client("ec2", "us-west-2")
        vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/20", AvailabilityZone="us-west-2a")["Subnet"]
        plan, _ = planned(tmp_path, network={"vpcId": vpc, "privateSubnetIds": [subnet["SubnetId"]]})
        facts = read_facts_with_boto3(plan)
        ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
        mended = read_facts_with_boto3(plan)
    (found,) = facts.subnets
    assert (found.vpc_id, found.zone) == (vpc, "us-west-2a")
    assert facts.vpc_without == ("enableDnsHostnames",), "off in every VPC made with the API"
    assert mended.vpc_without == ()


def test_quotas_are_read_by_code(tmp_path: Path, credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = planned(tmp_path)
    with mock_aws():
        session = boto3.Session(region_name="us-west-2")
        quotas = session.client("service-quotas", region_name="us-west-2")
        original = session.client

        def client(service: str, **more: Any) -> Any:
            return quotas if service == "service-quotas" else original(service, **more)

        monkeypatch.setattr(session, "client", client)
        with Stubber(quotas) as stub:
            for code, value in (("L-1216C47A", 64.0), ("L-DB2E81BA", 0.0)):
                stub.add_response(
                    "get_service_quota",
                    {"Quota": {"QuotaCode": code, "Value": value}},
                    {"ServiceCode": "ec2", "QuotaCode": code},
                )
            facts = read_facts_with_boto3(plan, session)
    assert facts.quotas == {"L-1216C47A": 64.0, "L-DB2E81BA": 0.0}


def test_the_command_says_what_it_could_not_read_and_goes_on(tmp_path: Path, credentials: None) -> None:
    plan, _ = planned(tmp_path)
    with mock_aws():
        findings = run_preflight(plan)
    assert errors_in(findings) == []
    assert len(findings) == 2


def test_missing_credentials_are_a_fault_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = planned(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(SetupError, match="Log in"):
        read_facts_with_boto3(plan)
