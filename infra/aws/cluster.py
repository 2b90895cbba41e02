"""The EKS control plane: API access entries, private endpoint, encrypted secrets, logs, deletion protection."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.kubeconfig import kubeconfig
from modelfleet.infra.aws.site import Site
from modelfleet.infra.stack.schema import Cluster as ClusterConfig

LOG_TYPES = ["api", "audit", "authenticator", "controllerManager", "scheduler"]
LOG_RETENTION_DAYS = 90
KEY_DELETION_DAYS = 30
ADMIN_POLICY = "cluster-access-policy/AmazonEKSClusterAdminPolicy"


class Cluster(pulumi.ComponentResource):
    """Children: key and alias, log groups, role, cluster, and an access entry with its policy per administrator.

    `pod_log_days` is how long what pods write is kept; without it that has no log group.
    """

    cluster: aws.eks.Cluster
    name: pulumi.Output[str]
    kubeconfig: pulumi.Output[str]
    security_group_id: pulumi.Output[str]
    access: list[pulumi.Resource]
    #: The log group of what pods write, if there is one. What writes to it is made after it and deleted before it.
    pod_logs: list[pulumi.Resource]

    def __init__(
        self,
        name: str,
        site: Site,
        config: ClusterConfig,
        *,
        subnet_ids: Sequence[pulumi.Input[str]],
        administrators: Sequence[str],
        has_log_group: bool,
        pod_log_days: int | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:Cluster", name, None, opts)
        self._name, self._site, self._config = name, site, config
        self._child = pulumi.ResourceOptions(parent=self)
        key = self._create_key()
        logs = self._create_log_group(key, exists=has_log_group)
        self.pod_logs = [self._create_pods_log_group(key, pod_log_days)] if pod_log_days else []
        role, attached = self._create_role()
        self.cluster = self._create_cluster(subnet_ids, role, key, [attached, logs])
        self.access = [self._create_access(arn) for arn in sorted(set(administrators))]
        self.name = self.cluster.name
        self.security_group_id = self.cluster.vpc_config.cluster_security_group_id.apply(str)
        # A workload's provider needs them as much as an access entry: they are made before it and deleted after it.
        self.access += self._create_ways_in()
        self.kubeconfig = pulumi.Output.secret(self._kubeconfig())
        self.register_outputs({"name": self.name, "endpoint": self.cluster.endpoint})

    def _create_key(self) -> aws.kms.Key:
        site = self._site
        policy = policies.cluster_key(
            partition=site.partition, region=site.region, account=site.account, log_groups=site.log_groups
        )
        key = aws.kms.Key(
            self._name,
            description=f"Secrets and logs of the EKS cluster {site.cluster_name}",
            enable_key_rotation=True,
            deletion_window_in_days=KEY_DELETION_DAYS,
            policy=json.dumps(policy),
            tags=site.tagged(self._name),
            opts=pulumi.ResourceOptions(parent=self, protect=site.protect),
        )
        aws.kms.Alias(self._name, name=f"alias/{site.cluster_name}", target_key_id=key.id, opts=self._child)
        return key

    def _create_log_group(self, key: aws.kms.Key, *, exists: bool) -> aws.cloudwatch.LogGroup:
        """Made before the cluster, because EKS would otherwise make its own, without retention or a key.

        One that exists is adopted: EKS writes logs after a cluster was deleted and then makes its group again
        (terraform-aws-eks#2763), under the one name that the next cluster must have. An import of what is in the state
        already does nothing.
        """
        return aws.cloudwatch.LogGroup(
            self._name,
            name=self._site.log_group,
            retention_in_days=LOG_RETENTION_DAYS,
            kms_key_id=key.arn,
            tags=self._site.tagged(self._name),
            opts=pulumi.ResourceOptions(parent=self, import_=self._site.log_group if exists else None),
        )

    def _create_pods_log_group(self, key: aws.kms.Key, days: int) -> aws.cloudwatch.LogGroup:
        """The stack's, so that `down` deletes it; nothing of the cluster may make it again."""
        name = f"{self._name}-pods"
        return aws.cloudwatch.LogGroup(
            name,
            name=self._site.pods_log_group,
            retention_in_days=days,
            kms_key_id=key.arn,
            tags=self._site.tagged(name),
            opts=self._child,
        )

    def _create_role(self) -> tuple[aws.iam.Role, pulumi.Resource]:
        role = aws.iam.Role(
            self._name,
            assume_role_policy=json.dumps(policies.service_trust("eks.amazonaws.com")),
            tags=self._site.tagged(self._name),
            opts=self._child,
        )
        attached = aws.iam.RolePolicyAttachment(
            self._name,
            role=role.name,
            policy_arn=f"arn:{self._site.partition}:iam::aws:policy/AmazonEKSClusterPolicy",
            opts=self._child,
        )
        return role, attached

    def _create_cluster(
        self,
        subnet_ids: Sequence[pulumi.Input[str]],
        role: aws.iam.Role,
        key: aws.kms.Key,
        first: list[pulumi.Resource],
    ) -> aws.eks.Cluster:
        cidrs = self._config.public_access_cidrs
        network: aws.eks.ClusterVpcConfigArgsDict = {
            "subnet_ids": list(subnet_ids),
            "endpoint_private_access": True,
            "endpoint_public_access": bool(cidrs),
        }
        if cidrs:
            network["public_access_cidrs"] = cidrs
        return aws.eks.Cluster(
            self._name,
            name=self._site.cluster_name,
            version=self._config.version,
            role_arn=role.arn,
            # No aws-auth and no hidden administrator: access entries alone decide who has access.
            access_config={"authentication_mode": "API", "bootstrap_cluster_creator_admin_permissions": False},
            vpc_config=network,
            encryption_config={"resources": ["secrets"], "provider": {"key_arn": key.arn}},
            enabled_cluster_log_types=LOG_TYPES,
            # EXTENDED, the default, costs six times as much per hour after 14 months.
            upgrade_policy={"support_type": "STANDARD"},
            deletion_protection=self._site.protect,
            bootstrap_self_managed_addons=False,
            tags=self._site.tagged(self._name),
            # Its name is fixed (the log group contains it), so the old cluster is deleted before the new one is made.
            opts=pulumi.ResourceOptions(
                parent=self, depends_on=first, protect=self._site.protect, delete_before_replace=True
            ),
        )

    def _create_access(self, principal_arn: str) -> pulumi.Resource:
        """An administrator's access entry, named by role so that adding a role later changes no other entry."""
        name = f"{self._name}-{principal_arn.rpartition('/')[2]}"
        entry = aws.eks.AccessEntry(
            name,
            cluster_name=self.cluster.name,
            principal_arn=principal_arn,
            type="STANDARD",
            tags=self._site.tagged(name),
            opts=self._child,
        )
        return aws.eks.AccessPolicyAssociation(
            name,
            cluster_name=self.cluster.name,
            principal_arn=entry.principal_arn,
            policy_arn=f"arn:{self._site.partition}:eks::aws:{ADMIN_POLICY}",
            access_scope={"type": "cluster"},
            opts=self._child,
        )

    def _create_ways_in(self) -> list[pulumi.Resource]:
        """Rules of the cluster's own security group, which the private endpoint has: 443 for networks and groups.

        Nodes have the group too, and nothing of theirs listens on 443.
        https://docs.aws.amazon.com/eks/latest/userguide/sec-group-reqs.html
        """
        networks = [self._create_way_in(cidr, cidr=cidr) for cidr in self._config.private_access_cidrs]
        groups = [self._create_way_in(group, group=group) for group in self._config.private_access_security_group_ids]
        return [*networks, *groups]

    def _create_way_in(self, source: str, *, cidr: str | None = None, group: str | None = None) -> pulumi.Resource:
        """Named by who comes in, so that one more changes no other rule."""
        name = f"{self._name}-from-{source.replace('/', '-')}"
        return aws.vpc.SecurityGroupIngressRule(
            name,
            security_group_id=self.security_group_id,
            description="API server",
            ip_protocol="tcp",
            from_port=443,
            to_port=443,
            cidr_ipv4=cidr,
            referenced_security_group_id=group,
            tags=self._site.tagged(name),
            opts=self._child,
        )

    def _kubeconfig(self) -> pulumi.Output[str]:
        return pulumi.Output.all(
            name=self.cluster.name,
            endpoint=self.cluster.endpoint,
            authority=self.cluster.certificate_authority.data,
        ).apply(
            lambda known: kubeconfig(
                name=known["name"],
                endpoint=known["endpoint"],
                certificate_authority=known["authority"],
                region=self._site.region,
                profile=pulumi.Config("aws").get("profile"),
            )
        )
