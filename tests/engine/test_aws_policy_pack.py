"""The policy pack on the real engine: it stops a stack that breaks its rules, and passes ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.aws_fleet import REPOSITORY, FleetProject, model, stack_of
from tests.engine.conftest import Emulator

PACK = ("--policy-pack", str(REPOSITORY / "infra" / "policy"))
POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 4, "instanceTypes": ["g6.xlarge"]}
BLOCK = {
    "name": "block",
    "accelerator": "A100-80G",
    "purchase": "capacity-block",
    "capacityReservationId": "cr-0123456789abcdef0",
    "maxNodes": 4,
    "instanceTypes": ["p4de.24xlarge"],
    "zones": ["us-west-2b"],
}

BROKEN = """\
import json
import pulumi
import pulumi_aws as aws

tags = {"modelfleet.dev/stack": "test"}
vpc = aws.ec2.Vpc("no-tag", cidr_block="10.0.0.0/16")
bucket = aws.s3.Bucket("bucket", tags=tags)
aws.s3.BucketPublicAccessBlock("open-bucket", bucket=bucket.bucket, block_public_acls=True)
aws.ec2.LaunchTemplate(
    "plain-volume",
    block_device_mappings=[{"device_name": "/dev/xvda", "ebs": {"volume_size": 10}}],
    metadata_options={"http_tokens": "required"},
    tags=tags,
)
aws.ec2.LaunchTemplate(
    "imdsv1",
    block_device_mappings=[{"device_name": "/dev/xvda", "ebs": {"encrypted": "true"}}],
    tags=tags,
)
group = aws.ec2.SecurityGroup("group", vpc_id=vpc.id)
aws.vpc.SecurityGroupIngressRule(
    "open-ssh", security_group_id=group.id, ip_protocol="tcp", from_port=22, to_port=22, cidr_ipv4="0.0.0.0/0"
)
aws.ec2.Vpc("elsewhere", cidr_block="10.1.0.0/16", region="eu-west-1", tags=tags)
aws.eks.NodeGroup(
    "dear",
    cluster_name="c",
    node_role_arn="arn:aws:iam::123456789012:role/r",
    subnet_ids=["subnet-1"],
    node_group_name_prefix="dear-",
    instance_types=["p4d.24xlarge"],
    scaling_config={"min_size": 0, "desired_size": 0, "max_size": 10},
    tags=tags,
)
"""
LIMITS = {"regions": ["us-west-2"], "instanceTypes": ["g6.xlarge", "m7i.xlarge", "m7i.2xlarge"], "maxUsdPerHour": 20}


@pytest.fixture
def fleet(tmp_path: Path, emulator: Emulator) -> Iterator[FleetProject]:
    project = FleetProject(tmp_path, emulator)
    yield project
    assert not project.living_processes()


def _limits(folder: Path, **other: object) -> tuple[str, str]:
    names = ("allowed-region", "allowed-instance-types", "within-budget")
    (folder / "limits.json").write_text(json.dumps({name: {**LIMITS, **other} for name in names}))
    return "--policy-pack-config", str(folder / "limits.json")


def test_a_stack_that_breaks_every_rule_is_stopped_by_every_rule(fleet: FleetProject) -> None:
    fleet.program(BROKEN, prelude="")
    run = fleet.preview(*PACK, *_limits(fleet.folder), check=False)
    assert run.code != 0
    events = [event["policyEvent"] for event in run.events if "policyEvent" in event]
    caught = {(event["policyName"], event["message"].splitlines()[-1].split(":")[0]) for event in events}
    assert {policy for policy, _ in caught} == {
        "no-public-bucket",
        "no-unencrypted-volume",
        "no-open-endpoint",
        "imdsv2-only",
        "tagged",
        "allowed-region",
        "allowed-instance-types",
        "within-budget",
    }, run.text
    assert {event["enforcementLevel"] for event in events} == {"mandatory"}


def test_a_fleet_of_ours_passes_every_rule(fleet: FleetProject) -> None:
    fleet.files(stack_of(pools=[POOL]), {"org--m": model("org/m", "L4")})
    run = fleet.preview(*PACK, *_limits(fleet.folder))
    assert [event["policyEvent"] for event in run.events if "policyEvent" in event] == []
    assert "modelfleet" in run.text.partition("Policies:")[2], "the pack was not loaded"


def test_a_capacity_block_is_seen_although_only_its_launch_template_names_the_type(fleet: FleetProject) -> None:
    """Regression: four p4de passed an allow-list without them and a budget of 1 USD per hour."""
    fleet.files(stack_of(pools=[BLOCK]), {"org--m": model("org/m", "A100-80G")})
    run = fleet.preview(*PACK, *_limits(fleet.folder, maxUsdPerHour=1), check=False)
    said = {
        event["policyEvent"]["policyName"]: event["policyEvent"]["message"]
        for event in run.events
        if "policyEvent" in event
    }
    assert set(said) == {"allowed-instance-types", "within-budget"}, run.text
    assert "uses p4de.24xlarge; allowed are g6.xlarge, m7i.xlarge, m7i.2xlarge" in said["allowed-instance-types"]
    assert "node groups cost up to 111.20 USD per hour; allowed are 1.00" in said["within-budget"], (
        "4 x 27.45, 3 x 0.20 for the system, 2 x 0.40 for copies"
    )
