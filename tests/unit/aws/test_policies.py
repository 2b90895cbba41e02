"""IAM documents: evaluates what each role can and cannot do; no `*` action; length limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.documents import iam_documents, pod_access
from modelfleet.infra.aws.identity import as_documents
from modelfleet.infra.aws.site import site_of
from tests.unit.aws.builders import facts, planned
from tools.cloud.evaluator import allowed

PARTITION = {"partition": "aws"}
PLACE = {**PARTITION, "region": "us-west-2", "account": "123456789012"}
STATEMENTS = {
    "read": policies.read_objects("b", ["code", "models"], **PARTITION),
    "write": policies.write_objects("b", ["models"], **PARTITION),
    "seal": policies.put_objects("b", ["seals"], **PARTITION),
    "key": policies.use_key("arn:aws:kms:us-west-2:1:key/k", write=True, region="us-west-2"),
    "existing": policies.read_existing(["other/llama", "other/mistral", "whole"], **PARTITION),
    "autoscaler": policies.cluster_autoscaler(cluster_name="c", **PLACE),
    "targets": policies.target_registration(stack="prod", **PLACE),
    "logs": policies.write_logs("/aws/eks/c/pods", **PLACE),
}


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_role_has_a_wildcard_action(name: str) -> None:
    for statement in STATEMENTS[name]:
        assert not [action for action in _list(statement["Action"]) if "*" in action], statement


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_wildcard_resource_appears_only_where_aws_has_no_finer_one(name: str) -> None:
    for statement in STATEMENTS[name]:
        if "*" in _list(statement["Resource"]):
            assert set(_list(statement["Action"])) <= set(policies.UNSCOPED), statement
    assert all(reason for reason in policies.UNSCOPED.values())


def test_the_load_balancers_controller_changes_the_targets_of_its_own_stack_and_nothing_else() -> None:
    """Its published policy may change every load balancer and security group of the account."""
    statements = STATEMENTS["targets"]
    group = "arn:aws:elasticloadbalancing:us-west-2:123456789012:targetgroup/any/0123456789abcdef"
    mine, other = ({"aws:ResourceTag/modelfleet.dev/stack": stack} for stack in ("prod", "dev"))
    for action in ("RegisterTargets", "DeregisterTargets"):
        assert allowed(statements, f"elasticloadbalancing:{action}", group, mine)
        assert not allowed(statements, f"elasticloadbalancing:{action}", group, other)
        assert not allowed(statements, f"elasticloadbalancing:{action}", group, {})
    for action in ("ec2:AuthorizeSecurityGroupIngress", "elasticloadbalancing:DeleteTargetGroup"):
        assert not allowed(statements, action, group, mine)


def test_the_operator_makes_a_cluster_in_the_stacks_region(tmp_path: Path) -> None:
    """CreateCluster has no resource type, so a statement with the cluster's ARN never gives it."""
    plan, _ = planned(tmp_path)
    printed = iam_documents(plan, site_of(plan, facts()))
    own = [one for name, document in printed.items() if name.startswith("operator") for one in document["Statement"]]
    assert allowed(own, "eks:CreateCluster", "*", {"aws:RequestedRegion": "us-west-2"})
    assert not allowed(own, "eks:CreateCluster", "*", {"aws:RequestedRegion": "us-east-1"})


def test_the_operator_keeps_what_a_stack_proved_in_a_bucket_that_is_not_its_own(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, mirror={"create": False, "bucket": "company"})
    printed = iam_documents(plan, site_of(plan, facts()))
    own = [one for name, document in printed.items() if name.startswith("operator") for one in document["Statement"]]
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
        assert allowed(own, action, "arn:aws:s3:::company/proved/test/20261201T000000Z.json")
        assert not allowed(own, action, "arn:aws:s3:::company/models/org--model/manifest.json"), "others keep that"


def test_a_build_makes_the_cache_of_its_base_and_no_other_repository() -> None:
    """ECR makes a pull-through cache's repository at the first pull, in the name of who pulls."""
    base, own = (f"arn:aws:ecr:us-west-2:123456789012:repository/{name}" for name in ("hub/vllm/vllm-openai", "own"))
    where = {"bucket_arn": "arn:aws:s3:::b", "key": "k", "log_group_arn": "arn:aws:logs:us-west-2:1:log-group:g"}
    build = policies.build_image(**where, repository_arns=[own], base_arns=[base])
    for action in ("CreateRepository", "BatchImportUpstreamImage", "BatchGetImage"):
        assert allowed(build, f"ecr:{action}", base)
    assert not allowed(build, "ecr:CreateRepository", own)
    assert not allowed(policies.build_image(**where, repository_arns=[own]), "ecr:CreateRepository", base)


