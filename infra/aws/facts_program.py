"""Reads `AccountFacts` inside a Pulumi program, through the provider that will make the resources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws.facts import (
    ADDRESSES,
    CLUSTER,
    IMAGE,
    LIVE_SIZES,
    LOG_GROUP,
    NO_CONTROL_PLANE_ZONE_IDS,
    VPC_DNS,
    ZONE,
    AccountFacts,
    ClusterFact,
    SubnetFact,
    not_queried,
    why,
    zones_by_type,
)
from modelfleet.infra.aws.here import has_aws_command, why_unreachable
from modelfleet.infra.aws.preflight import instance_types, quota_codes, quota_service
from modelfleet.infra.aws.registry import ecr_image
from modelfleet.infra.aws.site import cluster_name, log_group
from modelfleet.infra.names import POOL_LABEL, STACK_LABEL, SYSTEM_POOL
from modelfleet.infra.planning.plan import Plan
from modelfleet.infra.planning.system_roll import SystemNodes

#: What the provider says of an image, a tag or a repository that does not exist
#: (terraform-provider-aws internal/service/ecr/image_data_source.go).
NO_IMAGE = ("ImageNotFoundException", "RepositoryNotFoundException", "couldn't find resource", "returned no results")

#: (terraform-provider-aws internal/service/route53/zone_data_source.go).
NO_ZONE = "no matching Route 53 Hosted Zone found"

T = TypeVar("T")


def read_facts(plan: Plan, *, parent: pulumi.Resource | None = None) -> AccountFacts:
    """The account as the stack's AWS provider sees it. Works in a preview too, because it only reads.

    Raises `SetupError` when AWS cannot be queried at all.
    """
    try:
        return _read(plan, pulumi.InvokeOptions(parent=parent))
    except Exception as error:  # what the SDK raises for any refusal of the provider
        raise not_queried(error) from error


def _read(plan: Plan, opts: pulumi.InvokeOptions) -> AccountFacts:
    caller = aws.get_caller_identity(opts=opts)
    quotas, unread = _quotas(plan, opts)
    types = instance_types(plan)
    subnets = _subnets(plan, opts)

    def or_unread(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except Exception as error:  # noqa: BLE001 - the SDK raises plain Exception; it becomes a notice, not a pass
            unread[what] = why(error)
            return otherwise

    def of_cluster(what: str, read: Callable[[str], T], otherwise: T) -> T:
        """What there is to read of the stack's cluster, where it exists."""
        if clusters is None:
            unread[what] = unread[CLUSTER]
        name = cluster_name(plan)
        return or_unread(what, lambda: read(name), otherwise) if name in (clusters or ()) else otherwise

    clusters = or_unread(CLUSTER, lambda: aws.eks.get_clusters(opts=opts).names, None)
    live = of_cluster(LIVE_SIZES, lambda name: _live_groups(name, opts), LiveGroups())
    return AccountFacts(
        account=caller.account_id,
        partition=aws.get_partition(opts=opts).partition,
        region=aws.get_region(opts=opts).region,
        caller_role_arn=aws.iam.get_session_context(arn=caller.arn, opts=opts).issuer_arn,
        zones=_zones(opts),
        offerings=_offerings(types, opts),
        quotas=quotas,
        unread=unread,
        subnets=subnets,
        vpc_without=_vpc_without(plan, subnets, opts),
        other_addresses=or_unread(ADDRESSES, lambda: _other_addresses(plan, opts), 0),
        cluster=of_cluster(CLUSTER, lambda name: _cluster(name, opts), None),
        has_log_group=or_unread(LOG_GROUP, lambda: _has_log_group(plan, opts), otherwise=False),
        zone_id=or_unread(ZONE, lambda: _zone_id(plan, opts), ""),
        lacks_image=or_unread(IMAGE, lambda: _lacks_image(plan, opts), otherwise=False),
        has_aws_command=has_aws_command(),
        live_nodes=live.sizes,
        system_nodes=tuple(live.system),
        group_versions=live.versions,
        failed_groups=tuple(live.failed),
    )


def _other_addresses(plan: Plan, opts: pulumi.InvokeOptions) -> int:
    everybodys = aws.ec2.get_eips(filters=[{"name": "domain", "values": ["vpc"]}], opts=opts).allocation_ids
    own = aws.ec2.get_eips(tags={STACK_LABEL: plan.stack}, opts=opts).allocation_ids
    return len({*everybodys} - {*own})


def _cluster(name: str, opts: pulumi.InvokeOptions) -> ClusterFact | None:
    found = aws.eks.get_cluster(name=name, opts=opts)
    return ClusterFact(why_unreachable(found.endpoint), found.version)


def _has_log_group(plan: Plan, opts: pulumi.InvokeOptions) -> bool:
    name = log_group(plan)
    return name in aws.cloudwatch.get_log_groups(log_group_name_prefix=name, opts=opts).log_group_names


