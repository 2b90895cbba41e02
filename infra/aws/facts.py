"""What AWS reports about the account and the region before anything is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from modelfleet.infra.planning.system_roll import SystemNodes
from modelfleet.serving.config.errors import SetupError

#: Zones in which EKS makes no control plane. It refuses subnets there.
#: https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html
NO_CONTROL_PLANE_ZONE_IDS = ("use1-az3", "usw1-az2", "cac1-az3")

#: Attributes of a VPC without which its nodes cannot find the cluster's private endpoint.
#: https://docs.aws.amazon.com/eks/latest/userguide/cluster-endpoint.html
VPC_DNS = ("enableDnsSupport", "enableDnsHostnames")

#: What a run can do without, as it stands in messages: a refusal of AWS to tell it stops nothing.
ADDRESSES, CLUSTER, LOG_GROUP, IMAGE = "the use of Elastic IP addresses", "the cluster", "the log group", "the image"
LIVE_SIZES = "the node groups' live sizes"
#: What a run cannot do without: the front door's records go there.
ZONE = "the Route 53 zone"
#: Actions that the preflight uses.
READS = (
    "sts:GetCallerIdentity",
    "iam:GetRole",
    "ec2:Describe*",
    "servicequotas:GetServiceQuota",
    "eks:ListClusters",
    "eks:DescribeCluster",
    "logs:DescribeLogGroups",
    "ecr:DescribeImages",
    "ecr:DescribeRepositories",
    "route53:ListHostedZonesByName",
)


@dataclass(frozen=True)
class SubnetFact:
    """An existing subnet that the stack names."""

    id: str
    vpc_id: str
    zone: str
    free_addresses: int | None


@dataclass(frozen=True)
class ClusterFact:
    """The stack's cluster, where it exists. `unreachable` says why its API server cannot be reached from here.

    `version` is the control plane's minor version of Kubernetes.
    """

    unreachable: str | None
    version: str | None = None


@dataclass(frozen=True)
class AccountFacts:
    """One account in one region, and this machine.

    `quotas` maps a Service Quotas code to its value (vCPUs, addresses, groups). `unread` maps what could not be read,
    a code or one of `ADDRESSES`, `CLUSTER`, `LOG_GROUP`, `IMAGE`, `LIVE_SIZES`, to the reason.
    `offerings` maps an instance type to the zones that offer it, to none if the region lacks the type.
    `vpc_without` names the DNS attributes that are switched off in the stack's existing VPC.
    `other_addresses` counts Elastic IP addresses that are not this stack's.
    `has_log_group`: the cluster's log group exists, whoever made it.
    `zone_id` is the Route 53 zone's of `gateway.zone`; empty without one.
    `lacks_image`: the stack's image should be in ECR and is not.
    `live_nodes` is the desired size of each node group of the stack's cluster, by its tag `Name`; `system_nodes` are
    those of the system pool. `group_versions` has the minor version of Kubernetes of each group by its full name.
    `failed_groups` are those whose creation failed.
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
    other_addresses: int = 0
    cluster: ClusterFact | None = None
    has_log_group: bool = False
    zone_id: str = ""
    lacks_image: bool = False
    has_aws_command: bool = True
    live_nodes: Mapping[str, int] = field(default_factory=dict)
    system_nodes: tuple[SystemNodes, ...] = ()
    group_versions: Mapping[str, str] = field(default_factory=dict)
    failed_groups: tuple[str, ...] = ()


def zones_by_type(pairs: Iterable[tuple[str, str]], types: Iterable[str]) -> dict[str, frozenset[str]]:
    """Zones by instance type, from (instance type, zone) pairs; each of `types` has an entry, even if empty."""
    found: dict[str, set[str]] = {name: set() for name in types}
    for name, zone in pairs:
        found.setdefault(name, set()).add(zone)
    return {name: frozenset(zones) for name, zones in found.items()}


def not_queried(error: Exception) -> SetupError:
    """The error of a run that AWS does not answer at all: no credentials, expired ones, an unknown profile."""
    return SetupError(
        f"AWS could not be queried: {why(error)}. Log in (`aws sso login`, or AWS_PROFILE or "
        f"`aws:profile` for another profile), then run the command again; it only reads: {', '.join(READS)}"
    )


def why(error: Exception) -> str:
    """What AWS or its provider said, in one line and without the engine's own words about the call."""
    return " ".join(str(error).rpartition(" returned an error: ")[2].split()).rstrip(".")
