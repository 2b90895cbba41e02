"""The policy of whoever runs `pulumi up` for an EKS stack: reads by service, every change by name.

The official provider reads more of a resource than a stack sets (all settings of a bucket, for example), and more
with each version. So reads are patterns. Changes are named one by one; `tests/engine/test_aws_operator.py` makes,
changes and deletes a fleet with nothing but this policy, on an emulated AWS that enforces it.
https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
"""

from __future__ import annotations

from collections.abc import Sequence

from modelfleet.infra.aws.names import store_id
from modelfleet.infra.aws.policies import Statement
from modelfleet.infra.aws.site import Site, image_log_group, image_project
from modelfleet.infra.names import STACK_LABEL, USAGE
from modelfleet.infra.planning.plan import BucketPlan, ImagePlan
from modelfleet.serving.mirror.manifest import PROVED

#: What only looks. AWS has no resource for most list actions. None of them reads an object of a bucket or a secret.
READS = (
    "autoscaling:Describe*",
    # `modelfleet usage --compare-aws`; Cost Explorer has no resource for it.
    "ce:GetCostAndUsage",
    "ec2:Describe*",
    "ecr:DescribeImages",
    "ecr:DescribeRepositories",
    "eks:Describe*",
    "eks:List*",
    "elasticache:Describe*",
    "elasticache:ListTagsForResource",
    "iam:GetPolicy",
    "iam:GetPolicyVersion",
    "iam:GetRole",
    "iam:ListAttachedRolePolicies",
    "iam:ListInstanceProfilesForRole",
    "iam:ListPolicyVersions",
    "iam:ListRolePolicies",
    "kms:DescribeKey",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListAliases",
    "kms:ListResourceTags",
    "logs:DescribeLogGroups",
    "logs:ListTagsForResource",
    "pricing:GetProducts",
    "servicequotas:GetAWSDefaultServiceQuota",
    "servicequotas:GetServiceQuota",
    "tag:GetResources",
)
#: Ids of EC2 are not known before they exist, so these are limited to the stack's region.
EC2_CHANGES = (
    "AllocateAddress",
    "AssociateRouteTable",
    "AttachInternetGateway",
    "AuthorizeSecurityGroupEgress",
    "AuthorizeSecurityGroupIngress",
    "CreateInternetGateway",
    "CreateLaunchTemplate",
    "CreateLaunchTemplateVersion",
    "CreateNatGateway",
    "CreateRoute",
    "CreateRouteTable",
    "CreateSecurityGroup",
    "CreateSubnet",
    "CreateTags",
    "CreateVpc",
    "CreateVpcEndpoint",
    "DeleteInternetGateway",
    "DeleteLaunchTemplate",
    "DeleteNatGateway",
    "DeleteRoute",
    "DeleteRouteTable",
    "DeleteSecurityGroup",
    "DeleteSubnet",
    "DeleteTags",
    "DeleteVpc",
    "DeleteVpcEndpoints",
    "DetachInternetGateway",
    "DisassociateAddress",
    "DisassociateRouteTable",
    "ModifyLaunchTemplate",
    "ModifySubnetAttribute",
    "ModifyVpcAttribute",
    "ModifyVpcEndpoint",
    "ReleaseAddress",
    "ReplaceRoute",
    "RevokeSecurityGroupEgress",
    "RevokeSecurityGroupIngress",
    # EKS starts the nodes of a group with a launch template only for who may do it.
    # https://docs.aws.amazon.com/eks/latest/userguide/launch-templates.html
    "RunInstances",
)
EKS_CHANGES = (
    "AssociateAccessPolicy",
    "CreateAccessEntry",
    "CreateAddon",
    "CreateNodegroup",
    "CreatePodIdentityAssociation",
    "DeleteAccessEntry",
    "DeleteAddon",
    "DeleteCluster",
    "DeleteNodegroup",
    "DeletePodIdentityAssociation",
    "DisassociateAccessPolicy",
    "TagResource",
    "UntagResource",
    "UpdateAccessEntry",
    "UpdateAddon",
    "UpdateClusterConfig",
    "UpdateClusterVersion",
    "UpdateNodegroupConfig",
    "UpdateNodegroupVersion",
    "UpdatePodIdentityAssociation",
)
ROLE_CHANGES = (
    "AttachRolePolicy",
    "CreateRole",
    "DeleteRole",
    "DetachRolePolicy",
    "PassRole",
    "TagRole",
    "UntagRole",
    "UpdateAssumeRolePolicy",
)
POLICY_CHANGES = (
    "CreatePolicy",
    "CreatePolicyVersion",
    "DeletePolicy",
    "DeletePolicyVersion",
    "TagPolicy",
    "UntagPolicy",
)
KEY_CHANGES = (
    "CreateAlias",
    "CreateKey",
    "DeleteAlias",
    "DisableKeyRotation",
    "EnableKeyRotation",
    "PutKeyPolicy",
    "ScheduleKeyDeletion",
    "TagResource",
    "UntagResource",
    "UpdateAlias",
    "UpdateKeyDescription",
    # The code object is read back and written; EKS and CloudWatch Logs get the key by grant.
    "CreateGrant",
    "Decrypt",
    "GenerateDataKey",
)
LOG_CHANGES = (
    "AssociateKmsKey",
    "CreateLogGroup",
    "DeleteLogGroup",
    "PutRetentionPolicy",
    "TagResource",
    "UntagResource",
)
BUCKET_CHANGES = (
    "CreateBucket",
    "DeleteBucket",
    "DeleteBucketPolicy",
    "PutBucketOwnershipControls",
    "PutBucketPolicy",
    "PutBucketPublicAccessBlock",
    "PutBucketTagging",
    "PutBucketVersioning",
    "PutEncryptionConfiguration",
    "PutLifecycleConfiguration",
)
#: Of the store of the Ray head's state.
STORE_CHANGES = (
    "AddTagsToResource",
    "CreateCacheSubnetGroup",
    "CreateReplicationGroup",
    "DecreaseReplicaCount",
    "DeleteCacheSubnetGroup",
    "DeleteReplicationGroup",
    "IncreaseReplicaCount",
    "ModifyCacheSubnetGroup",
    "ModifyReplicationGroup",
    "RemoveTagsFromResource",
)
#: Of the repository and the project of a stack that makes its image.
REPOSITORY_CHANGES = (
    "CreateRepository",
    "DeleteLifecyclePolicy",
    "DeleteRepository",
    "GetLifecyclePolicy",
    "ListTagsForResource",
    "PutImageScanningConfiguration",
    "PutImageTagMutability",
    "PutLifecyclePolicy",
    "TagResource",
    "UntagResource",
)
PROJECT_CHANGES = (
    "BatchGetBuilds",
    "BatchGetProjects",
    "CreateProject",
    "DeleteProject",
    "ListBuildsForProject",
    "StartBuild",
    "UpdateProject",
)
#: What a stack with a front door needs beside.
BALANCER_CHANGES = (
    "AddTags",
    "CreateListener",
    "CreateLoadBalancer",
    "CreateTargetGroup",
    "DeleteListener",
    "ModifyListenerAttributes",
    "DeleteLoadBalancer",
    "DeleteTargetGroup",
    "ModifyListener",
    "ModifyLoadBalancerAttributes",
    "ModifyTargetGroup",
    "ModifyTargetGroupAttributes",
    "RemoveTags",
    "SetSecurityGroups",
    "SetSubnets",
)
CERTIFICATE_CHANGES = (
    "AddTagsToCertificate",
    "DeleteCertificate",
    "RemoveTagsFromCertificate",
)
FRONT_DOOR_READS = (
    "acm:DescribeCertificate",
    "acm:GetCertificate",
    "acm:ListTagsForCertificate",
    "elasticloadbalancing:Describe*",
    "route53:GetChange",
    "route53:GetHostedZone",
    "route53:ListHostedZones",
    "route53:ListHostedZonesByName",
    "route53:ListResourceRecordSets",
    "route53:ListTagsForResource",
)
#: Of Amazon Managed Service for Prometheus: what makes a workspace's parts and names their stack, and what needs the
#: stack's tag on what is there.
PROMETHEUS_CREATIONS = (
    "CreateRuleGroupsNamespace",
    "CreateScraper",
    "TagResource",
)
PROMETHEUS_CHANGES = (
    "CreateAlertManagerDefinition",
    "DeleteAlertManagerDefinition",
    "DeleteRuleGroupsNamespace",
    "DeleteScraper",
    "DeleteWorkspace",
    "PutAlertManagerDefinition",
    "PutRuleGroupsNamespace",
    "TagResource",
    "UntagResource",
    "UpdateScraper",
)
#: A pattern: with a workspace the official provider reads its logging configuration, which the stack never sets
#: (terraform-provider-aws internal/service/amp/workspace.go, resourceWorkspaceRead).
PROMETHEUS_READS = ("aps:Describe*", "aps:ListTagsForResource")
#: Of the topic of its alerts.
TOPIC_CHANGES = (
    "CreateTopic",
    "DeleteTopic",
    "GetSubscriptionAttributes",
    "GetTopicAttributes",
    "ListTagsForResource",
    "SetTopicAttributes",
    "Subscribe",
    "TagResource",
    "Unsubscribe",
    "UntagResource",
)
OBJECT_CHANGES = (
    "AbortMultipartUpload",
    "DeleteObject",
    "DeleteObjectVersion",
    "PutObject",
    "PutObjectTagging",
)


