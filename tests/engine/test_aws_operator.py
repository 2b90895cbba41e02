"""A whole fleet is made, changed and deleted by an operator whose policy is the one that modelfleet prints.

The emulated AWS judges every call by that policy: the preflight's, the stand-in's, the plugin's that builds the image,
and those of the list of what is left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.aws.documents import iam_documents
from modelfleet.infra.aws.facts_boto3 import run_preflight
from modelfleet.infra.aws.leftovers import leftovers
from modelfleet.infra.aws.policies import Document
from modelfleet.infra.aws.site import Site, site_of
from modelfleet.infra.planning import Plan
from tests.engine.aws_account import Account
from tests.engine.aws_fleet import REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tests.unit.aws.builders import facts
from tools.cloud.evaluator import as_list, like

POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]}
NETWORK = {"cidr": "10.0.0.0/16", "zones": 2, "interfaceEndpoints": True}
STORE = {"image": "registry.example/serving:1", "headStorage": "valkey"}
DOOR = {"expose": "internet", "hostname": "models.example.org", "zone": "example.org"}
#: Other clients, longer requests, another name: what changes of a front door without a new one.
OTHER_DOOR = {**DOOR, "hostname": "llm.example.org", "timeoutS": 600, "allowCidrs": ["203.0.113.0/24"]}
SEEN = {"metrics": "amp", "alertEmails": ["pager@example.org"], "logs": "cloudwatch"}
#: Others hear the alerts.
SEEN_ELSEWHERE = {**SEEN, "alertEmails": ["night@example.org"]}
MODELS = {"org--m": model("org/m", "L4")}
#: Weights in a bucket of the company's own, so the readers' policies change.
ELSEWHERE = {"org--m": model("org/m", "L4", s3_mirror_config={"bucket_uri": "s3://company/m"})}
#: And a goal, for which the scraper sends series that it did not send.
ELSEWHERE["org--m"]["deployment_config"]["slo"] = {"ttft_p95_ms": 800}
SPOT = {"name": "t4", "accelerator": "T4", "purchase": "spot", "maxNodes": 2, "instanceTypes": ["g4dn.xlarge"]}
NAMES = "aws"
"""The fleet's name in this test; `modelfleet` names it like the stack."""
#: A secret as Pulumi keeps it in a stack file.
HOOK = {"secure": "v1:AAAA:AAAA"}
KEYS = {"one": HOOK}
#: By which a receiver of alerts knows who sends.
TOKEN = "t0ken-of-a-test"
#: What the operator may do and no test here does, with the reason.
UNUSED = {
    "aps:ListTagsForResource": "the official provider, which reads a scraper's tags",
    "aps:PutAlertManagerDefinition": "a later version whose alerts go on otherwise",
    "aps:UntagResource": "a tag that is taken away while its workspace stays",
    "sns:UntagResource": "a tag that is taken away while its topic stays",
    "acm:GetCertificate": "the official provider, while a certificate waits for its proof",
    "ecr:DescribeImages": "a stack that makes its image, or names one in ECR: this one does neither",
    "ecr:DescribeRepositories": "the same",
    "iam:ListInstanceProfilesForRole": "the official provider, before it deletes a role",
    "iam:ListRolePolicies": "the official provider, which reads a role's inline policies",
    "ce:GetCostAndUsage": "`modelfleet usage --compare-aws`, which tests/unit/cloud/test_books_of_aws.py runs with this policy",
    "pricing:GetProducts": "a plan with pricing: live, which asks AWS for prices",
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
    "elasticloadbalancing:SetWebACL": "a front door that has a web ACL, or had one: tests/unit/cloud/test_web_acl.py",
    "elasticloadbalancing:SetSubnets": "a stack that gets another zone",
    "iam:UpdateAssumeRolePolicy": "a stack that gets another namespace",
    "kms:CreateGrant": "EKS and CloudWatch Logs, with the cluster's key",
    "kms:DisableKeyRotation": "never by us; the provider's way back from a failed create",
    "kms:PutKeyPolicy": "a later version that gives its keys another policy",
    "kms:UpdateAlias": "a key that is replaced",
    "kms:UpdateKeyDescription": "a later version that describes its keys otherwise",
    "logs:AssociateKmsKey": "the provider's way to give a log group its key",
    "route53:GetChange": "the official provider, while a record spreads",
    "route53:GetHostedZone": "the official provider, which reads a zone by its id",
    "route53:ListTagsForResource": "the official provider, which reads a zone's tags",
    "s3:AbortMultipartUpload": "a bucket that is deleted while a Job fills it",
    "wafv2:DisassociateWebACL": "the same as elasticloadbalancing:SetWebACL",
    "wafv2:GetWebACL": "the same",
    "wafv2:GetWebACLForResource": "the same",
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
        """What the operator was judged for."""
        return [one for one in self.emulator.decisions() if one["caller"] == self.arn]

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
            "trust": {"manifestKey": {"kms": "own"}},
            "observability": SEEN,
            **more,
        }
    )


