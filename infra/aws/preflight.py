"""Finds what would stop a plan on AWS, before anything is made: account, offerings, quotas, a way to the cluster.

    findings = preflight(plan, facts)

`facts` comes from `read_facts` (the program, through the Pulumi provider) or `read_facts_with_boto3` (the command).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from modelfleet.infra.aws.facts import ADDRESSES, CLUSTER, IMAGE, LIVE_SIZES, LOG_GROUP, ZONE, AccountFacts
from modelfleet.infra.aws.site import cluster_name
from modelfleet.infra.aws.zones import network_zones, rung_zones
from modelfleet.infra.catalog import Catalog, Quota, default_catalog
from modelfleet.infra.planning.ladder import USUAL_NODE_GROUPS, fewer_node_groups
from modelfleet.infra.planning.network import nat_gateways
from modelfleet.infra.planning.plan import Plan, PoolPlan, Rung
from modelfleet.infra.planning.system_roll import system_roll
from modelfleet.infra.stack.schema import RESERVED
from modelfleet.serving.config.errors import Finding, Severity

#: The VPC CNI of one GPU node takes about this many addresses of its subnet.
ADDRESSES_PER_NODE = 20
#: EKS wants its own interfaces in two zones. https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html
FEWEST_ZONES = 2
#: Elastic IP addresses in a region, five unless more were granted.
#: https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html
ADDRESS_QUOTA = Quota("L-0263D0A3", "EC2-VPC Elastic IPs")
#: https://docs.aws.amazon.com/general/latest/gr/eks.html#limits_eks
NODE_GROUP_QUOTA = Quota("L-6D54EA21", "Managed node groups per cluster")
#: A reservation is within the quota of instances on demand.
#: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/capacity-reservations-create.html
QUOTA_OF: Mapping[str, str] = {"reservation": "on-demand"}
INSTALL_AWS = "https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html"

#: `LoadedStack.finding`: a finding at a key of the stack file, such as `("pools", 0, "zones")`.
Place = Callable[..., Finding]


def preflight(plan: Plan, facts: AccountFacts, *, catalog: Catalog | None = None) -> list[Finding]:
    """Everything that AWS would refuse, plus a notice for each fact that could not be read."""
    place, catalog = plan.source.finding, catalog or default_catalog()
    return [
        *_account(plan, facts, place),
        *_zones(plan, facts, place),
        *_subnets(plan, facts, place),
        *_offerings(plan, facts, place),
        *_quotas(plan, facts, place, catalog),
        *_node_groups(plan, facts, place),
        *_addresses(plan, facts, place),
        *_api_server(plan, facts, place),
        *_image(plan, facts, place),
        *_route53_zone(plan, facts, place),
        *_unread(facts, place),
        *_surge_room(plan, facts, place),
        *_live_sizes(facts, place),
        *_system_roll(plan, facts, place),
        *_version_step(plan, facts, place),
        *_failed_groups(plan, facts, place),
    ]


def instance_types(plan: Plan) -> tuple[str, ...]:
    """Every instance type that a plan may start."""
    system = plan.config.cluster.system_instance_type
    return tuple(sorted({system, *(name for pool in plan.node_groups for name in pool.all_instance_types)}))


def quota_codes(plan: Plan, catalog: Catalog | None = None) -> tuple[str, ...]:
    """Service Quotas codes that a plan is checked against."""
    codes = {NODE_GROUP_QUOTA.code, *(quota.code for quota in _vcpus_needed(plan, catalog or default_catalog()))}
    return tuple(sorted(codes | ({ADDRESS_QUOTA.code} if nat_gateways(plan.config.network) else set())))


def quota_service(code: str) -> str:
    """The service of a quota, as Service Quotas calls it."""
    return "eks" if code == NODE_GROUP_QUOTA.code else "ec2"


def _vcpus_needed(plan: Plan, catalog: Catalog, *, moving: bool = False) -> dict[Quota, int]:
    """vCPUs at the plan's maximum, by the quota that they count against; a Capacity Block counts against none.

    `moving`: while a worker of each pool with `returnAfterMinutes` returns to an earlier rung.
    """
    needed = dict[Quota, int]()
    # Any rung may be the one that gives all nodes of its pool. Those that count against the same quota share it.
    wanted = [_vcpus_of(pool, catalog, moving=moving) for pool in plan.node_groups]
    if system := plan.system:  # a type that the catalog does not know counts as 0 vCPUs; the plan has warned of it
        own = catalog.quota(system.instance_type, "on-demand")
        wanted.append({own: system.max_nodes * system.vcpus_per_node} if own else {})
    for counts in wanted:
        for quota, vcpus in counts.items():
            needed[quota] = needed.get(quota, 0) + vcpus
    return needed


def _vcpus_of(pool: PoolPlan, catalog: Catalog, *, moving: bool) -> dict[Quota, int]:
    """vCPUs of all nodes of a pool on the largest rung of each quota.

    A worker that returns has its next node before it leaves the last one. Both count against one quota only if that has
    an earlier and a later rung.
    """
    sizes = dict[Quota, list[int]]()
    for rung in pool.rungs:
        quota = catalog.quota(rung.instance_types[0], QUOTA_OF.get(rung.purchase, rung.purchase))
        if quota is not None:
            sizes.setdefault(quota, []).append(rung.vcpus_per_node)
    returns = moving and pool.returns is not None
    return {quota: (pool.max_nodes + (returns and len(own) > 1)) * max(own) for quota, own in sizes.items()}


def _account(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    wanted = plan.config.account_id
    if wanted and wanted != facts.account:
        yield place(
            ("accountId",),
            f"found '{wanted}', but the credentials belong to account {facts.account}; "
            f"choose other credentials (AWS_PROFILE) or correct the id",
        )
    admins = plan.config.cluster.admin_role_arns
    if admins and facts.caller_role_arn not in admins:
        yield place(
            ("cluster", "adminRoleArns"),
            f"lacks {facts.caller_role_arn}, which runs Pulumi: it could make the cluster but nothing in it; add it",
        )


def _zones(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    if not facts.zones:
        yield place(
            (), f"region {facts.region} has no zone that this account can use; enable the region or choose another"
        )
        return
    wanted = plan.config.network.zones
    if not plan.config.network.vpc_id and len(facts.zones) < wanted:
        zones = facts.zones
        message = f"found {wanted}, but {facts.region} has {len(zones)} that EKS accepts: {', '.join(zones)}"
        yield place(("network", "zones"), message)


def _subnets(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    network = plan.config.network
    if not network.vpc_id:
        return
    known = {subnet.id: subnet for subnet in facts.subnets}
    for index, subnet_id in enumerate(network.private_subnet_ids):
        path = ("network", "privateSubnetIds", index)
        subnet = known.get(subnet_id)
        if subnet is None:
            yield place(path, f"found '{subnet_id}', which is not in account {facts.account}, {facts.region}")
        elif subnet.vpc_id != network.vpc_id:
            yield place(path, f"found '{subnet_id}', which is in {subnet.vpc_id}, but vpcId is {network.vpc_id}")
        elif subnet.free_addresses is not None and subnet.free_addresses < ADDRESSES_PER_NODE:
            message = (
                f"'{subnet_id}' has {subnet.free_addresses} free addresses; one node takes about {ADDRESSES_PER_NODE}"
            )
            yield place(path, message, Severity.WARNING)
    if facts.vpc_without:
        message = (
            f"'{network.vpc_id}' has {' and '.join(facts.vpc_without)} switched off: its nodes would not find the "
            f"cluster's private endpoint; switch it on: aws ec2 modify-vpc-attribute --vpc-id {network.vpc_id}"
        )
        yield place(("network", "vpcId"), message)
    zones = {subnet.zone for subnet in facts.subnets}
    if facts.subnets and len(zones) < FEWEST_ZONES:
        message = f"are all in {', '.join(sorted(zones))}; EKS needs subnets in {FEWEST_ZONES} zones"
        yield place(("network", "privateSubnetIds"), message)


def _offerings(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    zones = network_zones(plan, facts)
    system = plan.config.cluster.system_instance_type
    offered = facts.offerings.get(system, frozenset())
    if lacking := [zone for zone in zones if zone not in offered]:
        path = ("cluster", "systemInstanceType")
        yield place(path, f"'{system}' is not offered in {', '.join(lacking)}; it is offered in {_listed(offered)}")
    if plan.copies.pool and not rung_zones(plan.copies.pool.rungs[0], zones, facts):
        (name,) = plan.copies.pool.instance_types
        message = (
            f"'{name}' copies the weights and is not offered in {', '.join(zones)}; it is offered in "
            f"{_listed(facts.offerings.get(name, frozenset()))}; choose another type"
        )
        yield place(("mirror", "instanceType"), message)
    for index, pool in enumerate(plan.pools):
        yield from _pool_offerings(index, pool, zones, facts, place)


def _pool_offerings(
    index: int, pool: PoolPlan, zones: tuple[str, ...], facts: AccountFacts, place: Place
) -> Iterator[Finding]:
    named: dict[tuple[str | int, ...], tuple[str, ...]] = {("pools", index, "instanceTypes"): pool.instance_types}
    named |= {
        _types_key(index, pool, rung): rung.instance_types
        for rung in pool.rungs
        if rung.accelerator != pool.accelerator
    }
    absent = {key: [name for name in types if not facts.offerings.get(name)] for key, types in named.items()}
    for key, names in absent.items():
        if names:
            yield place(key, f"{', '.join(names)} not offered in {facts.region}; choose another type or region")
    if any(absent.values()):
        return
    outside = [zone for zone in pool.zones or () if zone not in zones]
    if outside:
        message = f"found {', '.join(outside)}, outside the network's zones {', '.join(zones)}"
        yield place(("pools", index, "zones"), message)
    for rung in pool.rungs:
        yield from _rung_offerings(index, pool, rung, zones, facts, place)


def _types_key(index: int, pool: PoolPlan, rung: Rung) -> tuple[str | int, ...]:
    """The key of the stack file that names a rung's instance types."""
    number = pool.accelerators.index(rung.accelerator)
    return ("pools", index, *(("fallback", number - 1) if number else ()), "instanceTypes")