def operator(
    site: Site,
    *,
    bucket: BucketPlan,
    images: Sequence[ImagePlan],
    names: str,
    endpoints: bool,
    store: bool = False,
    front_door: bool = False,
    web_acl: str | None = None,
    signs: bool = False,
    amp: bool = False,
) -> list[Statement]:
    """What `pulumi up`, `refresh` and `down` of a stack need. Roles and policies begin with `names`.

    With `endpoints` the network has interface endpoints. `store`: the stack makes one for the Ray head's state.
    `web_acl` judges what comes to its load balancer; the run that takes it away, or puts another there, reads it too.
    `signs`: the stack makes the key of manifests. `amp`: it makes a workspace for metrics, and the topic of its alerts.

    A bucket that the stack only uses is read and gets the code, and the images' source.
    Whoever may make roles and pass them can give a role any right that this policy's holder does not have: add a
    permissions boundary where that matters.
    """
    partition, region, account = site.partition, site.region, site.account
    here = {"Condition": {"StringEquals": {"aws:RequestedRegion": region}}}
    eks = f"arn:{partition}:eks:{region}:{account}:"
    kinds = ("nodegroup", "addon", "access-entry", "podidentityassociation")
    autoscaling = f"arn:{partition}:autoscaling:{region}:{account}:autoScalingGroup:*:autoScalingGroupName/eks-*"
    services = f"arn:{partition}:iam::{account}:role/aws-service-role/*"
    logs = f"arn:{partition}:logs:{region}:{account}:log-group:"
    # An interface endpoint's private DNS name is a zone of AWS's own, so its id is not known: CreateVpcEndpoint depends
    # on this action. https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html
    zones = [f"arn:{partition}:route53:::hostedzone/*", f"arn:{partition}:ec2:{region}:{account}:vpc/*"]
    return [
        _allow("*", READS),
        _allow("*", _of("ec2", EC2_CHANGES)) | here,
        *([_allow(zones, ["route53:AssociateVPCWithHostedZone"])] if endpoints else ()),
        _allow("*", _of("kms", KEY_CHANGES)) | here,
        # Replicas get the public half.
        *([_allow(f"arn:{partition}:kms:{region}:{account}:key/*", ["kms:GetPublicKey"])] if signs else ()),
        # It has no resource type in the Service Authorization Reference: by a cluster's ARN it would be refused.
        _allow("*", ["eks:CreateCluster"]) | here,
        _allow([site.cluster_arn, *(f"{eks}{kind}/{site.cluster_name}/*" for kind in kinds)], _of("eks", EKS_CHANGES)),
        _allow(f"arn:{partition}:iam::{account}:role/{names}-*", _of("iam", ROLE_CHANGES)),
        _allow(f"arn:{partition}:iam::{account}:policy/{names}-*", _of("iam", POLICY_CHANGES)),
        # Made by AWS on the first use of EKS, node groups, Auto Scaling and spot in an account.
        _allow(services, ["iam:CreateServiceLinkedRole"]),
        # Whoever takes the collector away deletes the second.
        _allow([f"{logs}{name}*" for name in site.log_groups], _of("logs", LOG_CHANGES)),
        _allow(autoscaling, ["autoscaling:CreateOrUpdateTags", "autoscaling:DeleteTags"]),
        *([_store(site)] if store else []),
        *(_prometheus(site, names) if amp else ()),
        *(_bucket(f"arn:{partition}:s3:::{bucket.name}", makes=bucket.create) if bucket.name else ()),
        *(_images(site, images) if images else ()),
        # A certificate that is asked for has no ARN yet (Service Authorization Reference, AWS Certificate Manager).
        *([_allow("*", ["acm:RequestCertificate"]) | here] if front_door else ()),
        *(_front_door(f"{region}:{account}", partition) if front_door else ()),
        *(_firewall(site, web_acl) if front_door else ()),
    ]


