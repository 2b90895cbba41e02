"""The address plan of a new VPC, and findings about a stack's network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from modelfleet.infra.stack import LoadedStack
from modelfleet.infra.stack.schema import Network
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
    ip_network(cidr) for cidr in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
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


def network_findings(stack: LoadedStack) -> list[Finding]:
    """Findings about the network and the cluster's endpoint that would otherwise show late, or cost money."""
    network = stack.config.network
    found = [] if network.vpc_id else [*_cidr_findings(stack, network), *_way_out_findings(stack, network)]
    return [*found, *_endpoint_findings(stack)]


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
    elif not any(vpc.subnet_of(block) for block in PRIVATE_ADDRESSES if isinstance(block, IPv4Network)):
        yield stack.finding(path, f"found '{network.cidr}', which is public; use a private range such as 10.0.0.0/16")


def _way_out_findings(stack: LoadedStack, network: Network) -> Iterator[Finding]:
    if network.nat == "none" and not network.interface_endpoints:
        yield stack.finding(
            ("network", "nat"),
            "found 'none' without interfaceEndpoints: nodes would reach neither EKS nor ECR; "
            "set interfaceEndpoints: true, or nat: single",
        )


def _endpoint_findings(stack: LoadedStack) -> Iterator[Finding]:
    cluster = stack.config.cluster
    for index, cidr in enumerate(cluster.public_access_cidrs):
        path = ("cluster", "publicAccessCidrs", index)
        try:
            block = ip_network(cidr)
        except ValueError:
            yield stack.finding(path, f"found '{cidr}', which is not a network; write it as 203.0.113.0/24")
            continue
        if is_open(block) and not cluster.allow_public_access_from_anywhere:
            yield stack.finding(
                path,
                f"found '{cidr}', which opens the cluster's endpoint to the internet; name your networks, "
                f"or confirm it with allowPublicAccessFromAnywhere: true",
            )


def is_open(block: IPv4Network | IPv6Network) -> bool:
    """Whether a range is as good as the whole internet."""
    return block.prefixlen < (WIDEST_PUBLIC_PREFIX if block.version == 4 else WIDEST_PUBLIC_PREFIX_V6)
