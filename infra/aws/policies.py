"""IAM documents as plain data: who may assume a role, and what the role may do. Pure, so that tests can evaluate them.

No action is ever `*`. A `*` resource appears only where AWS has no finer one; `UNSCOPED` says where and why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from modelfleet.infra.names import STACK_LABEL, WRITER

Statement = Mapping[str, Any]
Document = dict[str, Any]

VERSION = "2012-10-17"
#: IAM's limit for one managed policy, in characters without whitespace.
#: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
MANAGED_POLICY_CHARACTERS = 6144
#: A statement stays far below one policy's limit, so that `split` can always place it.
PREFIXES_PER_STATEMENT = 20
#: Prefixes of the stack's bucket: weights by model, the serving code by content hash.
MODELS = "models"
CODE = "code"

#: What CloudWatch Logs does with a key. https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/encrypt-log-data-kms.html
LOGS_KEY_ACTIONS = (
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)

#: What cluster-autoscaler looks at, and why on all resources. In all of this file only `UNSCOPED` may use `*`.
#: https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
LOOKS_OF_AUTOSCALER: Mapping[str, str] = {
    "autoscaling:DescribeAutoScalingGroups": "a list action; AWS defines no resource type for it",
    "autoscaling:DescribeAutoScalingInstances": "a list action; AWS defines no resource type for it",
    "autoscaling:DescribeLaunchConfigurations": "a list action; AWS defines no resource type for it",
    "autoscaling:DescribeScalingActivities": "a list action; AWS defines no resource type for it",
    "autoscaling:DescribeTags": "a list action; AWS defines no resource type for it",
    "ec2:DescribeImages": "a list action; AWS defines no resource type for it",
    "ec2:DescribeInstanceTypes": "a list action; AWS defines no resource type for it",
    "ec2:DescribeLaunchTemplateVersions": "a list action; AWS defines no resource type for it",
    "ec2:GetInstanceTypesFromInstanceRequirements": "a list action; AWS defines no resource type for it",
}
#: The same of a build that pushes an image.
TOKEN_OF_REGISTRY: Mapping[str, str] = {
    "ecr:GetAuthorizationToken": "a token for the whole registry; AWS defines no resource type for it",
}
#: What `docker pull` asks of a repository, and of one that is a pull-through cache, which the first pull makes.
#: https://docs.aws.amazon.com/AmazonECR/latest/userguide/pull-through-cache-iam.html
PULL = ("ecr:BatchGetImage", "ecr:BatchImportUpstreamImage", "ecr:CreateRepository", "ecr:GetDownloadUrlForLayer")
#: What `docker push` asks of a repository, and what it asks of layers that are there already.
#: https://docs.aws.amazon.com/AmazonECR/latest/userguide/image-push-iam.html
PUSH = (
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:CompleteLayerUpload",
    "ecr:GetDownloadUrlForLayer",
    "ecr:InitiateLayerUpload",
    "ecr:PutImage",
    "ecr:UploadLayerPart",
)

#: The same of the load balancer's controller.
LOOKS_OF_LOAD_BALANCING: Mapping[str, str] = {
    "ec2:DescribeSecurityGroups": "a list action; AWS defines no resource type for it",
    "ec2:DescribeVpcs": "a list action; AWS defines no resource type for it",
    "elasticloadbalancing:DescribeTargetHealth": "the controller's own iam_policy.json has no finer resource",
}
#: Actions that have the resource `*`, with the reason.
UNSCOPED: Mapping[str, str] = {**LOOKS_OF_AUTOSCALER, **LOOKS_OF_LOAD_BALANCING, **TOKEN_OF_REGISTRY}


def document(statements: Iterable[Statement]) -> Document:
    """A policy document of these statements."""
    return {"Version": VERSION, "Statement": list(statements)}


def service_trust(service: str) -> Document:
    """Trust of an AWS service, such as `eks.amazonaws.com`."""
    return document([{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}])


def pod_trust(*, cluster_arn: str, namespace: str, service_account: str) -> Document:
    """Trust of EKS Pod Identity for one service account of one cluster.

    `sts:TagSession` is not optional: Pod Identity tags each session and fails without it.
    """
    return document(
        [
            {
                "Effect": "Allow",
                "Principal": {"Service": "pods.eks.amazonaws.com"},
                "Action": ["sts:AssumeRole", "sts:TagSession"],
                "Condition": {
                    "StringEquals": {
                        "aws:RequestTag/eks-cluster-arn": cluster_arn,
                        "aws:RequestTag/kubernetes-namespace": namespace,
                        "aws:RequestTag/kubernetes-service-account": service_account,
                    }
                },
            }
        ]
    )


def read_objects(bucket: str, prefixes: Sequence[str], *, partition: str) -> list[Statement]:
    """Read the objects below `prefixes` of a bucket, and list only those; `""` is the whole bucket."""
    arn = f"arn:{partition}:s3:::{bucket}"
    listing: dict[str, Any] = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": arn}
    if "" not in prefixes:
        listing["Condition"] = {
            "StringLike": {"s3:prefix": [p for prefix in prefixes for p in (prefix, f"{prefix}/*")]}
        }
    below = [f"{arn}/{prefix}/*" if prefix else f"{arn}/*" for prefix in prefixes]
    return [{"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": below}, listing]


def write_objects(bucket: str, prefixes: Sequence[str], *, partition: str) -> list[Statement]:
    """Put objects below `prefixes`, whole or in parts, go on with unfinished uploads, and delete older versions.

    The bucket is versioned, so deleting an object only hides it: there is no right to delete a version, which the
    lifecycle rule does 30 days later. An unfinished upload can be found only in the listing of the whole bucket
    (`s3:ListBucketMultipartUploads` takes no prefix); it names objects and shows nothing of them.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
    """
    arn = f"arn:{partition}:s3:::{bucket}"
    return [
        {
            "Effect": "Allow",
            "Action": ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
            "Resource": [f"{arn}/{prefix}/*" for prefix in prefixes],
        },
        {"Effect": "Allow", "Action": ["s3:ListBucketMultipartUploads"], "Resource": arn},
    ]


def put_objects(bucket: str, prefixes: Sequence[str], *, partition: str) -> list[Statement]:
    """Put whole objects below `prefixes`, and nothing else: no right to delete one, or to see unfinished uploads."""
    arn = f"arn:{partition}:s3:::{bucket}"
    return [{"Effect": "Allow", "Action": ["s3:PutObject"], "Resource": [f"{arn}/{prefix}/*" for prefix in prefixes]}]


def use_key(key_arn: str, *, write: bool, region: str) -> list[Statement]:
    """Use a bucket's KMS key through S3 only; a multipart upload needs both actions."""
    return [
        {
            "Effect": "Allow",
            "Action": ["kms:Decrypt", "kms:GenerateDataKey"] if write else ["kms:Decrypt"],
            "Resource": key_arn,
            "Condition": {"StringEquals": {"kms:ViaService": f"s3.{region}.amazonaws.com"}},
        }
    ]