def test_reading_is_for_the_named_prefixes() -> None:
    read = STATEMENTS["read"]
    assert allowed(read, "s3:GetObject", "arn:aws:s3:::b/models/org--m/a")
    assert not allowed(read, "s3:GetObject", "arn:aws:s3:::b/models-of-others/a")
    assert not allowed(read, "s3:GetObject", "arn:aws:s3:::b/secret")
    assert not allowed(read, "s3:GetObject", "arn:aws:s3:::bb/models/a")
    assert allowed(read, "s3:ListBucket", "arn:aws:s3:::b", {"s3:prefix": "models/org--m/"})
    assert not allowed(read, "s3:ListBucket", "arn:aws:s3:::b", {"s3:prefix": "logs/"})
    assert not allowed(read, "s3:ListBucket", "arn:aws:s3:::b"), "listing the whole bucket has no prefix"


def test_writing_hides_older_weights_and_never_deletes_a_version() -> None:
    write = STATEMENTS["write"]
    assert allowed(write, "s3:PutObject", "arn:aws:s3:::b/models/x")
    assert allowed(write, "s3:AbortMultipartUpload", "arn:aws:s3:::b/models/x")
    assert allowed(write, "s3:ListBucketMultipartUploads", "arn:aws:s3:::b")
    assert allowed(write, "s3:DeleteObject", "arn:aws:s3:::b/models/x")
    assert not allowed(write, "s3:DeleteObjectVersion", "arn:aws:s3:::b/models/x")
    assert not allowed(write, "s3:DeleteObject", "arn:aws:s3:::b/code/x")
    assert not allowed(write, "s3:PutObject", "arn:aws:s3:::b/code/x")
    assert not allowed(write, "s3:PutBucketPolicy", "arn:aws:s3:::b")


def granted(tmp_path: Path, sealed: bool) -> dict[str, list[Any]]:
    """The statements of each service account's role."""
    pools = [{"name": "l4", "accelerator": "L4", "maxNodes": 4, "instanceTypes": ["g6.xlarge"], "sealedCaches": sealed}]
    plan, _ = planned(tmp_path, pools=pools)
    return {access.service_account: list(access.statements) for access in pod_access(site_of(plan, facts()), plan)}


def test_only_the_warm_up_jobs_write_what_replicas_execute(tmp_path: Path) -> None:
    """Whoever else could write a seal would run code in every replica of the model."""
    roles = granted(tmp_path, sealed=True)
    arn = "arn:aws:s3:::modelfleet-test-123456789012"
    seal = f"{arn}/seals/org--model/0123456789abcdef/manifest.json"
    writers = {name for name, may in roles.items() if allowed(may, "s3:PutObject", seal)}
    assert writers == {"warm-up"}
    changers = ("s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutObjectAcl", "s3:PutBucketPolicy")
    assert not [(name, one) for name, may in roles.items() for one in changers if allowed(may, one, seal)]
    readers = {name for name, may in roles.items() if allowed(may, "s3:GetObject", seal)}
    assert readers == {"ray-head", "ray-worker", "warm-up"}
    listing = {"s3:prefix": "seals/org--model/0123456789abcdef/manifest.json"}
    for name in ("ray-worker", "warm-up"):
        assert allowed(roles[name], "s3:ListBucket", arn, listing), "else S3 says 403 of a seal that is not there yet"
    for prefix in ("models", "code"):
        assert not allowed(roles["warm-up"], "s3:PutObject", f"{arn}/{prefix}/x"), "it runs models"
        assert allowed(roles["warm-up"], "s3:GetObject", f"{arn}/{prefix}/x")


def test_without_sealed_caches_nobody_has_rights_to_any(tmp_path: Path) -> None:
    roles = granted(tmp_path, sealed=False)
    assert "warm-up" not in roles and "seals" not in json.dumps(roles)


def test_existing_buckets_are_read_at_their_prefix_or_as_a_whole() -> None:
    existing = STATEMENTS["existing"]
    assert allowed(existing, "s3:GetObject", "arn:aws:s3:::other/llama/x")
    assert not allowed(existing, "s3:GetObject", "arn:aws:s3:::other/secret/x")
    assert allowed(existing, "s3:GetObject", "arn:aws:s3:::whole/any/x")
    assert not allowed(existing, "s3:PutObject", "arn:aws:s3:::whole/any/x")


def test_the_key_works_through_s3_only() -> None:
    key, arn = STATEMENTS["key"], "arn:aws:kms:us-west-2:1:key/k"
    assert allowed(key, "kms:GenerateDataKey", arn, {"kms:ViaService": "s3.us-west-2.amazonaws.com"})
    assert not allowed(key, "kms:Decrypt", arn, {"kms:ViaService": "secretsmanager.us-west-2.amazonaws.com"})
    assert not allowed(key, "kms:Decrypt", arn)
    reader = policies.use_key(arn, write=False, region="us-west-2")
    assert not allowed(reader, "kms:GenerateDataKey", arn, {"kms:ViaService": "s3.us-west-2.amazonaws.com"})


