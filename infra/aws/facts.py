"""What AWS reports about the account and the region before anything is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: Zones in which EKS makes no control plane. It refuses subnets there.
#: https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html
NO_CONTROL_PLANE_ZONE_IDS = ("use1-az3", "usw1-az2", "cac1-az3")

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

    `quotas` maps a Service Quotas code to vCPUs; `unread` maps a code that could not be read to the reason.
    `offerings` maps an instance type to the zones that offer it, to none if the region lacks the type.
    `vpc_without` names the DNS attributes that are switched off in the stack's existing VPC.
    `live_nodes` is the desired size of each node group of the stack's cluster, by its tag `Name`; `live_unread` says
    why it could not be read.
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
    live_nodes: Mapping[str, int] = field(default_factory=dict)
    live_unread: str = ""


def zones_by_type(pairs: Iterable[tuple[str, str]], types: Iterable[str]) -> dict[str, frozenset[str]]:
    """Zones by instance type, from (instance type, zone) pairs; each of `types` has an entry, even if empty."""
    found: dict[str, set[str]] = {name: set() for name in types}
    for name, zone in pairs:
        found.setdefault(name, set()).add(zone)
    return {name: frozenset(zones) for name, zones in found.items()}
