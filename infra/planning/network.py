"""The address plan of a new VPC, and findings about a stack's network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from modelfleet.infra.stack import LoadedStack
from modelfleet.infra.stack.schema import Cluster, Network
from modelfleet.serving.config.errors import Finding

#: A GPU node's VPC CNI keeps whole spare interfaces: about 100 addresses a node. A /24 is full after two nodes
#: (amazon-vpc-cni-k8s docs/eni-and-ip-target.md), so a private subnet is never smaller than /20.
SMALLEST_PRIVATE_PREFIX = 20
#: The VPC is cut into eighths: one each for up to six zones, the last one for public subnets. The cut does not
#: depend on the number of zones, so a zone added later moves no subnet (a subnet's CIDR is force-new).
CUT_BITS = 3
PUBLIC_PREFIX = 24
#: EC2 allows VPCs from /16 to /28.
LARGEST_VPC_PREFIX = 16
#: An IPv4 range wider than /8 is as good as the whole internet: two /1 are 0.0.0.0/0 in disguise.
WIDEST_PUBLIC_PREFIX = 8
WIDEST_PUBLIC_PREFIX_V6 = 16
PRIVATE_ADDRESSES = tuple(
    IPv4Network(cidr) for cidr in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
)


@dataclass(frozen=True)
class SubnetBlocks:
    """CIDRs of the private and the public subnet of each zone, in the order of the zones."""

    private: tuple[str, ...]
    public: tuple[str, ...]


def subnet_blocks(cidr: str, zones: int) -> SubnetBlocks:
    """The subnets of a VPC for `zones` zones (at most six); raises ValueError for an invalid CIDR."""
    vpc = IPv4Network(cidr)
    eighths = list(vpc.subnets(prefixlen_diff=CUT_BITS))
    publics = eighths[-1].subnets(new_prefix=max(PUBLIC_PREFIX, eighths[-1].prefixlen + CUT_BITS))
    return SubnetBlocks(
        private=tuple(str(block) for block in eighths[:zones]),
        public=tuple(str(next(publics)) for _ in range(zones)),
    )


def nat_gateways(network: Network) -> int:
    """Number of NAT gateways that the stack makes; each has an Elastic IP address."""
    return 0 if network.vpc_id else {"single": 1, "per-zone": network.zones}[network.nat]


def network_findings(stack: LoadedStack) -> list[Finding]:
    """Findings about the network and the cluster's endpoint that would otherwise show late, or cost money."""
    network = stack.config.network
    found = [] if network.vpc_id else list(_cidr_findings(stack, network))
    return [*found, *_public_findings(stack), *_private_findings(stack), *_reach_findings(stack)]


def _cidr_findings(stack: LoadedStack, network: Network) -> Iterator[Finding]:
    path = ("network", "cidr")
    try:
        vpc = ip_network(network.cidr)
    except ValueError:
        yield stack.finding(path, f"found '{network.cidr}', which is not a network; write it as 10.0.0.0/16")
        return
    smallest = SMALLEST_PRIVATE_PREFIX - CUT_BITS
    if not isinstance(vpc, IPv4Network) or not LARGEST_VPC_PREFIX <= vpc.prefixlen <= smallest:
        yield stack.finding(
            path,
            f"found '{network.cidr}'; allowed are IPv4 networks from /{LARGEST_VPC_PREFIX} to /{smallest}: "
            f"a GPU node takes about 100 addresses, and each zone gets an eighth",
        )
    elif not is_private(vpc):
        yield stack.finding(path, f"found '{network.cidr}', which is public; use a private range such as 10.0.0.0/16")


def _public_findings(stack: LoadedStack) -> Iterator[Finding]:
    cluster = stack.config.cluster
    for index, cidr in enumerate(cluster.public_access_cidrs):
        path = ("cluster", "publicAccessCidrs", index)
        block = network_of(cidr)
        if block is None:
            yield stack.finding(path, f"found '{cidr}', which is not a network; write it as 203.0.113.0/24")
        elif is_open(block) and not cluster.allow_public_access_from_anywhere:
            yield stack.finding(
                path,
                f"found '{cidr}', which opens the cluster's endpoint to the internet; name your networks, "
                f"or confirm it with allowPublicAccessFromAnywhere: true",
            )
        elif is_private(block):
            # EKS refuses it. https://docs.aws.amazon.com/eks/latest/APIReference/API_VpcConfigRequest.html
            message = f"found '{cidr}', which is private and never seen by a public endpoint; move it to "
            yield stack.finding(path, f"{message}privateAccessCidrs")


def _private_findings(stack: LoadedStack) -> Iterator[Finding]:
    for index, cidr in enumerate(stack.config.cluster.private_access_cidrs):
        path = ("cluster", "privateAccessCidrs", index)
        block = network_of(cidr)
        if not isinstance(block, IPv4Network):
            yield stack.finding(path, f"found '{cidr}', which is not an IPv4 network; write it as 10.8.0.0/16")
        elif is_open(block):
            yield stack.finding(path, f"found '{cidr}', which is as good as every address; name your networks")


def _reach_findings(stack: LoadedStack) -> Iterator[Finding]:
    """Only nodes may connect to a private endpoint on their own: all others need a rule in the security group.

    https://docs.aws.amazon.com/eks/latest/userguide/cluster-endpoint.html ("Accessing a private only API server")
    """
    if not (stack.config.cluster.public_access_cidrs or reaches_privately(stack.config.cluster)):
        yield stack.finding(
            ("cluster",),
            "lets nobody reach the cluster's API server, so a run would make nodes and nothing on them; name who does: "
            "publicAccessCidrs (networks on the internet, such as your office), or privateAccessCidrs or "
            "privateAccessSecurityGroupIds (a VPN, a peered network, a bastion, a CI runner inside network.vpcId)",
        )


def reaches_privately(cluster: Cluster) -> bool:
    """Whether anybody but the nodes may connect to the private endpoint."""
    return bool(cluster.private_access_cidrs or cluster.private_access_security_group_ids)


def network_of(cidr: str) -> IPv4Network | IPv6Network | None:
    """A range of addresses; None if the text is none."""
    try:
        return ip_network(cidr)
    except ValueError:
        return None


def is_private(block: IPv4Network | IPv6Network) -> bool:
    """Whether a range is one that the internet does not route."""
    return isinstance(block, IPv4Network) and any(block.subnet_of(private) for private in PRIVATE_ADDRESSES)


def is_open(block: IPv4Network | IPv6Network) -> bool:
    """Whether a range is as good as the whole internet."""
    return block.prefixlen < (WIDEST_PUBLIC_PREFIX if block.version == 4 else WIDEST_PUBLIC_PREFIX_V6)