def _images(site: Site, images: Sequence[ImagePlan]) -> list[Statement]:
    """The tail of the log is read while a build runs."""
    here = f"{site.region}:{site.account}"
    logs = f"arn:{site.partition}:logs:{here}:log-group:{image_log_group(site.cluster_name)}"
    return [
        _allow(
            [f"arn:{site.partition}:ecr:{here}:repository/{image.repository}" for image in images],
            _of("ecr", REPOSITORY_CHANGES),
        ),
        _allow(
            f"arn:{site.partition}:codebuild:{here}:project/{image_project(site.cluster_name)}",
            _of("codebuild", PROJECT_CHANGES),
        ),
        _allow([logs, f"{logs}:*"], [*_of("logs", LOG_CHANGES), "logs:GetLogEvents"]),
    ]


def _front_door(place: str, partition: str) -> list[Statement]:
    """Load balancer, certificate, records. The zone's id is not known before it is read."""
    kinds = ("loadbalancer/app", "targetgroup", "listener/app")
    balancing = [f"arn:{partition}:elasticloadbalancing:{place}:{kind}/*" for kind in kinds]
    certificates = f"arn:{partition}:acm:{place}:certificate/*"
    return [
        _allow("*", FRONT_DOOR_READS),
        _allow(balancing, _of("elasticloadbalancing", BALANCER_CHANGES)),
        _allow(certificates, _of("acm", CERTIFICATE_CHANGES)),
        _allow(f"arn:{partition}:route53:::hostedzone/*", ["route53:ChangeResourceRecordSets"]),
    ]


