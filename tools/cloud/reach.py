"""Who reaches what: the API server of a cluster from outside and from nodes, and AWS's services from a subnet.

    servers = ApiServers(here="203.0.113.7")
    servers.of(cluster, region, url)     # the endpoint that whoever runs Pulumi at that address gets
    why_lost(region, cluster, group, template)      # "" if the nodes of a group reach all that they need to join

https://docs.aws.amazon.com/eks/latest/userguide/cluster-endpoint.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from moto.ec2.models import ec2_backends

from tools.cloud.callers import ACCOUNT

#: Where whoever runs Pulumi is (an address for documentation, RFC 5737).
HERE = "203.0.113.7"
#: Nothing listens there: what a client sees of an API server that does not let it in, but without waiting.
NOBODY = "https://127.0.0.1:1"
EVERYWHERE = "0.0.0.0/0"
HTTPS = 443
#: Endpoints that a node needs which has no way to the internet.
#: https://docs.aws.amazon.com/eks/latest/userguide/private-clusters.html
NEEDED = ("ec2", "ecr.api", "ecr.dkr", "eks-auth", "s3")


@dataclass
class ApiServers:
    """Where API servers are: on the cloud's own port, which takes a connection, or where a test has a real one."""

    here: str = HERE
    #: URL and certificate authority (base64) of a real one, by cluster.
    real: dict[str, tuple[str, str]] = field(default_factory=dict)

    def of(self, cluster: Any, region: str, url: str) -> tuple[str, str]:
        """The URL and the certificate authority of a cluster's API server, as they are good for who is `here`."""
        authority = str(cluster.certificate_authority["data"])
        endpoint, authority = self.real.get(cluster.name, (f"https://127.0.0.1:{urlsplit(url).port}", authority))
        return (endpoint if lets_in(cluster, region, self.here) else NOBODY), authority


def lets_in(cluster: Any, region: str, address: str) -> bool:
    """Whether an API server answers an address: by the public endpoint's list, or by a rule for the private one."""
    config, who = cluster.resources_vpc_config, ip_address(address)
    if config["endpointPublicAccess"] and any(who in ip_network(cidr) for cidr in config["publicAccessCidrs"]):
        return True
    rules = _rules(region, _groups_of(cluster))
    cidrs = (rule.ip_range.get("CidrIp") for rule in rules)
    return bool(config["endpointPrivateAccess"]) and any(who in ip_network(cidr) for cidr in cidrs if cidr)


def why_lost(region: str, cluster: Any, group: Any, template: Mapping[str, Any]) -> str:
    """What the nodes of a group do not reach; empty if they can join."""
    own = _groups_of_nodes(cluster, template)
    for subnet in group.subnets:
        if problem := _why_no_server(region, cluster, subnet, own) or _why_no_services(region, subnet):
            return f"from {subnet} {problem}"
    return ""


def _why_no_server(region: str, cluster: Any, subnet: str, own: Sequence[str]) -> str:
    config = cluster.resources_vpc_config
    if config["endpointPrivateAccess"]:
        allowed = {rule.source_group.get("GroupId") for rule in _rules(region, _groups_of(cluster))}
        return "" if allowed & set(own) else f"no rule of the cluster's security group lets {', '.join(own)} in on 443"
    address = _address_outside(region, subnet)
    if address is None:
        return "there is no way to the public endpoint, and the private one is off"
    cidrs = config["publicAccessCidrs"]
    inside = any(ip_address(address) in ip_network(cidr) for cidr in cidrs)
    return "" if inside else f"the public endpoint takes {', '.join(cidrs)} only, and nodes come from {address}"


def _why_no_services(region: str, subnet: str) -> str:
    if _address_outside(region, subnet) is not None:
        return ""
    lacking = [name for name in NEEDED if name not in set(_endpoints(region, subnet))]
    return f"there is no way to the internet and no endpoint for {', '.join(lacking)}" if lacking else ""


def _groups_of(cluster: Any) -> list[str]:
    config = cluster.resources_vpc_config
    return [config["clusterSecurityGroupId"], *(config.get("securityGroupIds") or ())]


def _groups_of_nodes(cluster: Any, template: Mapping[str, Any]) -> list[str]:
    """Those of the launch template; EKS gives the cluster's own where it names none.

    https://docs.aws.amazon.com/eks/latest/userguide/launch-templates.html#launch-template-security-groups
    """
    named = [
        *(template.get("SecurityGroupIds") or ()),
        *(one for card in template.get("NetworkInterfaces") or () for one in card.get("Groups") or ()),
    ]
    return named or [cluster.resources_vpc_config["clusterSecurityGroupId"]]


def _rules(region: str, groups: Sequence[str]) -> Iterator[Any]:
    """Rules of security groups that let in HTTPS."""
    ec2 = ec2_backends[ACCOUNT][region]
    for id in groups:
        group = ec2.get_security_group_from_id(id)
        for rule in group.ingress_rules if group else ():
            if rule.ip_protocol == "-1" or rule.from_port <= HTTPS <= rule.to_port:
                yield rule


def _address_outside(region: str, subnet: str) -> str | None:
    """The address by which a subnet's machines are seen on the internet; None if they do not get there."""
    ec2 = ec2_backends[ACCOUNT][region]
    for route in _table(region, subnet).routes:
        if route.destination_cidr_block != EVERYWHERE:
            continue
        if route.nat_gateway is not None and route.nat_gateway.state == "available":
            return str(next((one["publicIp"] for one in route.nat_gateway.address_set if one.get("publicIp")), HERE))
        if route.gateway is not None and str(ec2.get_subnet(subnet).map_public_ip_on_launch).lower() == "true":
            return HERE
    return None


def _table(region: str, subnet: str) -> Any:
    """The route table of a subnet: its own, else its network's main one."""
    ec2 = ec2_backends[ACCOUNT][region]
    vpc = ec2.get_subnet(subnet).vpc_id
    tables = [table for table in ec2.route_tables.values() if table.vpc_id == vpc]
    own = [one for one in tables if subnet in (a.get("SubnetId") for a in one.associations)]
    return own[0] if own else next(one for one in tables if one.main_association_id)


def _endpoints(region: str, subnet: str) -> Iterator[str]:
    """AWS's services that have an endpoint in a subnet or in its route table."""
    table, ec2 = _table(region, subnet), ec2_backends[ACCOUNT][region]
    for endpoint in ec2.vpc_end_points.values():
        if subnet in (endpoint.subnet_ids or ()) or table.id in (endpoint.route_table_ids or ()):
            yield str(endpoint.service_name).removeprefix(f"com.amazonaws.{region}.")