def _zone_id(plan: Plan, opts: pulumi.InvokeOptions) -> str:
    zone = plan.config.gateway.zone
    if zone is None:
        return ""
    try:
        return aws.route53.get_zone(name=zone, private_zone=False, opts=opts).zone_id
    except Exception as error:  # what the SDK raises for any refusal of the provider
        if NO_ZONE in str(error):
            return ""
        raise


def _lacks_image(plan: Plan, opts: pulumi.InvokeOptions) -> bool:
    image = ecr_image(plan.config.kubernetes.image)
    if image is None:
        return False
    try:
        aws.ecr.get_image(
            registry_id=image.account,
            region=image.region,
            repository_name=image.repository,
            image_tag=image.tag,
            image_digest=image.digest,
            opts=opts,
        )
    except Exception as error:  # what the SDK raises for any refusal of the provider
        if any(words in str(error) for words in NO_IMAGE):
            return True
        raise
    return False


def _zones(opts: pulumi.InvokeOptions) -> tuple[str, ...]:
    """Availability Zones, without Local Zones, Wavelength Zones and the zones that EKS refuses."""
    found = aws.get_availability_zones(
        state="available",
        filters=[{"name": "zone-type", "values": ["availability-zone"]}],
        exclude_zone_ids=list(NO_CONTROL_PLANE_ZONE_IDS),
        opts=opts,
    )
    return tuple(sorted(found.names))


def _offerings(types: tuple[str, ...], opts: pulumi.InvokeOptions) -> dict[str, frozenset[str]]:
    found = aws.ec2.get_instance_type_offerings(
        location_type="availability-zone",
        filters=[{"name": "instance-type", "values": list(types)}],
        opts=opts,
    )
    return zones_by_type(zip(found.instance_types, found.locations, strict=True), types)


def _quotas(plan: Plan, opts: pulumi.InvokeOptions) -> tuple[dict[str, float], dict[str, str]]:
    quotas: dict[str, float] = {}
    unread: dict[str, str] = {}
    for code in quota_codes(plan):
        try:
            quotas[code] = aws.servicequotas.get_service_quota(
                service_code=quota_service(code), quota_code=code, opts=opts
            ).value
        except Exception as error:  # noqa: BLE001 - the SDK raises plain Exception; it becomes a notice, not a pass
            unread[code] = why(error)
    return quotas, unread


def _subnets(plan: Plan, opts: pulumi.InvokeOptions) -> tuple[SubnetFact, ...]:
    wanted = plan.config.network.private_subnet_ids
    if not wanted:
        return ()
    there = aws.ec2.get_subnets(filters=[{"name": "subnet-id", "values": wanted}], opts=opts).ids
    found = [aws.ec2.get_subnet(id=subnet_id, opts=opts) for subnet_id in wanted if subnet_id in there]
    return tuple(
        SubnetFact(subnet.id, subnet.vpc_id, subnet.availability_zone, subnet.available_ip_address_count)
        for subnet in found
    )


def _vpc_without(plan: Plan, subnets: tuple[SubnetFact, ...], opts: pulumi.InvokeOptions) -> tuple[str, ...]:
    """DNS attributes that are switched off in the stack's existing VPC.

    AWS is queried only if one of the subnets is in this VPC: otherwise the VPC may not exist, and the findings about
    the subnets say so already.
    """
    vpc_id = plan.config.network.vpc_id
    if vpc_id not in {subnet.vpc_id for subnet in subnets}:
        return ()
    vpc = aws.ec2.get_vpc(id=vpc_id, opts=opts)
    has = (vpc.enable_dns_support, vpc.enable_dns_hostnames)
    return tuple(key for key, value in zip(VPC_DNS, has, strict=True) if not value)


@dataclass
class LiveGroups:
    """A cluster's node groups: desired sizes by tag `Name`, the system pool's, versions, names of those that failed."""

    sizes: dict[str, int] = field(default_factory=dict)
    system: list[SystemNodes] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def _live_groups(cluster: str, opts: pulumi.InvokeOptions) -> LiveGroups:
    """The live node groups; while one replaces another, the larger size counts."""
    live = LiveGroups()
    for group in aws.eks.get_node_groups(cluster_name=cluster, opts=opts).names:
        found = aws.eks.get_node_group(cluster_name=cluster, node_group_name=group, opts=opts)
        name, size = found.tags.get("Name", group), int(found.scaling_configs[0].desired_size)
        live.versions[group] = found.version
        live.sizes[name] = max(size, live.sizes.get(name, 0))
        if found.status == "CREATE_FAILED":
            live.failed.append(group)
        if found.tags.get(POOL_LABEL) == SYSTEM_POOL:
            types = tuple(found.instance_types)
            live.system.append(SystemNodes(found.version, found.release_version, types, dict(found.tags)))
    return live
