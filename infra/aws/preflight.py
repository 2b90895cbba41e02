"""What would make AWS refuse a plan, found before anything is made: account, region, zones, offerings, quotas.

    findings = preflight(plan, facts, place=stack.finding)

`facts` comes from `read_facts` (the program, through the Pulumi provider) or `read_facts_with_boto3` (the command).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from infra.aws.facts import QUOTA_CODES, AccountFacts
from infra.aws.zones import network_zones, pool_zones
from infra.catalog import Catalog, UnknownInstanceType, default_catalog
from infra.planning.plan import Plan, PoolPlan
from serving.config.document import KeyPath, dotted
from serving.config.errors import Finding, Severity

#: The VPC CNI of one GPU node takes about this many addresses of its subnet.
ADDRESSES_PER_NODE = 20
#: EKS wants its own interfaces in two zones. https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html
FEWEST_ZONES = 2

ReadFacts = Callable[[Plan], AccountFacts]


class Place(Protocol):
    """`LoadedStack.finding`: a finding at a key of the stack file."""

    def __call__(self, path: KeyPath, message: str, severity: Severity = Severity.ERROR) -> Finding:
        """A finding at a key path such as `("pools", 0, "zones")`."""
        ...


def place_without_lines(plan: Plan) -> Place:
    """Findings that name the stack file and the key, where no line is known."""

    def finding(path: KeyPath, message: str, severity: Severity = Severity.ERROR) -> Finding:
        return Finding(f"stacks/Pulumi.{plan.stack}.yaml", 0, f"modelfleet:{dotted(path)}", message, severity)

    return finding


def preflight(
    plan: Plan, facts: AccountFacts, *, place: Place | None = None, catalog: Catalog | None = None
) -> list[Finding]:
    """Everything that AWS would refuse, and as notices what could not be looked up."""
    place = place or place_without_lines(plan)
    catalog = catalog or default_catalog()
    return [
        *_account(plan, facts, place),
        *_zones(plan, facts, place),
        *_subnets(plan, facts, place),
        *_offerings(plan, facts, place),
        *_quotas(plan, facts, place, catalog),
    ]


def instance_types(plan: Plan) -> tuple[str, ...]:
    """Every instance type that a plan may start."""
    system = plan.config.cluster.system_instance_type
    return tuple(sorted({system, *(name for pool in plan.pools for name in pool.instance_types)}))


def quota_codes(plan: Plan) -> tuple[str, ...]:
    """Service Quotas codes that a plan is held against."""
    pairs = {(family(pool.instance_types[0]), pool.purchase) for pool in plan.pools}
    pairs.add((family(plan.config.cluster.system_instance_type), "on-demand"))
    return tuple(sorted(QUOTA_CODES[pair] for pair in pairs if pair in QUOTA_CODES))


def family(instance_type: str) -> str:
    """The group of instance families that share a vCPU quota."""
    series = instance_type.partition(".")[0]
    letters = series.rstrip("abcdefghijklmnopqrstuvwxyz-").rstrip("0123456789")
    if letters in ("g", "gr", "vt"):
        return "G and VT"
    if letters == "p":
        return "P"
    return "Standard"


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
            f"does not have {facts.caller_role_arn}, which runs Pulumi: "
            f"it could make the cluster but nothing in it; add it",
        )


def _zones(plan: Plan, facts: AccountFacts, place: Place) -> Iterator[Finding]:
    if not facts.zones:
        yield place(
            (), f"region {facts.region} has no zone that this account may use; enable the region or choose another"
        )
        return
    wanted = plan.config.network.zones
    if not plan.config.network.vpc_id and len(facts.zones) < wanted:
        message = f"found {wanted}, but {facts.region} has {len(facts.zones)} that EKS takes: {', '.join(facts.zones)}"
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
            yield place(path, f"found '{subnet_id}', which is in {subnet.vpc_id}; vpcId is {network.vpc_id}")
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
        yield place(path, f"'{system}' is not offered in {', '.join(lacking)}; it is in {_listed(offered)}")
    for index, pool in enumerate(plan.pools):
        yield from _pool_offerings(index, pool, zones, facts, place)


def _pool_offerings(
    index: int, pool: PoolPlan, zones: tuple[str, ...], facts: AccountFacts, place: Place
) -> Iterator[Finding]:
    if absent := [name for name in pool.instance_types if not facts.offerings.get(name)]:
        message = f"{', '.join(absent)} not offered in {facts.region}; choose another type or region"
        yield place(("pools", index, "instanceTypes"), message)
        return
    outside = [zone for zone in pool.zones or () if zone not in zones]
    if outside:
        message = f"found {', '.join(outside)}, outside of the network's zones {', '.join(zones)}"
        yield place(("pools", index, "zones"), message)
    first, *others = pool.instance_types
    own = pool_zones(pool, zones, facts)
    if not own:
        yield place(
            ("pools", index, "zones" if pool.zones else "instanceTypes"),
            f"{first} is offered in {_listed(facts.offerings[first])}, and in none of the pool's zones "
            f"{', '.join(pool.zones or zones)}; raise network.zones or choose another type",
        )
    if pool.purchase == "capacity-block" and len(own) > 1:
        message = f"of a Capacity Block is the one of its reservation; name it, found {', '.join(own)}"
        yield place(("pools", index, "zones"), message)
    for name in others:
        if own and not set(own) & facts.offerings[name]:
            message = f"{name} is in none of the pool's zones {', '.join(own)} and will never be started"
            yield place(("pools", index, "instanceTypes"), message, Severity.WARNING)


def _quotas(plan: Plan, facts: AccountFacts, place: Place, catalog: Catalog) -> Iterator[Finding]:
    needed: dict[tuple[str, str], int] = {}
    for pool in plan.pools:
        key = (family(pool.instance_types[0]), pool.purchase)
        needed[key] = needed.get(key, 0) + pool.max_nodes * pool.vcpus_per_node
    key = (family(plan.config.cluster.system_instance_type), "on-demand")
    needed[key] = needed.get(key, 0) + _system_vcpus(plan, catalog)
    for (group, purchase), vcpus in sorted(needed.items()):
        code = QUOTA_CODES.get((group, purchase))
        if code is None:
            continue  # a Capacity Block is bought, not under a quota
        if code in facts.unread:
            message = f"quota {code} ({group}, {purchase}) could not be read: {facts.unread[code]}"
            yield place(("pools",), message, Severity.NOTICE)
        elif facts.quotas[code] < vcpus:
            yield place(
                ("pools",),
                f"need up to {vcpus} vCPUs of {group} {purchase} instances, the account's quota {code} in "
                f"{facts.region} is {facts.quotas[code]:g}; lower maxNodes, or request it: aws service-quotas "
                f"request-service-quota-increase --service-code ec2 --quota-code {code} --desired-value {vcpus} "
                f"--region {facts.region}",
            )


def _system_vcpus(plan: Plan, catalog: Catalog) -> int:
    cluster = plan.config.cluster
    try:
        return cluster.system_nodes * catalog.instance_type(cluster.system_instance_type).vcpus
    except UnknownInstanceType:
        return 0  # the offering check names a type that does not exist


def _listed(zones: frozenset[str]) -> str:
    return ", ".join(sorted(zones)) or "no zone of the region"
