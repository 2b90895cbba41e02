"""A whole fleet is made, changed and deleted by an operator whose policy is the one that modelfleet prints.

The emulated AWS judges every call by that policy. What the stand-in has only in its table is not a call to AWS:
updates of the cluster and of a node group's version. Their permissions are looked up in the cloud's own table of actions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.aws.documents import iam_documents
from modelfleet.infra.aws.operator import FRONT_DOOR_READS, READS, operator
from modelfleet.infra.aws.policies import Document, numbered
from modelfleet.infra.aws.site import Site, site_of
from modelfleet.infra.planning import Plan
from tests.engine.aws_account import Account
from tests.engine.aws_fleet import REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tests.unit.aws.builders import facts, planned
from tools.cloud.actions import needs
from tools.cloud.evaluator import allowed, as_list
from tools.standin.aws.table import BUCKET as TABLE

POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]}
NETWORK = {"cidr": "10.0.0.0/16", "zones": 2, "interfaceEndpoints": True}
STORE = {"image": "registry.example/serving:1", "headStorage": "valkey"}
DOOR = {"expose": "internet", "hostname": "models.example.org", "zone": "example.org"}
#: Other clients, longer requests, another name: what changes of a front door without a new one.
OTHER_DOOR = {**DOOR, "hostname": "llm.example.org", "timeoutS": 600, "allowCidrs": ["203.0.113.0/24"]}
MODELS = {"org--m": model("org/m", "L4")}
#: Weights in a bucket of the company's own, so the readers' policies change.
ELSEWHERE = {"org--m": model("org/m", "L4", s3_mirror_config={"bucket_uri": "s3://company/m"})}
SPOT = {"name": "t4", "accelerator": "T4", "purchase": "spot", "maxNodes": 2, "instanceTypes": ["g4dn.xlarge"]}
NAMES = "aws"
"""The fleet's name in this test; `modelfleet` names it like the stack."""
#: A secret as Pulumi keeps it in a stack file.
KEYS = {"one": {"secure": "v1:AAAA:AAAA"}}
#: The stand-in's own bookkeeping.
BOOKS = {"Effect": "Allow", "Action": "s3:*", "Resource": [f"arn:aws:s3:::{TABLE}", f"arn:aws:s3:::{TABLE}/*"]}
#: What the operator may do and no test here does, with the reason.
UNUSED = {
    "ecr:PutImageScanningConfiguration": "a later version that scans otherwise",
    "ecr:PutImageTagMutability": "a later version that lets tags move",
    "ec2:DisassociateAddress": "an address whose state names the association with its NAT gateway",
    "ec2:ReplaceRoute": "a zone that gets another NAT gateway",
    "eks:UpdateAccessEntry": "a later version that gives its access entries Kubernetes groups",
    "eks:UpdatePodIdentityAssociation": "a service account whose role is replaced",
    "ec2:RunInstances": "EKS asks for it when a node group has a launch template",
    "elasticache:DecreaseReplicaCount": "a later version with fewer nodes in the store",
    "elasticache:IncreaseReplicaCount": "a later version with more nodes in the store",
    "elasticache:ModifyCacheSubnetGroup": "an existing network whose stack file names other subnets",
    "elasticache:ModifyReplicationGroup": "a later version with another type or engine version",
    "elasticloadbalancing:ModifyTargetGroup": "a later version that checks the gateway's health otherwise",
    "elasticloadbalancing:SetSecurityGroups": "a front door whose security group is replaced",
    "elasticloadbalancing:SetSubnets": "a stack that gets another zone",
    "iam:CreateServiceLinkedRole": "the first node group of an account",
    "iam:UpdateAssumeRolePolicy": "a stack that gets another namespace",
    "kms:CreateGrant": "EKS and CloudWatch Logs, with the cluster's key",
    "kms:DisableKeyRotation": "never by us; the provider's way back from a failed create",
    "kms:PutKeyPolicy": "a later version that gives its keys another policy",
    "kms:UpdateAlias": "a key that is replaced",
    "kms:UpdateKeyDescription": "a later version that describes its keys otherwise",
    "logs:AssociateKmsKey": "the provider's way to give a log group its key",
    "s3:AbortMultipartUpload": "a bucket that is deleted while a Job fills it",
}


class Operator:
    """A user with a key, who may what a test gives them."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator, self._count = emulator, 0
        self.iam = emulator.client("iam", REGION)
        self.arn = self.iam.create_user(UserName="operator")["User"]["Arn"]
        key = self.iam.create_access_key(UserName="operator")["AccessKey"]
        self.environ = {
            "AWS_ENDPOINT_URL": emulator.url,
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }

    def may(self, *documents: Document) -> None:
        """Gives the operator these policies and no others."""
        for attached in self.iam.list_attached_user_policies(UserName="operator")["AttachedPolicies"]:
            self.iam.detach_user_policy(UserName="operator", PolicyArn=attached["PolicyArn"])
        for document in documents:
            self._count += 1
            made = self.iam.create_policy(PolicyName=f"operator-{self._count}", PolicyDocument=json.dumps(document))
            self.iam.attach_user_policy(UserName="operator", PolicyArn=made["Policy"]["Arn"])

    def decisions(self) -> list[dict[str, Any]]:
        """What the operator was judged for, without the stand-in's table."""
        return [one for one in self.emulator.decisions() if one["caller"] == self.arn and TABLE not in one["resource"]]

    def refused(self) -> list[dict[str, Any]]:
        """What the operator was refused."""
        return [one for one in self.decisions() if not one["allowed"]]

    def left(self) -> list[str]:
        """What is in the account besides the operator's own policies."""
        everything = Account(self.emulator, REGION).everything()
        return [thing for thing in everything if not str(thing).startswith("operator-")]


