"""What the account and the region say before anything is made, read through the provider's own functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: Zones in which EKS makes no control plane; subnets there are refused.
#: https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html
NO_CONTROL_PLANE_ZONE_IDS = ("use1-az3", "usw1-az2", "cac1-az3")

#: Service Quotas codes of `ec2`, by instance family and purchase option; the unit is vCPUs.
#: A Capacity Block does not count against them.
QUOTA_CODES: Mapping[tuple[str, str], str] = {
    ("G and VT", "on-demand"): "L-DB2E81BA",
    ("G and VT", "spot"): "L-3819A6DF",
    ("P", "on-demand"): "L-417A185B",
    ("P", "spot"): "L-7212CCBC",
    ("Standard", "on-demand"): "L-1216C47A",
    ("Standard", "spot"): "L-34B43A08",
}


#: Attributes of a VPC without which its nodes cannot find the cluster's private endpoint.
#: https://docs.aws.amazon.com/eks/latest/userguide/cluster-endpoint.html
VPC_DNS = ("enableDnsSupport", "enableDnsHostnames")


@dataclass(frozen=True)
class SubnetFact:
    """An existing subnet that the stack names."""

    id: str
    vpc_id: str
    zone: str
    free_addresses: int | None


@dataclass(frozen=True)
class AccountFacts:
    """One account in one region.

    `quotas` has vCPUs by Service Quotas code; a code that could not be read is in `unread` with the reason.
    `offerings` has the zones that offer an instance type; a type that the region lacks has none.
    `vpc_without` names the DNS attributes that the stack's existing VPC has switched off.
    """

    account: str
    partition: str
    region: str
    caller_role_arn: str
    zones: tuple[str, ...]
    offerings: Mapping[str, frozenset[str]]
    quotas: Mapping[str, float]
    unread: Mapping[str, str] = field(default_factory=dict)
    subnets: tuple[SubnetFact, ...] = ()
    vpc_without: tuple[str, ...] = ()


def zones_by_type(pairs: Iterable[tuple[str, str]], types: Iterable[str]) -> dict[str, frozenset[str]]:
    """Offerings as (instance type, zone) by type; each of `types` has an entry, if empty."""
    found: dict[str, set[str]] = {name: set() for name in types}
    for name, zone in pairs:
        found.setdefault(name, set()).add(zone)
    return {name: frozenset(zones) for name, zones in found.items()}