def _firewall(site: Site, web_acl: str | None) -> list[Statement]:
    """Any front door may have had a web ACL: who takes it away looks at it, and dissociates naming the load balancer.

    Associating asks for a right on each side, and looking for one to read the web ACL that is found.
    https://docs.aws.amazon.com/waf/latest/developerguide/security_iam_service-with-iam.html. The load balancer's side
    is asked without a resource in the list of actions that parliament 1.6.4 has (`SetWebAcl`).
    """
    here = {"Condition": {"StringEquals": {"aws:RequestedRegion": site.region}}}
    place = f"{site.region}:{site.account}"
    balancers = f"arn:{site.partition}:elasticloadbalancing:{place}:loadbalancer/app/*/*"
    rest = ["elasticloadbalancing:SetWebACL", "wafv2:DisassociateWebACL", "wafv2:GetWebACLForResource"]
    # Whose account a web ACL is in is its owner's choice: Firewall Manager shares them.
    reads = _allow(f"arn:{site.partition}:wafv2:{site.region}:*:regional/webacl/*", ["wafv2:GetWebACL"])
    return [
        reads,
        _allow("*", rest) | here,
        *([_allow([web_acl, balancers], ["wafv2:AssociateWebACL"])] if web_acl else ()),
    ]


def _store(site: Site) -> dict[str, object]:
    """Creating a replication group is judged by the ARNs of its subnet group, parameter group and nodes too.

    https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonelasticache.html
    """
    here = f"arn:{site.partition}:elasticache:{site.region}:{site.account}"
    own = [f"{here}:{kind}:{store_id(site.stack)}" for kind in ("subnetgroup", "replicationgroup")]
    nodes = f"{here}:cluster:{store_id(site.stack)}-*"
    return _allow([*own, nodes, f"{here}:parametergroup:default.*"], _of("elasticache", STORE_CHANGES))