def _rung_offerings(
    index: int, pool: PoolPlan, rung: Rung, zones: tuple[str, ...], facts: AccountFacts, place: Place
) -> Iterator[Finding]:
    first, *others = rung.instance_types
    types = _types_key(index, pool, rung)
    own = rung_zones(rung, zones, facts)
    if not own and rung.zones != pool.zones:
        message = (
            f"found {', '.join(rung.zones or ())}; the network's zones are {', '.join(zones)}, and {first} is offered "
            f"in {_listed(facts.offerings[first])}; a reservation outside them is of no use here"
        )
        yield place(("pools", index, "capacityReservationZone"), message)
    elif not own:
        yield place(
            ("pools", index, "zones") if pool.zones and rung.accelerator == pool.accelerator else types,
            f"{first} is offered in {_listed(facts.offerings[first])}, but in none of the pool's zones "
            f"{', '.join(pool.zones or zones)}; raise network.zones or choose another type",
        )
    if rung.purchase in RESERVED and len(own) > 1:
        message = (
            f"is not set, and the pool is in {', '.join(own)}; a {rung.purchase.replace('-', ' ')} is in one zone; "
            "name that one, as `aws ec2 describe-capacity-reservations` shows it"
        )
        yield place(("pools", index, "capacityReservationZone"), message)
    for name in others:
        if own and not set(own) & facts.offerings[name]:
            message = f"{name} is offered in none of the pool's zones {', '.join(own)} and will never start"
            yield place(types, message, Severity.WARNING)


