"""The store of the Ray head's state in AWS: closed, encrypted, with one password that later runs keep."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.aws_account import Account
from tests.engine.aws_fleet import REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tools.cloud.evaluator import like

POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]}
MODELS = {"org--m": model("org/m", "L4")}
STORE = {"image": "registry.example/serving:1", "headStorage": "valkey"}


@pytest.fixture
def project(tmp_path: Path, emulator: Emulator) -> Iterator[FleetProject]:
    emulator.restart()
    made = FleetProject(tmp_path, emulator)
    yield made
    assert not made.living_processes()


@pytest.mark.timeout(900)
def test_the_store_is_closed_and_its_password_stays(project: FleetProject, emulator: Emulator) -> None:
    """A password that each run makes anew would lock the head out of its own state at every `pulumi up`."""
    account = Account(emulator, REGION)
    project.files(stack_of(pools=[POOL], kubernetes=STORE, trust={"manifestKey": {"kms": "own"}}), MODELS)
    project.up()
    _its_key_signs_for_mirror_jobs_alone(project, account)
    (store,) = account.stores()
    assert store["Engine"] == "valkey" and store["CacheNodeType"] == "cache.t4g.micro"
    assert store["TransitEncryptionEnabled"] and store["AtRestEncryptionEnabled"] and store["AuthTokenEnabled"]
    assert (store["AutomaticFailover"], store["MultiAZ"]) == ("enabled", "enabled")
    assert store["SnapshotRetentionLimit"] == 0
    (made,) = project.resources("aws:elasticache/replicationGroup:ReplicationGroup")
    assert made["inputs"]["numCacheClusters"] == 2, "moto tells one member whatever it is asked for"
    _only_from_the_nodes(account)

    outputs = project.outputs()
    assert outputs["store"]["address"] == f"rediss://{_primary(store)}:6379"
    password = outputs["store"]["password"]
    assert len(password) == 64 and password not in project.everything_on_disk()

    again = project.up()
    assert project.outputs()["store"] == outputs["store"], again.text
    project.files(stack_of(pools=[POOL]), MODELS)
    project.up()
    assert account.stores() == []
    project.destroy()
    assert account.everything() == []


def _its_key_signs_for_mirror_jobs_alone(project: FleetProject, account: Account) -> None:
    """Its public half is what KMS has, so that replicas verify what Jobs sign."""
    key = project.outputs()["manifest_key"]
    found = account.kms.get_public_key(KeyId=key["arn"])
    assert (found["CustomerMasterKeySpec"], found["KeyUsage"]) == ("ECC_NIST_P256", "SIGN_VERIFY")
    assert base64.b64encode(found["PublicKey"]).decode() == key["public"]
    (made,) = (one for one in project.resources("aws:kms/key:Key") if one["outputs"]["arn"] == key["arn"])
    assert made["inputs"]["deletionWindowInDays"] == 30
    (deny,) = (one for one in json.loads(made["inputs"]["policy"])["Statement"] if one["Effect"] == "Deny")
    allowed = deny["Condition"]["ArnNotLike"]["aws:PrincipalArn"]
    arns = [one["Arn"] for one in account.iam.list_roles()["Roles"]]
    assert [":role/aws-mirror-" in arn for arn in arns if like(allowed, arn)] == [True]


def _only_from_the_nodes(account: Account) -> None:
    """One port, and only for who has the cluster's own security group."""
    cluster = account.cluster("modelfleet-test")["resourcesVpcConfig"]["clusterSecurityGroupId"]
    described = account.ec2.describe_security_groups()["SecurityGroups"]
    (group,) = [one for one in described if one["Description"].startswith("Store of the Ray head")]
    (rule,) = group["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule.get("IpRanges", [])) == (6379, 6379, [])
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [cluster]


def _primary(store: dict[str, Any]) -> str:
    address: str = store["NodeGroups"][0]["PrimaryEndpoint"]["Address"]
    return address