def site(plan: Plan) -> Site:
    return site_of(plan, facts())


def documents(plan: Plan) -> list[Document]:
    """The printed ones, for a fleet whose name is not its stack's."""
    printed = {name: text for name, text in iam_documents(plan, site(plan)).items() if name.startswith("operator")}
    text = json.dumps(list(printed.values()))
    for where in (":role/", ":policy/", f":sns:{REGION}:123456789012:"):
        assert f"{where}{plan.stack}-*" in text
        text = text.replace(f"{where}{plan.stack}-*", f"{where}{NAMES}-*")
    found: list[Document] = json.loads(text)
    return found


@pytest.mark.timeout(1800)
def test_the_printed_policy_is_enough_to_make_change_and_delete_a_fleet(
    someone: Operator, project: FleetProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = project.plan()
    someone.may(*documents(plan))
    for name, value in {**someone.environ, "PATH": project.environ["PATH"]}.items():
        monkeypatch.setenv(name, value)
    found = run_preflight(plan)
    assert found == [], "the account has room, and the operator may look at all of it"
    project.up()
    changed = {"pools": [{**POOL, "maxNodes": 3}, SPOT], "tags": {"team": "a"}, "observability": SEEN_ELSEWHERE}
    newer = {"addonVersions": {"coredns": "v1.0.0-eksbuild.7"}, "version": "1.36"}
    open_to = {"publicAccessCidrs": ["203.0.113.0/24", "198.51.100.0/24"]}
    project.files(stack(OTHER_DOOR, **changed, alertWebhook=HOOK, cluster={**newer, **open_to}), ELSEWHERE)
    project.set_secret("alertWebhook", f"https://pager.example.org/{TOKEN}")
    run = project.up("--refresh")
    told = project.resources("aws:sns/topicSubscription:TopicSubscription")
    (hook,) = [one for one in told if one["inputs"]["protocol"] == "https"]
    assert "ciphertext" in hook["inputs"]["endpoint"] and "ciphertext" in hook["outputs"]["endpoint"]
    assert TOKEN not in project.everything_on_disk() + run.text
    assert [one.severity for one in run_preflight(project.plan())] == []
    # Not the first host name again: moto remembers a deleted record as one that exists.
    project.files(stack(OTHER_DOOR, cluster={"version": "1.36"}, observability={}), MODELS)
    project.up()
    project.destroy()
    assert someone.left() == []
    assert [one for one in leftovers(plan.stack, REGION, None) if one.note is None] == []
    assert someone.refused() == []
    used = {one["action"] for one in someone.decisions()}
    granted = {action for one in documents(plan) for s in one["Statement"] for action in as_list(s["Action"])}
    idle = sorted(action for action in granted - set(UNUSED) if not any(like(action, one) for one in used))
    assert not idle, f"the operator may do what nothing here does: {', '.join(idle)}"
    assert not (busy := sorted(used & set(UNUSED))), f"used, so without a reason to be in UNUSED: {', '.join(busy)}"


@pytest.mark.long(why="waits for IAM's retries")
def test_one_permission_less_stops_the_fleet_with_awss_own_words(someone: Operator, project: FleetProject) -> None:
    text = json.dumps(documents(project.plan())).replace("iam:PassRole", "iam:GetRole")
    someone.may(*json.loads(text))
    run = project.up(check=False)
    assert run.code != 0
    where = "on resource: arn:aws:iam::123456789012:role/aws-"
    assert f"User: {someone.arn} is not authorized to perform: iam:PassRole {where}" in run.text
    assert {one["action"] for one in someone.refused()} == {"iam:PassRole"}