def _quotas(plan: Plan, facts: AccountFacts, place: Place, catalog: Catalog) -> Iterator[Finding]:
    moving = _vcpus_needed(plan, catalog, moving=True)
    for quota, vcpus in sorted(_vcpus_needed(plan, catalog).items(), key=lambda item: item[0].name):
        if quota.code in facts.unread:
            message = f"quota {quota.code} ({quota.name}) could not be read: {facts.unread[quota.code]}"
            yield place(("pools",), message, Severity.NOTICE)
        elif facts.quotas[quota.code] < vcpus:
            yield place(
                ("pools",),
                f"need up to {vcpus} vCPUs of '{quota.name}'; the account's quota {quota.code} in {facts.region} is "
                f"{facts.quotas[quota.code]:g}; lower maxNodes, or request it: {_request(quota, vcpus, facts)}",
            )
        elif facts.quotas[quota.code] < moving[quota]:
            yield place(
                ("pools",),
                f"need {moving[quota]} vCPUs of '{quota.name}' while a worker returns (returnAfterMinutes): one node "
                f"more than maxNodes; the account's quota {quota.code} in {facts.region} is "
                f"{facts.quotas[quota.code]:g}, so at maxNodes none returns; request it: "
                f"{_request(quota, moving[quota], facts)}",
                Severity.WARNING,
            )


