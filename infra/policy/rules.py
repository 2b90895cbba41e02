"""The rules as pure functions: a type and its properties in, sentences out. `__main__.py` passes them to Pulumi."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelfleet.infra.names import POOL_LABEL, STACK_LABEL

Props = Mapping[str, Any]

NODE_GROUP, LAUNCH_TEMPLATE = "aws:eks/nodeGroup:NodeGroup", "aws:ec2/launchTemplate:LaunchTemplate"
#: Types whose `tags` must name the stack. Others have no tags, or have them in another form.
TAGGED = (
    "aws:amp/scraper:Scraper",
    "aws:amp/workspace:Workspace",
    "aws:cloudwatch/logGroup:LogGroup",
    "aws:ec2/eip:Eip",
    LAUNCH_TEMPLATE,
    "aws:ec2/natGateway:NatGateway",
    "aws:ec2/subnet:Subnet",
    "aws:ec2/vpc:Vpc",
    "aws:eks/cluster:Cluster",
    NODE_GROUP,
    "aws:elasticache/replicationGroup:ReplicationGroup",
    "aws:iam/role:Role",
    "aws:kms/key:Key",
    "aws:lb/loadBalancer:LoadBalancer",
    "aws:lb/targetGroup:TargetGroup",
    "aws:s3/bucket:Bucket",
    "aws:sns/topic:Topic",
)
ANYWHERE = ("0.0.0.0/0", "::/0")
#: Only a load balancer's ports may be open to everybody.
OPEN_PORTS = (80, 443)
PUBLIC_ACLS = ("public-read", "public-read-write", "authenticated-read")
ACCESS_BLOCK = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")


@dataclass(frozen=True)
class Limits:
    """What a platform team allows. Empty lists allow everything; `max_usd_per_hour` None is no limit."""

    regions: Sequence[str] = ()
    instance_types: Sequence[str] = ()
    max_usd_per_hour: float | None = None
    prices: Mapping[str, float] = field(default_factory=dict)
    """On-demand USD per hour by instance type."""


def no_public_bucket(kind: str, props: Props) -> Iterator[str]:
    """A bucket or its policy opens objects to everybody."""
    if kind.startswith("aws:s3/bucketPublicAccessBlock"):
        if lacking := [key for key in ACCESS_BLOCK if props.get(key) is not True]:
            yield f"the public access block leaves {', '.join(lacking)} off"
    elif kind.startswith("aws:s3/bucketAcl") or kind == "aws:s3/bucket:Bucket":
        if props.get("acl") in PUBLIC_ACLS:
            yield f"the ACL is '{props['acl']}'"
    elif kind.startswith("aws:s3/bucketPolicy"):
        for statement in _statements(props.get("policy")):
            public = statement.get("Principal") in ("*", {"AWS": "*"})
            if statement.get("Effect") == "Allow" and public and not statement.get("Condition"):
                yield "the bucket policy allows everybody"


def no_unencrypted_volume(kind: str, props: Props) -> Iterator[str]:
    """A volume, or a bucket's setting, without encryption."""
    if kind == LAUNCH_TEMPLATE:
        devices = props.get("blockDeviceMappings") or []
        if not devices:
            yield "names no volume, and the account's default may be unencrypted"
        for device in devices:
            if (device.get("ebs") or {}).get("encrypted") not in (True, "true"):
                yield f"volume {device.get('deviceName')} is not encrypted"
    elif kind == "aws:ebs/volume:Volume" and props.get("encrypted") is not True:
        yield "the volume is not encrypted"
    elif kind == "aws:eks/cluster:Cluster" and not props.get("encryptionConfig"):
        yield "Kubernetes secrets are not encrypted with your own KMS key"


def no_open_endpoint(kind: str, props: Props) -> Iterator[str]:
    """An endpoint or a port that the whole internet reaches."""
    if kind == "aws:eks/cluster:Cluster":
        vpc = props.get("vpcConfig") or {}
        cidrs = vpc.get("publicAccessCidrs")
        if vpc.get("endpointPublicAccess") is not False and (not cidrs or set(cidrs) & set(ANYWHERE)):
            yield "the cluster's endpoint is open to the internet"
    elif kind == "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule":
        if {props.get("cidrIpv4"), props.get("cidrIpv6")} & set(ANYWHERE) and not _web_only(props):
            yield f"port {props.get('fromPort', 'any')} is open to the internet"
    elif kind == "aws:ec2/securityGroup:SecurityGroup":
        for rule in props.get("ingress") or []:
            cidrs = {*(rule.get("cidrBlocks") or []), *(rule.get("ipv6CidrBlocks") or [])}
            if cidrs & set(ANYWHERE) and not _web_only(rule):
                yield f"port {rule.get('fromPort', 'any')} is open to the internet"


