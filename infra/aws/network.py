"""A new VPC over the plan's zones: subnets, NAT and endpoints, so that weights never cross a NAT gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws.site import Site
from modelfleet.infra.planning.network import subnet_blocks
from modelfleet.infra.stack.schema import Network as NetworkConfig

#: Services that a node talks to, and then not through NAT: images, tokens, instance data, EKS, Pod Identity, logs,
#: scaling.
#: https://docs.aws.amazon.com/eks/latest/userguide/private-clusters.html
INTERFACE_SERVICES = ("autoscaling", "ec2", "ecr.api", "ecr.dkr", "eks", "eks-auth", "logs", "sts")


class Network(pulumi.ComponentResource):
    """Children: VPC, closed default group, a public and a private subnet per zone, gateway, NAT, routes, endpoints.

    `ready` is what a node needs to reach anything: routes and endpoints are made before the first node and deleted
    after the last one.
    """

    vpc_id: pulumi.Output[str]
    private_subnet_ids: Mapping[str, pulumi.Output[str]]
    public_subnet_ids: Sequence[pulumi.Output[str]]
    #: What a public subnet needs to reach the internet.
    way_out: Sequence[pulumi.Resource]
    ready: Sequence[pulumi.Resource]

    def __init__(
        self,
        name: str,
        site: Site,
        config: NetworkConfig,
        zones: tuple[str, ...],
        *,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:Network", name, None, opts)
        self._name, self._site, self._config, self._zones = name, site, config, zones
        self._blocks = subnet_blocks(config.cidr, len(zones))
        self._child = pulumi.ResourceOptions(parent=self)
        self._vpc = self._create_vpc()
        self.vpc_id = self._vpc.id
        private = self._create_private_subnets()
        public_table, way_out = self._create_public_table()
        public = self._create_public_subnets(public_table)
        tables, ways = self._create_private_tables(private, self._create_nats(public, way_out))
        self.ready = [*ways, self._create_s3_endpoint(tables)]
        if config.interface_endpoints:
            self.ready += self._create_interface_endpoints(private)
        self.way_out = [way_out]
        self.public_subnet_ids = [subnet.id for subnet in public.values()]
        self.private_subnet_ids = {zone: subnet.id for zone, subnet in private.items()}
        self.register_outputs({"vpc_id": self.vpc_id, "private_subnet_ids": dict(self.private_subnet_ids)})

    def _create_vpc(self) -> aws.ec2.Vpc:
        vpc = aws.ec2.Vpc(
            self._name,
            cidr_block=self._config.cidr,
            enable_dns_support=True,  # the private endpoint and interface endpoints need both
            enable_dns_hostnames=True,
            tags=self._site.tagged(self._name),
            opts=self._child,
        )
        # A group without rules: a resource that names no group reaches nothing.
        aws.ec2.DefaultSecurityGroup(
            f"{self._name}-default", vpc_id=vpc.id, tags=self._site.tagged(f"{self._name}-default"), opts=self._child
        )
        return vpc

    def _create_private_subnets(self) -> dict[str, aws.ec2.Subnet]:
        return {
            zone: aws.ec2.Subnet(
                f"{self._name}-private-{zone}",
                vpc_id=self._vpc.id,
                cidr_block=block,
                availability_zone=zone,
                tags=self._site.tagged(f"{self._name}-private-{zone}", **{"kubernetes.io/role/internal-elb": "1"}),
                opts=self._child,
            )
            for zone, block in zip(self._zones, self._blocks.private, strict=True)
        }

    def _create_public_table(self) -> tuple[aws.ec2.RouteTable, aws.ec2.Route]:
        gateway = aws.ec2.InternetGateway(
            self._name, vpc_id=self._vpc.id, tags=self._site.tagged(self._name), opts=self._child
        )
        table = self._create_table("public")
        route = aws.ec2.Route(
            f"{self._name}-public",
            route_table_id=table.id,
            destination_cidr_block="0.0.0.0/0",
            gateway_id=gateway.id,
            opts=self._child,
        )
        return table, route

    def _create_public_subnets(self, table: aws.ec2.RouteTable) -> dict[str, aws.ec2.Subnet]:
        subnets = {}
        for zone, block in zip(self._zones, self._blocks.public, strict=True):
            name = f"{self._name}-public-{zone}"
            subnets[zone] = aws.ec2.Subnet(
                name,
                vpc_id=self._vpc.id,
                cidr_block=block,
                availability_zone=zone,
                # Only load balancers and NAT live here, and they bring their own addresses.
                map_public_ip_on_launch=False,
                tags=self._site.tagged(name, **{"kubernetes.io/role/elb": "1"}),
                opts=self._child,
            )
            aws.ec2.RouteTableAssociation(name, subnet_id=subnets[zone].id, route_table_id=table.id, opts=self._child)
        return subnets

    def _create_nats(
        self, public: Mapping[str, aws.ec2.Subnet], way_out: aws.ec2.Route
    ) -> dict[str, aws.ec2.NatGateway]:
        """NAT gateways by the zone that uses them: the first zone's for all, or each zone's own."""
        wanted = {"single": self._zones[:1], "per-zone": self._zones}[self._config.nat]
        made = {}
        for zone in wanted:
            name = f"{self._name}-nat-{zone}"
            address = aws.ec2.Eip(name, domain="vpc", tags=self._site.tagged(name), opts=self._child)
            made[zone] = aws.ec2.NatGateway(
                name,
                subnet_id=public[zone].id,
                allocation_id=address.allocation_id,
                tags=self._site.tagged(name),
                # It fails if the VPC has no internet gateway, and the gateway cannot be deleted before the address.
                opts=pulumi.ResourceOptions(parent=self, depends_on=[way_out]),
            )
        return {zone: made.get(zone) or made[self._zones[0]] for zone in self._zones}

    def _create_private_tables(
        self, private: Mapping[str, aws.ec2.Subnet], nats: Mapping[str, aws.ec2.NatGateway]
    ) -> tuple[list[aws.ec2.RouteTable], list[pulumi.Resource]]:
        """A table per zone, and what makes it work: its association and its route."""
        tables: list[aws.ec2.RouteTable] = []
        ways: list[pulumi.Resource] = []
        for zone, subnet in private.items():
            name = f"{self._name}-private-{zone}"
            tables.append(table := self._create_table(f"private-{zone}"))
            ways.append(
                aws.ec2.RouteTableAssociation(name, subnet_id=subnet.id, route_table_id=table.id, opts=self._child)
            )
            route = aws.ec2.Route(
                name,
                route_table_id=table.id,
                destination_cidr_block="0.0.0.0/0",
                nat_gateway_id=nats[zone].id,
                opts=self._child,
            )
            ways.append(route)
        return tables, ways

    def _create_table(self, suffix: str) -> aws.ec2.RouteTable:
        name = f"{self._name}-{suffix}"
        return aws.ec2.RouteTable(name, vpc_id=self._vpc.id, tags=self._site.tagged(name), opts=self._child)

    def _create_s3_endpoint(self, tables: list[aws.ec2.RouteTable]) -> aws.ec2.VpcEndpoint:
        """On every private table: through NAT, 140 GB of weights at each cold start would cost 0.045 USD per GB."""
        return aws.ec2.VpcEndpoint(
            f"{self._name}-s3",
            vpc_id=self._vpc.id,
            service_name=f"com.amazonaws.{self._site.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[table.id for table in tables],
            tags=self._site.tagged(f"{self._name}-s3"),
            opts=self._child,
        )

    def _create_interface_endpoints(self, private: Mapping[str, aws.ec2.Subnet]) -> list[pulumi.Resource]:
        name = f"{self._name}-endpoints"
        group = aws.ec2.SecurityGroup(
            name,
            description="Interface endpoints: HTTPS from inside the VPC",
            vpc_id=self._vpc.id,
            tags=self._site.tagged(name),
            opts=self._child,
        )
        rule = aws.vpc.SecurityGroupIngressRule(
            name,
            security_group_id=group.id,
            ip_protocol="tcp",
            from_port=443,
            to_port=443,
            cidr_ipv4=self._config.cidr,
            tags=self._site.tagged(name),
            opts=self._child,
        )
        endpoints = [
            aws.ec2.VpcEndpoint(
                f"{self._name}-{service}",
                vpc_id=self._vpc.id,
                service_name=f"com.amazonaws.{self._site.region}.{service}",
                vpc_endpoint_type="Interface",
                private_dns_enabled=True,
                subnet_ids=[subnet.id for subnet in private.values()],
                security_group_ids=[group.id],
                tags=self._site.tagged(f"{self._name}-{service}"),
                opts=self._child,
            )
            for service in INTERFACE_SERVICES
        ]
        return [rule, *endpoints]