def _node_groups(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    """Each rung of each pool has a node group in each zone, and so has the system pool."""
    zones = network_zones(plan, facts)
    pools = [rung for pool in plan.node_groups for rung in pool.rungs]
    count = len(zones) + sum(len(rung_zones(rung, zones, facts)) for rung in pools)
    if NODE_GROUP_QUOTA.code in facts.unread:
        if count > USUAL_NODE_GROUPS:
            message = (
                f"make {count} managed node groups; a new account has {USUAL_NODE_GROUPS} a cluster, and quota "
                f"{NODE_GROUP_QUOTA.code} ({NODE_GROUP_QUOTA.name}) could not be read: "
            )
            yield place(("pools",), message + facts.unread[NODE_GROUP_QUOTA.code], Severity.WARNING)
    elif count > facts.quotas[NODE_GROUP_QUOTA.code]:
        message = (
            f"need {count} managed node groups with the system pool's, one per purchase and zone; quota "
            f"{NODE_GROUP_QUOTA.code} ({NODE_GROUP_QUOTA.name}) in {facts.region} is "
            f"{facts.quotas[NODE_GROUP_QUOTA.code]:g}; {fewer_node_groups(count, facts.region)}"
        )
        yield place(("pools",), message)


def _request(quota: Quota, value: int, facts: AccountFacts) -> str:
    return (
        f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {quota.code} "
        f"--desired-value {value} --region {facts.region}"
    )


def _addresses(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    """Each NAT gateway has an Elastic IP address. Those that the stack has already count as its own."""
    needed, path = nat_gateways(plan.config.network), ("network", "nat")
    if not needed:
        return
    if ADDRESS_QUOTA.code in facts.unread:
        message = f"quota {ADDRESS_QUOTA.code} ({ADDRESS_QUOTA.name}) could not be read: "
        yield place(path, message + facts.unread[ADDRESS_QUOTA.code], Severity.NOTICE)
        return
    most, wanted = facts.quotas[ADDRESS_QUOTA.code], facts.other_addresses + needed
    if wanted > most:
        yield place(
            path,
            f"'{plan.config.network.nat}' needs {needed} Elastic IP addresses, and others have {facts.other_addresses} "
            f"of the {most:g} that quota {ADDRESS_QUOTA.code} ({ADDRESS_QUOTA.name}) allows in {facts.region}; write "
            f"single, release an address, or request more: {_request(ADDRESS_QUOTA, wanted, facts)}",
        )


def _api_server(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    """A run that cannot reach the API server would make nodes and nothing on them."""
    if not facts.has_aws_command:
        message = f"every request to the API server takes a token from `aws`, which is not on PATH; see {INSTALL_AWS}"
        yield place(("cluster",), message)
    config = plan.config
    if facts.cluster is None:
        is_new = CLUSTER not in facts.unread and not config.network.vpc_id
        if is_new and not config.cluster.public_access_cidrs:
            message = (
                "is empty, but a new network has nobody inside and nothing connected to it: the first `up` could not "
                "reach the API server; name your network here, and take it out once a VPN or a peering is there, or "
                "use a network that is connected already (network.vpcId)"
            )
            yield place(("cluster", "publicAccessCidrs"), message)
    elif facts.cluster.unreachable:
        yield place(
            ("cluster",),
            f"the API server cannot be reached from here, {facts.cluster.unreachable}; run this where "
            f"privateAccessCidrs or publicAccessCidrs allow it, or add your address to publicAccessCidrs and open "
            f"the endpoint first: aws eks update-cluster-config --region {facts.region} --name {cluster_name(plan)} "
            f"--resources-vpc-config endpointPublicAccess=true,publicAccessCidrs=ADDRESS/32",
        )


def _image(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    if facts.lacks_image:
        image = plan.config.kubernetes.image
        message = f"found '{image}', which ECR does not have; build serving/Dockerfile and push it under this name"
        yield place(("kubernetes", "image"), message)


def _route53_zone(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    """The front door's record and the proof for its certificate go there, and a run would wait for them for an hour."""
    zone, path = plan.config.gateway.zone, ("gateway", "zone")
    if zone is None or facts.zone_id:
        return
    if ZONE in facts.unread:
        yield place(path, f"{ZONE} {zone} could not be read: {facts.unread[ZONE]}")
        return
    yield place(
        path,
        f"found '{zone}', and account {facts.account} has no public Route 53 zone of that name; make it and have its "
        f"parent delegate to it: aws route53 create-hosted-zone --name {zone} --caller-reference first; or set "
        "certificate and keep the record elsewhere",
    )


def _unread(facts: AccountFacts, place: Place) -> Iterator[Finding]:
    for what in (ADDRESSES, CLUSTER, LOG_GROUP, IMAGE):
        if what in facts.unread:
            message = f"{what} could not be read, so nothing checks it: {facts.unread[what]}"
            yield place((), message, Severity.NOTICE)


def _surge_room(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    """Warns of pools in which a second Ray cluster would wait for ever: its nodes are those of the live one.

    Over several zones there is room, because each zone's group may hold the whole pool.
    """
    if plan.ray_cluster.rollout == "replace":
        return
    zones = network_zones(plan, facts)
    for index, pool in enumerate(plan.pools):
        room = pool.max_nodes * sum(len(rung_zones(rung, zones, facts)) for rung in pool.rungs)
        if 0 < room < 2 * pool.min_nodes:
            yield place(
                ("pools", index, "maxNodes"),
                f"found {pool.max_nodes} in one zone; its models need {pool.min_nodes} nodes, so with rollout "
                f"{plan.ray_cluster.rollout} a new image would wait for {2 * pool.min_nodes}; raise it, "
                "give the pool more zones, or set kubernetes.rollout to replace",
                Severity.WARNING,
            )


def _live_sizes(facts: AccountFacts, place: Place) -> Iterator[Finding]:
    if LIVE_SIZES in facts.unread:
        message = (
            f"{LIVE_SIZES} could not be read, so EKS may refuse a changed minNodes or maxNodes: "
            f"{facts.unread[LIVE_SIZES]}; allow eks:ListClusters, eks:ListNodegroups and eks:DescribeNodegroup"
        )
        yield place(("pools",), message, Severity.NOTICE)


def _listed(zones: frozenset[str]) -> str:
    return ", ".join(sorted(zones)) or "no zone of the region"


def _system_roll(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    """System nodes that the run replaces take the Ray head with them."""
    for live in facts.system_nodes:
        # Others may have tagged the group beside us, so a tag that is not in the file says nothing.
        known = replace(live, tags={key: value for key, value in live.tags.items() if key in plan.config.tags})
        if roll := system_roll(known, plan, head_survives=plan.head_survives):
            change = roll.changes[0]
            yield place(
                change.path,
                f"changes from {change.was} to {change.will}, so {roll.sentence}",
                Severity.WARNING if roll.gap_minutes else Severity.NOTICE,
            )
            return


def _version_step(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    """EKS takes a cluster up one minor version at a time and never back, once all its node groups are there.

    https://docs.aws.amazon.com/eks/latest/userguide/update-cluster.html, hashicorp/terraform-provider-aws#19478
    """
    wanted, live = plan.config.cluster.version, facts.cluster.version if facts.cluster else None
    lagging = sorted(name for name, version in facts.group_versions.items() if live and _minor(version) < _minor(live))
    step = _minor(wanted) - _minor(live) if live else 0
    key = ("cluster", "version")
    if step < 0:
        message = f"found {wanted}, and the control plane has {live}; EKS never goes back"
        yield place(key, f"{message}: write {live} or {_next(str(live))}")
    elif step > 1:
        message = f"found {wanted}, and the control plane has {live}; EKS goes up one minor version at a time"
        yield place(key, f"{message}: write {_next(str(live))}, run this, then go on")
    elif step and lagging:
        message = f"found {wanted}, and EKS goes up from {live} once all node groups have {live}; these have not"
        yield place(key, f"{message}: {', '.join(lagging)}; write {live}, run this, then go on")


def _next(version: str) -> str:
    return f"{version.partition('.')[0]}.{_minor(version) + 1}"


def _minor(version: str) -> int:
    return int(version.partition(".")[2])


def _failed_groups(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    """EKS never mends nor updates a node group whose creation failed (aws/containers-roadmap#764)."""
    for group in facts.failed_groups:
        yield place(
            ("pools",),
            f"node group {group} got no nodes when it was made, and EKS never updates such a group; delete it, and the "
            f"next run makes it again: aws eks delete-nodegroup --region {facts.region} --cluster-name "
            f"{cluster_name(plan)} --nodegroup-name {group}",
            Severity.WARNING,
        )