def imdsv2_only(kind: str, props: Props) -> Iterator[str]:
    """An instance whose metadata answers without a token, or to pods."""
    if kind in (LAUNCH_TEMPLATE, "aws:ec2/instance:Instance"):
        options = props.get("metadataOptions") or {}
        if options.get("httpTokens") != "required":
            yield "instance metadata answers without a token (IMDSv1)"
        if (options.get("httpPutResponseHopLimit") or 1) > 1:
            yield "instance metadata answers pods (hop limit above 1)"


def policies_enforced(kind: str, props: Props) -> Iterator[str]:
    """EKS's network add-on without its agent for NetworkPolicies, which then hold nobody back."""
    if kind == "aws:eks/addon:Addon" and props.get("addonName") == "vpc-cni":
        values = props.get("configurationValues")
        try:
            found = json.loads(values or "{}").get("enableNetworkPolicy")
        except (TypeError, ValueError, AttributeError):
            return  # unknown at preview, or text that EKS will refuse
        if str(found).lower() != "true":
            yield "enforces no NetworkPolicies (enableNetworkPolicy)"


def tagged(kind: str, props: Props) -> Iterator[str]:
    """A resource that costs money and does not name its stack."""
    if kind in TAGGED and not (props.get("tags") or {}).get(STACK_LABEL):
        yield f"has no tag {STACK_LABEL}"


def allowed_region(kind: str, props: Props, limits: Limits) -> Iterator[str]:
    """A resource, or the provider itself, in a region that is not allowed."""
    region = props.get("region")
    if limits.regions and region and region not in limits.regions:
        yield f"is in region {region}; allowed are {', '.join(limits.regions)}"


def allowed_instance_types(kind: str, props: Props, limits: Limits) -> Iterator[str]:
    """A node group or a launch template (a Capacity Block's names the type) of a type that is not allowed."""
    wrong = [name for name in instance_types(props) if name not in limits.instance_types]
    if kind in (NODE_GROUP, LAUNCH_TEMPLATE) and limits.instance_types and wrong:
        yield f"uses {', '.join(wrong)}; allowed are {', '.join(limits.instance_types)}"


def instance_types(props: Props) -> list[str]:
    """The instance types that a node group or a launch template names itself."""
    return list(props.get("instanceTypes") or filter(None, [props.get("instanceType")]))


def within_budget(groups: Sequence[tuple[Props, Props]], limits: Limits) -> Iterator[str]:
    """All pools together, at their largest size and on-demand prices, cost more than the limit.

    Each group comes with its launch template (`{}` when it has none), which may name the instance type instead. A pool
    has a group in each zone, and each may hold all of the pool's nodes; a group without a pool's tag is on its own.
    """
    if limits.max_usd_per_hour is None:
        return
    pools: dict[str, float] = {}
    for index, (group, template) in enumerate(groups):
        types = instance_types(group) or instance_types(template)
        price = max((limits.prices.get(name, 0.0) for name in types), default=0.0)
        if not types:
            yield "a node group names no instance type, so the budget cannot be checked; name it"
        elif not price:
            yield f"no price is known for {', '.join(types)}, so the budget cannot be checked; add it to `prices`"
        most = price * float((group.get("scalingConfig") or {}).get("maxSize", 0))
        pool = (group.get("tags") or {}).get(POOL_LABEL) or f"#{index}"
        pools[pool] = max(most, pools.get(pool, 0.0))
    if (total := sum(pools.values())) > limits.max_usd_per_hour:
        yield f"node groups cost up to {total:.2f} USD per hour; allowed are {limits.max_usd_per_hour:.2f}"


#: Rules on one resource, by the policy's name.
RULES = {
    "no-public-bucket": no_public_bucket,
    "no-unencrypted-volume": no_unencrypted_volume,
    "no-open-endpoint": no_open_endpoint,
    "imdsv2-only": imdsv2_only,
    "policies-enforced": policies_enforced,
    "tagged": tagged,
}
#: Rules on one resource that also use the limits.
LIMITED = {"allowed-region": allowed_region, "allowed-instance-types": allowed_instance_types}


def _statements(policy: Any) -> list[Any]:
    if not isinstance(policy, str):
        return []
    try:
        found = json.loads(policy).get("Statement", [])
    except (ValueError, AttributeError):
        return []  # unknown at preview, or text that AWS will refuse
    return [found] if isinstance(found, dict) else list(found)


def _web_only(rule: Props) -> bool:
    return rule.get("fromPort") == rule.get("toPort") and rule.get("fromPort") in OPEN_PORTS