def sign_manifests(key_arn: str) -> list[Statement]:
    """Sign with a key, and read its public half to tell whether an earlier manifest was signed with it."""
    return [{"Effect": "Allow", "Action": ["kms:GetPublicKey", "kms:Sign"], "Resource": key_arn}]


def sign_with_own_key(key_arn: str) -> list[Statement]:
    """Sign with the key that the stack made, whose public half its pods have."""
    return [{"Effect": "Allow", "Action": ["kms:Sign"], "Resource": key_arn}]


def read_existing(locations: Sequence[str], *, partition: str) -> list[Statement]:
    """Read the existing buckets that models name themselves, as `bucket/prefix` or `bucket`."""
    by_bucket: dict[str, list[str]] = {}
    for location in sorted(locations):
        bucket, _, prefix = location.partition("/")
        by_bucket.setdefault(bucket, []).append(prefix.strip("/"))
    return [
        statement
        for bucket, prefixes in by_bucket.items()
        for some in _in_groups(prefixes, PREFIXES_PER_STATEMENT)
        for statement in read_objects(bucket, some, partition=partition)
    ]


def _in_groups(items: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    return (items[start : start + count] for start in range(0, len(items), count))


def cluster_autoscaler(*, cluster_name: str, partition: str, region: str, account: str) -> list[Statement]:
    """What cluster-autoscaler needs: describe everything, change only this cluster's Auto Scaling groups.

    EKS itself puts the tag `eks:cluster-name` on a managed node group's Auto Scaling group.
    https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/cloudprovider/aws/README.md
    """
    return [
        {"Effect": "Allow", "Action": sorted(LOOKS_OF_AUTOSCALER), "Resource": "*"},
        {
            "Effect": "Allow",
            "Action": ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"],
            "Resource": f"arn:{partition}:autoscaling:{region}:{account}:autoScalingGroup:*:autoScalingGroupName/eks-*",
            "Condition": {"StringEquals": {"aws:ResourceTag/eks:cluster-name": cluster_name}},
        },
        {
            "Effect": "Allow",
            "Action": ["eks:DescribeNodegroup"],
            "Resource": f"arn:{partition}:eks:{region}:{account}:nodegroup/{cluster_name}/*/*",
        },
    ]


def build_trust(*, project_arn: str, account: str) -> Document:
    """Trust of CodeBuild for one project: no other project, of whatever account, can make it use the role.

    https://docs.aws.amazon.com/codebuild/latest/userguide/cross-service-confused-deputy-prevention.html
    """
    trust = service_trust("codebuild.amazonaws.com")
    condition = {"StringEquals": {"aws:SourceAccount": account, "aws:SourceArn": project_arn}}
    return document([{**trust["Statement"][0], "Condition": condition}])


def build_image(
    *, bucket_arn: str, key: str, repository_arns: Sequence[str], log_group_arn: str, base_arns: Sequence[str] = ()
) -> list[Statement]:
    """What a build does: read its source, write its log, push to its repositories, pull bases that are in ECR too.

    CodeBuild looks at the bucket, and asks for the version of an object in a versioned one.
    https://docs.aws.amazon.com/codebuild/latest/userguide/setting-up-service-role.html
    """
    return [
        {"Effect": "Allow", "Action": ["s3:GetObject", "s3:GetObjectVersion"], "Resource": f"{bucket_arn}/{key}"},
        {"Effect": "Allow", "Action": ["s3:GetBucketAcl", "s3:GetBucketLocation"], "Resource": bucket_arn},
        {
            "Effect": "Allow",
            "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
            "Resource": [log_group_arn, f"{log_group_arn}:*"],
        },
        {"Effect": "Allow", "Action": [*PUSH], "Resource": [*repository_arns]},
        {"Effect": "Allow", "Action": sorted(TOKEN_OF_REGISTRY), "Resource": "*"},
        *([{"Effect": "Allow", "Action": [*PULL], "Resource": [*base_arns]}] if base_arns else []),
    ]


def write_logs(log_group: str, *, partition: str, region: str, account: str) -> list[Statement]:
    """Begin log streams of a log group and write to them; neither make the group nor read it.

    Both calls are all that Fluent Bit's `cloudwatch_logs` makes for a group that is there.
    https://docs.fluentbit.io/manual/pipeline/outputs/cloudwatch#permissions
    """
    arn = f"arn:{partition}:logs:{region}:{account}:log-group:{log_group}"
    return [
        {
            "Effect": "Allow",
            "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
            "Resource": [arn, f"{arn}:log-stream:*"],
        }
    ]


def target_registration(*, stack: str, partition: str, region: str, account: str) -> list[Statement]:
    """What the AWS Load Balancer Controller needs for a target group that exists: the targets of this stack's alone.

    Of its own iam_policy.json only what a TargetGroupBinding without `networking` takes (pkg/targetgroupbinding,
    pkg/networking of v3.5.0): it makes, changes and deletes no load balancer, group or rule.
    """
    return [
        {"Effect": "Allow", "Action": sorted(LOOKS_OF_LOAD_BALANCING), "Resource": "*"},
        {
            "Effect": "Allow",
            "Action": ["elasticloadbalancing:DeregisterTargets", "elasticloadbalancing:RegisterTargets"],
            "Resource": f"arn:{partition}:elasticloadbalancing:{region}:{account}:targetgroup/*/*",
            "Condition": {"StringEquals": {f"aws:ResourceTag/{STACK_LABEL}": stack}},
        },
    ]


def tls_only(bucket: str, *, partition: str) -> Document:
    """A bucket policy that refuses every request without TLS."""
    arn = f"arn:{partition}:s3:::{bucket}"
    return document(
        [
            {
                "Sid": "TlsOnly",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [arn, f"{arn}/*"],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            }
        ]
    )


def alerts_topic(topic_arn: str, *, workspace_arn: str, account: str) -> Document:
    """Policy of a topic to which one workspace of Amazon Managed Service for Prometheus sends, and nobody else's.

    https://docs.aws.amazon.com/prometheus/latest/userguide/AMP-alertmanager-receiver-AMPpermission.html. It takes the
    place of the policy by which the account owns its topic, whose callers IAM's policies allow as well.
    """
    return document(
        [
            {
                "Sid": "AlertsOfTheWorkspace",
                "Effect": "Allow",
                "Principal": {"Service": "aps.amazonaws.com"},
                "Action": ["sns:Publish", "sns:GetTopicAttributes"],
                "Resource": topic_arn,
                "Condition": {
                    "ArnEquals": {"aws:SourceArn": workspace_arn},
                    "StringEquals": {"aws:SourceAccount": account},
                },
            }
        ]
    )


def cluster_key(*, partition: str, region: str, account: str, log_groups: Sequence[str]) -> Document:
    """Policy of the cluster's key: the account's IAM decides, and CloudWatch Logs may use it for these log groups."""
    logs = [f"arn:{partition}:logs:{region}:{account}:log-group:{name}" for name in log_groups]
    return document(
        [
            _key_owner(partition, account),
            {
                "Sid": "Logs",
                "Effect": "Allow",
                "Principal": {"Service": f"logs.{region}.amazonaws.com"},
                "Action": [*LOGS_KEY_ACTIONS],
                "Resource": "*",
                "Condition": {"ArnEquals": {"kms:EncryptionContext:aws:logs:arn": logs}},
            },
        ]
    )


def account_key(*, partition: str, account: str) -> Document:
    """Policy of a key whose use the account's IAM policies decide."""
    return document([_key_owner(partition, account)])


def signing_key(*, partition: str, account: str, names: str) -> Document:
    """Policy of the key that a stack makes to sign manifests with: only its mirror Jobs' role signs.

    The roles of the stack begin with `names`. Its policies alone would leave the use to everybody in the account whose
    own say `kms:*`. Who may change this policy, or make a role of that name, still decides who signs.
    """
    role = f"arn:{partition}:iam::{account}:role/{names}-{WRITER}-*"
    return document(
        [
            _key_owner(partition, account),
            {
                "Sid": "OnlyMirrorJobsSign",
                "Effect": "Deny",
                "Principal": {"AWS": "*"},
                "Action": "kms:Sign",
                "Resource": "*",
                # Of a role's session it is the role's ARN.
                # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html
                "Condition": {"ArnNotLike": {"aws:PrincipalArn": role}},
            },
        ]
    )


def _key_owner(partition: str, account: str) -> Statement:
    # `kms:*` for the account's root is AWS's default key policy: without it a key can become unmanageable.
    # It grants nothing on its own; IAM policies do. In a key policy `*` means this key.
    # https://docs.aws.amazon.com/kms/latest/developerguide/key-policy-default.html
    root = {"AWS": f"arn:{partition}:iam::{account}:root"}
    return {"Sid": "Account", "Effect": "Allow", "Principal": root, "Action": "kms:*", "Resource": "*"}


def split(statements: Sequence[Statement], limit: int = MANAGED_POLICY_CHARACTERS) -> list[Document]:
    """Statements as documents that each fit a managed policy; a long list of resources stays in one statement."""
    documents: list[list[Statement]] = [[]]
    for statement in statements:
        if documents[-1] and size(document([*documents[-1], statement])) > limit:
            documents.append([])
        documents[-1].append(statement)
    return [document(group) for group in documents if group]


def numbered(name: str, statements: Sequence[Statement]) -> dict[str, Document]:
    """The documents of `split` by name: `access`, `access-2`, …"""
    return {name if index == 0 else f"{name}-{index + 1}": one for index, one in enumerate(split(statements))}


def size(policy: Document) -> int:
    """Characters of a policy as IAM counts them (no whitespace)."""
    return len(json.dumps(policy, separators=(",", ":")))


def as_json(policy: Document) -> str:
    """A policy as text."""
    return json.dumps(policy)