def _prometheus(site: Site, names: str) -> list[Statement]:
    """Ids of a workspace and its scraper are AWS's own, so tags say whose they are.

    AWS makes the scraper's access entry with the rights of who makes the scraper, which the cluster's statement has,
    and a role for each scraper, which goes with it. The permissions are those of CloudFormation's AWS::APS::Scraper and
    https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonmanagedserviceforprometheus.html
    """
    place = f"{site.region}:{site.account}"
    aps = [f"arn:{site.partition}:aps:{place}:{one}/*" for one in ("workspace", "rulegroupsnamespace", "scraper")]
    role = "aws-service-role/scraper.aps.amazonaws.com/AWSServiceRoleForAmazonPrometheusScraper*"
    here = {"aws:RequestedRegion": site.region}
    new, own = ({f"aws:{which}Tag/{STACK_LABEL}": site.stack} for which in ("Request", "Resource"))
    return [
        _allow("*", PROMETHEUS_READS),
        _allow("*", ["aps:CreateWorkspace"]) | {"Condition": {"StringEquals": {**here, **new}}},
        # What has another stack's tag takes neither this stack's nor its scraper. What has none yet takes both: IAM
        # cannot tell a tag at creation from a later one.
        _allow([*aps, site.cluster_arn], _of("aps", PROMETHEUS_CREATIONS))
        | {"Condition": {"StringEquals": new, "StringEqualsIfExists": own}},
        _allow(aps, _of("aps", PROMETHEUS_CHANGES)) | {"Condition": {"StringEquals": own}},
        _allow(f"arn:{site.partition}:iam::{site.account}:role/{role}", ["iam:DeleteServiceLinkedRole"]),
        _allow(f"arn:{site.partition}:sns:{place}:{names}-*", _of("sns", TOPIC_CHANGES)),
    ]


def _bucket(arn: str, *, makes: bool) -> list[Statement]:
    if not makes:
        return [
            _allow(arn, ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketVersions"]),
            # `modelfleet up` keeps what it proved. There is no mirror whose manifests `rollback` would bring back.
            _allow(
                [f"{arn}/{below}/*" for below in ("code", "image", PROVED)],
                [*_of("s3", OBJECT_CHANGES), "s3:GetObject*"],
            ),
            _allow(f"{arn}/{USAGE}/*", ["s3:GetObject"]),
        ]
    return [
        _allow(arn, [*_of("s3", BUCKET_CHANGES), "s3:Get*", "s3:List*"]),
        _allow(f"{arn}/*", [*_of("s3", OBJECT_CHANGES), "s3:GetObject*"]),
    ]


def _of(service: str, operations: tuple[str, ...]) -> list[str]:
    return [f"{service}:{operation}" for operation in operations]


def _allow(resource: str | list[str], actions: list[str] | tuple[str, ...]) -> dict[str, object]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": resource}