def test_the_autoscaler_can_read_all_groups_and_change_only_its_own() -> None:
    scaling = STATEMENTS["autoscaler"]
    arn = "arn:aws:autoscaling:us-west-2:123456789012:autoScalingGroup:u:autoScalingGroupName/eks-l4-x"
    mine = {"aws:ResourceTag/eks:cluster-name": "c"}
    assert allowed(scaling, "autoscaling:DescribeAutoScalingGroups", "*")
    assert allowed(scaling, "autoscaling:TerminateInstanceInAutoScalingGroup", arn, mine)
    assert not allowed(scaling, "autoscaling:SetDesiredCapacity", arn, {"aws:ResourceTag/eks:cluster-name": "d"})
    web = "arn:aws:autoscaling:us-west-2:123456789012:autoScalingGroup:u:autoScalingGroupName/web"
    assert not allowed(scaling, "autoscaling:SetDesiredCapacity", web, mine)
    own = "arn:aws:eks:us-west-2:123456789012:nodegroup/c/l4/u"
    assert allowed(scaling, "eks:DescribeNodegroup", own)
    assert not allowed(scaling, "eks:DescribeNodegroup", own.replace("/c/", "/d/"))
    assert not allowed(scaling, "ec2:TerminateInstances", "arn:aws:ec2:us-west-2:123456789012:instance/i-1")


def test_pod_trust_is_for_one_service_account_of_one_cluster_and_allows_tagging() -> None:
    trust = policies.pod_trust(cluster_arn="arn:c", namespace="n", service_account="s")
    (statement,) = trust["Statement"]
    assert set(statement["Action"]) == {"sts:AssumeRole", "sts:TagSession"}, "Pod Identity fails without TagSession"
    assert statement["Principal"] == {"Service": "pods.eks.amazonaws.com"}
    assert statement["Condition"]["StringEquals"] == {
        "aws:RequestTag/eks-cluster-arn": "arn:c",
        "aws:RequestTag/kubernetes-namespace": "n",
        "aws:RequestTag/kubernetes-service-account": "s",
    }


def test_tls_only_denies_plain_http_and_nothing_else() -> None:
    deny = policies.tls_only("b", **PARTITION)["Statement"]
    both = [*deny, *STATEMENTS["read"]]
    assert allowed(both, "s3:GetObject", "arn:aws:s3:::b/models/x", {"aws:SecureTransport": "true"})
    assert not allowed(both, "s3:GetObject", "arn:aws:s3:::b/models/x", {"aws:SecureTransport": "false"})


def test_the_logs_service_uses_the_key_for_the_named_log_groups_only() -> None:
    names = ["/aws/eks/c/cluster", "/aws/eks/c/pods"]
    statements = policies.cluster_key(log_groups=names, **PLACE)["Statement"]
    (logs,) = [s for s in statements if s["Sid"] == "Logs"]
    context = "kms:EncryptionContext:aws:logs:arn"
    arn = "arn:aws:logs:us-west-2:123456789012:log-group:/aws/eks/c/cluster"
    assert allowed([logs], "kms:GenerateDataKey", "key", {context: arn})
    assert allowed([logs], "kms:GenerateDataKey", "key", {context: arn.replace("/cluster", "/pods")})
    assert not allowed([logs], "kms:GenerateDataKey", "key", {context: arn + "-other"})
    assert not allowed([logs], "kms:ScheduleKeyDeletion", "key", {context: arn})
    wildcards = [s["Sid"] for s in statements if any("*" in action for action in _list(s["Action"]))]
    assert wildcards == ["Account"], "only the account's root; without it nobody could manage the key"


def test_a_hundred_foreign_buckets_are_split_into_policies_that_iam_accepts() -> None:
    locations = [f"weights-of-team-{n:03}/a-rather-long-prefix-of-a-model" for n in range(100)]
    statements = policies.read_existing(locations, **PARTITION)
    documents = policies.split(statements)
    assert len(documents) > 1
    assert [s for d in documents for s in d["Statement"]] == statements, "nothing is lost or repeated"
    for document in documents:
        assert len(json.dumps(document, separators=(",", ":"))) <= 6144


def test_each_part_of_a_split_policy_is_a_complete_policy() -> None:
    locations = [f"weights-of-team-{n:03}/a-rather-long-prefix-of-a-model" for n in range(100)]
    statements = policies.read_existing(locations, **PARTITION)
    documents = as_documents("access", statements)
    assert list(documents)[:2] == ["access", "access-2"]
    found = [statement for text in documents.values() for statement in json.loads(text)["Statement"]]
    assert found == statements, "nothing is lost or repeated"


def test_many_prefixes_of_one_bucket_fit() -> None:
    statements = policies.read_existing([f"weights/model-{n:04}-{'x' * 60}" for n in range(200)], **PARTITION)
    assert all(policies.size(d) <= policies.MANAGED_POLICY_CHARACTERS for d in policies.split(statements))
