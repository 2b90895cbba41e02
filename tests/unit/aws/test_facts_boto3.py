"""`modelfleet plan --preflight` reads the same facts with boto3; moto plays EC2 with its real offerings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from moto import mock_aws
from moto.servicequotas.exceptions import NoSuchResource
from moto.servicequotas.responses import ServiceQuotasResponse

from modelfleet.infra.aws import facts_boto3
from modelfleet.infra.aws.facts import LOG_GROUP, why
from modelfleet.infra.aws.facts_boto3 import read_facts_with_boto3, run_preflight
from modelfleet.infra.stack import load_stack
from modelfleet.serving.config.errors import SetupError, errors_in
from tests.unit.aws.builders import ACCOUNT, planned

#: The least that moto takes for an image.
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": []})


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    # moto has no such operation; as for the other one, it has no quotas of EC2.
    monkeypatch.setattr(ServiceQuotasResponse, "get_aws_default_service_quota", _no_quota, raising=False)


def _no_quota(_: ServiceQuotasResponse) -> None:
    raise NoSuchResource


def test_the_facts_are_the_accounts(tmp_path: Path, credentials: None) -> None:
    plan, _ = planned(tmp_path)
    with mock_aws():
        facts = read_facts_with_boto3(plan)
    assert (facts.account, facts.partition, facts.region) == ("123456789012", "aws", "us-west-2")
    assert facts.zones == ("us-west-2a", "us-west-2b", "us-west-2c", "us-west-2d")
    assert facts.offerings["g6.xlarge"] >= {"us-west-2a", "us-west-2b"}
    assert set(facts.unread) == {"L-0263D0A3", "L-1216C47A", "L-6D54EA21", "L-DB2E81BA"}, (
        "moto has no EC2 quotas, and the facts say so"
    )


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
            wanted = (("L-0263D0A3", None), ("L-1216C47A", 64.0), ("L-6D54EA21", 30.0), ("L-DB2E81BA", 0.0))
            for code, value in wanted:
                asked = {"ServiceCode": "eks" if code == "L-6D54EA21" else "ec2", "QuotaCode": code}
                if value is None:  # as of a quota that the account never had another value of
                    stub.add_client_error("get_service_quota", "NoSuchResourceException", expected_params=asked)
                    answer: dict[str, Any] = {"Quota": {"QuotaCode": code, "Value": 5.0}}
                    stub.add_response("get_aws_default_service_quota", answer, asked)
                else:
                    stub.add_response("get_service_quota", {"Quota": {"QuotaCode": code, "Value": value}}, asked)
            facts = read_facts_with_boto3(plan, session)
    assert facts.quotas == {"L-0263D0A3": 5.0, "L-1216C47A": 64.0, "L-6D54EA21": 30.0, "L-DB2E81BA": 0.0}


def test_the_command_says_what_it_could_not_read_and_goes_on(
    tmp_path: Path, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = planned(tmp_path)
    monkeypatch.setattr(facts_boto3, "has_aws_command", lambda: True)
    with mock_aws():
        findings = run_preflight(plan)
    assert errors_in(findings) == []
    assert len(findings) == 3


def test_the_front_doors_zone_is_a_public_one_of_exactly_that_name(tmp_path: Path, credentials: None) -> None:
    door = {"expose": "internal", "hostname": "models.example.org", "zone": "example.org"}
    plan, _ = planned(tmp_path, gateway=door)
    with mock_aws():
        route53 = boto3.client("route53", "us-west-2")
        vpc = boto3.client("ec2", "us-west-2").create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        where = {"VPCRegion": "us-west-2", "VPCId": vpc}
        private = {"PrivateZone": True}
        route53.create_hosted_zone(Name="example.org", CallerReference="1", VPC=where, HostedZoneConfig=private)
        route53.create_hosted_zone(Name="models.example.org", CallerReference="2")
        before = read_facts_with_boto3(plan)
        made = route53.create_hosted_zone(Name="example.org", CallerReference="3")["HostedZone"]["Id"]
        after = read_facts_with_boto3(plan)
    assert before.zone_id == ""
    assert after.zone_id == made.rpartition("/")[2]


def test_addresses_cluster_log_group_and_image_are_read(tmp_path: Path, credentials: None) -> None:
    image = f"{ACCOUNT}.dkr.ecr.us-west-2.amazonaws.com/serving:1"
    plan, _ = planned(tmp_path, kubernetes={"image": image})
    with mock_aws():
        before = read_facts_with_boto3(plan)
        ec2, ecr, eks, logs = (boto3.client(name, "us-west-2") for name in ("ec2", "ecr", "eks", "logs"))
        tags = [{"Key": "modelfleet.dev/stack", "Value": "test"}]
        ec2.allocate_address(Domain="vpc", TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": tags}])
        for _ in range(2):
            ec2.allocate_address(Domain="vpc")
        logs.create_log_group(logGroupName="/aws/eks/modelfleet-test/cluster-of-another")
        another = read_facts_with_boto3(plan)
        logs.create_log_group(logGroupName="/aws/eks/modelfleet-test/cluster")
        ecr.create_repository(repositoryName="serving")
        without_tag = read_facts_with_boto3(plan)
        ecr.put_image(repositoryName="serving", imageManifest=MANIFEST, imageTag="1")
        role = f"arn:aws:iam::{ACCOUNT}:role/r"
        eks.create_cluster(name="modelfleet-test", roleArn=role, resourcesVpcConfig={}, version="1.35")
        after = read_facts_with_boto3(plan)
    assert (before.other_addresses, before.cluster, before.has_log_group, before.lacks_image) == (0, None, False, True)
    assert another.has_log_group is False, "only its name begins alike"
    assert without_tag.lacks_image is True, "the repository is there, the tag is not"
    assert after.other_addresses == 2, "the stack's own address is no obstacle to it"
    assert after.cluster is not None and after.cluster.version == "1.35"
    assert after.has_log_group is True and after.lacks_image is False
    assert set(after.unread) == {"L-0263D0A3", "L-1216C47A", "L-6D54EA21", "L-DB2E81BA"}


def test_a_right_that_only_a_check_needs_stops_nothing(
    tmp_path: Path, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = planned(tmp_path)
    denied = ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "DescribeLogGroups")

    def refuse(*_: Any) -> bool:
        raise denied

    monkeypatch.setattr(facts_boto3, "_has_log_group", refuse)
    with mock_aws():
        facts = read_facts_with_boto3(plan)
    assert (facts.has_log_group, facts.unread[LOG_GROUP]) == (False, why(denied))


def test_missing_credentials_are_a_fault_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = planned(tmp_path)
    _as_a_new_user(tmp_path, monkeypatch)
    with pytest.raises(SetupError, match="Unable to locate credentials. Log in"):
        read_facts_with_boto3(plan)


def test_a_profile_that_does_not_exist_is_a_fault_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, stack = planned(tmp_path)
    _as_a_new_user(tmp_path, monkeypatch)
    with_profile = dataclasses.replace(plan, source=dataclasses.replace(stack, profile="prod"))
    with pytest.raises(SetupError, match=r"profile \(prod\) could not be found. Log in"):
        read_facts_with_boto3(with_profile)
    monkeypatch.setenv("AWS_PROFILE", "elsewhere")
    with pytest.raises(SetupError, match=r"profile \(elsewhere\) could not be found. Log in"):
        read_facts_with_boto3(plan)


def test_an_expired_token_is_a_fault_of_the_environment(tmp_path: Path, credentials: None) -> None:
    plan, _ = planned(tmp_path)
    session = boto3.Session(region_name="us-west-2")
    sts = session.client("sts", region_name="us-west-2")
    with Stubber(sts) as stub, pytest.MonkeyPatch.context() as patched:
        stub.add_client_error("get_caller_identity", "ExpiredToken", "The security token is expired")
        patched.setattr(session, "client", lambda service, **more: sts)
        with pytest.raises(SetupError) as refused:
            read_facts_with_boto3(plan, session)
    assert "The security token is expired" in str(refused.value) and "\n" not in str(refused.value)


def test_the_profile_is_that_of_the_stack_file(tmp_path: Path) -> None:
    _, without = planned(tmp_path)
    file = tmp_path / "stacks" / "Pulumi.test.yaml"
    file.write_text(file.read_text().replace("config:\n", "config:\n  aws:profile: prod\n"))
    assert (without.profile, load_stack(tmp_path, "test").profile) == (None, "prod")


def _as_a_new_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
