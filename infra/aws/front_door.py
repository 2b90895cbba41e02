"""The front door of a stack on EKS: an Application Load Balancer, its certificate and its name in DNS.

The program makes it, not a controller in the cluster: a preview shows it, and `destroy` leaves none behind. The AWS
Load Balancer Controller registers the gateway's pods with its target group, see
`infra/kubernetes/manifests/load_balancer.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws.site import Site
from modelfleet.infra.planning.plan import FrontDoor as FrontDoorPlan
from modelfleet.infra.stack.schema import Gateway

#: TLS 1.3 and 1.2 with forward secrecy.
#: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/describe-ssl-policies.html
TLS_POLICY = "ELBSecurityPolicy-TLS13-1-2-2021-06"
#: The longest name of a load balancer and of a target group.
#: https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_CreateLoadBalancer.html
LONGEST_NAME = 32


class FrontDoor(pulumi.ComponentResource):
    """Children: security groups' rules, load balancer, target group, listener; certificate and records by `zone`, the
    association with AWS WAF by `webAcl`.

    `zone_id` is that of the stack file's `zone`; `first` is made before the load balancer.
    """

    target_group_arn: pulumi.Output[str]
    dns_name: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        site: Site,
        door: FrontDoorPlan,
        settings: Gateway,
        *,
        vpc_id: pulumi.Input[str],
        subnet_ids: Sequence[pulumi.Input[str]],
        cluster_group_id: pulumi.Input[str],
        zone_id: str,
        first: Sequence[pulumi.Resource],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:FrontDoor", name, None, opts)
        self._name, self._site, self._door, self._settings = name, site, door, settings
        self._child = pulumi.ResourceOptions(parent=self)
        group = self._create_group(vpc_id, cluster_group_id)
        balancer = self._create_balancer(subnet_ids, group, first)
        targets = self._create_targets(vpc_id)
        certificate = settings.certificate or (self._create_certificate(zone_id) if settings.zone else None)
        listener = self._create_listener(balancer, targets, certificate)
        if settings.zone:
            self._create_record(balancer, zone_id)
        if settings.web_acl:
            self._create_association(balancer, settings.web_acl)
        # Only a target group that a listener uses checks its targets, and only checked pods become ready.
        self.target_group_arn = pulumi.Output.all(targets.arn, listener.arn).apply(lambda arns: str(arns[0]))
        self.dns_name = balancer.dns_name
        self.register_outputs({"dns_name": self.dns_name, "target_group_arn": self.target_group_arn})

    @property
    def _listens(self) -> int:
        return 443 if self._door.tls else 80

    def _create_group(self, vpc_id: pulumi.Input[str], cluster_group_id: pulumi.Input[str]) -> aws.ec2.SecurityGroup:
        """The load balancer's own group: clients' networks come in, the gateway's port is all it reaches."""
        group = aws.ec2.SecurityGroup(
            self._name,
            description="Front door of the gateway",
            vpc_id=vpc_id,
            tags=self._site.tagged(self._name),
            opts=self._child,
        )
        for cidr in self._door.allow_cidrs:
            # With the port in its name: another port is another rule, so that none has to be changed in place.
            name = f"{self._name}-{self._listens}-from-{cidr.replace('/', '-')}"
            aws.vpc.SecurityGroupIngressRule(
                name,
                security_group_id=group.id,
                description="Clients",
                ip_protocol="tcp",
                from_port=self._listens,
                to_port=self._listens,
                cidr_ipv4=cidr,
                tags=self._site.tagged(name),
                opts=self._child,
            )
        port = self._door.port
        aws.vpc.SecurityGroupEgressRule(
            self._name,
            security_group_id=group.id,
            referenced_security_group_id=cluster_group_id,
            tags=self._site.tagged(self._name),
            description="Gateway",
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            opts=self._child,
        )
        # Nodes, and with them pods, have the cluster's own group.
        aws.vpc.SecurityGroupIngressRule(
            self._name,
            security_group_id=cluster_group_id,
            referenced_security_group_id=group.id,
            tags=self._site.tagged(self._name),
            description="Gateway",
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            opts=self._child,
        )
        return group

    def _create_balancer(
        self, subnet_ids: Sequence[pulumi.Input[str]], group: aws.ec2.SecurityGroup, first: Sequence[pulumi.Resource]
    ) -> aws.lb.LoadBalancer:
        return aws.lb.LoadBalancer(
            self._name,
            name=short_name(self._site.cluster_name),
            load_balancer_type="application",
            internal=not self._door.internet,
            subnets=list(subnet_ids),
            security_groups=[group.id],
            idle_timeout=self._door.idle_s,
            drop_invalid_header_fields=True,
            enable_deletion_protection=self._site.protect,
            tags=self._site.tagged(self._name),
            # Its name is fixed, and its target group has room for one load balancer. On the internet it needs the route
            # of its subnets first.
            opts=pulumi.ResourceOptions(
                parent=self, depends_on=list(first), protect=self._site.protect, delete_before_replace=True
            ),
        )

    def _create_targets(self, vpc_id: pulumi.Input[str]) -> aws.lb.TargetGroup:
        """The gateway's pods by address. Few long requests make a pod busy, so the least open ones decide."""
        return aws.lb.TargetGroup(
            self._name,
            name=short_name(self._site.cluster_name),
            target_type="ip",
            protocol="HTTP",
            port=self._door.port,
            vpc_id=vpc_id,
            deregistration_delay=self._door.drain_s,
            load_balancing_algorithm_type="least_outstanding_requests",
            health_check={
                "protocol": "HTTP",
                "path": "/health",
                "matcher": "200",
                "interval": 5,
                "timeout": 4,
                "healthy_threshold": 2,
                "unhealthy_threshold": 2,
            },
            tags=self._site.tagged(self._name),
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )

    def _create_certificate(self, zone_id: str) -> pulumi.Output[str]:
        """A certificate for the host name that renews itself, as long as its record stays in the zone."""
        certificate = aws.acm.Certificate(
            self._name,
            domain_name=self._settings.hostname,
            validation_method="DNS",
            tags=self._site.tagged(self._name),
            opts=self._child,
        )
        asked = certificate.domain_validation_options[0]
        record = aws.route53.Record(
            f"{self._name}-validation",
            zone_id=zone_id,
            name=asked.resource_record_name,
            type=asked.resource_record_type,
            records=[asked.resource_record_value],
            ttl=60,
            opts=self._child,
        )
        validated = aws.acm.CertificateValidation(
            self._name,
            certificate_arn=certificate.arn,
            validation_record_fqdns=[record.fqdn],
            opts=self._child,
        )
        return validated.certificate_arn

    def _create_listener(
        self,
        balancer: aws.lb.LoadBalancer,
        targets: aws.lb.TargetGroup,
        certificate: pulumi.Input[str] | None,
    ) -> aws.lb.Listener:
        """One port. With TLS none answers in plain text: a redirect would come after the key was sent."""
        return aws.lb.Listener(
            self._name,
            load_balancer_arn=balancer.arn,
            port=self._listens,
            protocol="HTTPS" if self._door.tls else "HTTP",
            certificate_arn=certificate,
            ssl_policy=None if certificate is None else TLS_POLICY,
            default_actions=[{"type": "forward", "target_group_arn": targets.arn}],
            tags=self._site.tagged(self._name),
            opts=self._child,
        )

    def _create_record(self, balancer: aws.lb.LoadBalancer, zone_id: str) -> None:
        aws.route53.Record(
            self._name,
            zone_id=zone_id,
            name=self._settings.hostname,
            type="A",
            aliases=[{"name": balancer.dns_name, "zone_id": balancer.zone_id, "evaluate_target_health": True}],
            opts=self._child,
        )

    def _create_association(self, balancer: aws.lb.LoadBalancer, web_acl: str) -> None:
        """The web ACL stays its maker's: who runs the firewall is often somebody else."""
        aws.wafv2.WebAclAssociation(
            self._name,
            resource_arn=balancer.arn,
            web_acl_arn=web_acl,
            # Dissociating names the load balancer alone, so it would take away the new web ACL (pulumi-aws#4782).
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )


def short_name(name: str) -> str:
    """The name, or its beginning and a hash where it is too long for a load balancer."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