@pytest.fixture
def someone(emulator: Emulator) -> Operator:
    emulator.restart()
    return Operator(emulator)


@pytest.fixture
def project(tmp_path: Path, emulator: Emulator, someone: Operator) -> Iterator[FleetProject]:
    made = FleetProject(tmp_path, emulator, builds_image=True)
    made.environ |= someone.environ
    someone.emulator.client("route53", REGION).create_hosted_zone(Name="example.org", CallerReference="test")
    made.files(stack(), MODELS)
    yield made
    assert not made.living_processes()


def stack(door: dict[str, Any] = DOOR, **more: Any) -> dict[str, Any]:
    """A stack file with a front door, which needs keys; nothing here looks at their values."""
    return stack_of(
        **{
            "pools": [POOL],
            "network": NETWORK,
            "auth": "keys",
            "apiKeys": KEYS,
            "gateway": door,
            "kubernetes": STORE,
            **more,
        }
    )


def site(plan: Plan) -> Site:
    return site_of(plan, facts())


def documents(plan: Plan) -> list[Document]:
    statements = operator(
        site(plan),
        bucket=plan.bucket,
        images=plan.images,
        names=NAMES,
        endpoints=True,
        store=True,
        front_door=plan.front_door is not None,
    )
    return [*numbered("operator", statements).values(), {"Version": "2012-10-17", "Statement": [BOOKS]}]


@pytest.mark.timeout(1800)
def test_the_printed_policy_is_enough_to_make_change_and_delete_a_fleet(
    someone: Operator, project: FleetProject
) -> None:
    plan = project.plan()
    someone.may(*documents(plan))
    project.up()
    changed = {"pools": [{**POOL, "maxNodes": 3}, SPOT], "tags": {"team": "a"}}
    pinned = {"addonVersions": {"coredns": "v1.0.0-eksbuild.7"}}
    project.files(stack(OTHER_DOOR, **changed, cluster=pinned), ELSEWHERE)
    project.up("--refresh")
    # Not the first host name again: moto remembers a deleted record as one that exists.
    project.files(stack(OTHER_DOOR), MODELS)
    project.up()
    project.destroy()
    assert someone.left() == []
    assert someone.refused() == []
    used = {one["action"] for one in someone.decisions()}
    granted = {
        action for document in documents(plan)[:-1] for s in document["Statement"] for action in as_list(s["Action"])
    }
    changes = {action for action in granted - set(READS) - set(FRONT_DOOR_READS) if "*" not in action} - TABLE_ONLY
    idle, busy = sorted(changes - used - set(UNUSED)), sorted(used & set(UNUSED))
    assert not idle, f"the operator may do what nothing here does: {', '.join(idle)}"
    assert not busy, f"these are used, so they have no reason to be in UNUSED: {', '.join(busy)}"


def test_one_permission_less_stops_the_fleet_with_awss_own_words(someone: Operator, project: FleetProject) -> None:
    text = json.dumps(documents(project.plan())).replace("iam:PassRole", "iam:GetRole")
    someone.may(*json.loads(text))
    run = project.up(check=False)
    assert run.code != 0
    where = "on resource: arn:aws:iam::123456789012:role/aws-"
    assert f"User: {someone.arn} is not authorized to perform: iam:PassRole {where}" in run.text
    assert {one["action"] for one in someone.refused()} == {"iam:PassRole"}


#: Operations of EKS that the stand-in carries out in its table.
TABLE_OPERATIONS = {
    "UpdateClusterConfig": {"name": "modelfleet-test"},
    "UpdateClusterVersion": {"name": "modelfleet-test"},
    "UpdateNodegroupVersion": {"nodegroupName": "g", "nodegroupUuid": "u"},
}
TABLE_ONLY = {f"eks:{operation}" for operation in TABLE_OPERATIONS}


@pytest.mark.parametrize("operation", TABLE_OPERATIONS)
def test_the_printed_policy_allows_what_the_stand_in_keeps_in_its_table(tmp_path: Path, operation: str) -> None:
    plan, _ = planned(tmp_path)
    printed = [d for name, d in iam_documents(plan, site(plan)).items() if name.startswith("operator")]
    statements = [statement for document in printed for statement in document["Statement"]]
    values = {
        "partition": "aws",
        "region": REGION,
        "account": "123456789012",
        "clusterName": "modelfleet-test",
        **TABLE_OPERATIONS[operation],
    }
    names = {"aws:RequestedRegion": REGION}
    for need in needs("eks", operation, values):
        assert allowed(statements, need.action, need.resource, names), f"{operation} needs {need}"
