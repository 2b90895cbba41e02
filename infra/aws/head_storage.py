"""A Valkey of ElastiCache for the state of Ray's head, so that a head that dies comes back to its replicas."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws.names import store_id
from modelfleet.infra.aws.site import Site
from modelfleet.infra.planning.plan import HeadStoragePlan

PORT: Final = 6379
#: The engine nearest to the Redis 7 that this was tried with.
#: https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/supported-engine-versions.html
ENGINE_VERSION: Final = "7.2"
#: Hexadecimal digits are among the characters that a token may have, of which it has 16 to 128.
#: https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/auth.html
TOKEN_BYTES: Final = 32


class HeadStorage(pulumi.ComponentResource):
    """Children: subnet group, security group with one rule, replication group.

    The password is made by the first run and stays in the state, encrypted. There are no snapshots: an old state of a
    Ray cluster is worth nothing.
    """

    address: pulumi.Output[str]
    password: pulumi.Output[str]
    ready: Sequence[pulumi.Resource]

    def __init__(
        self,
        name: str,
        site: Site,
        plan: HeadStoragePlan,
        *,
        vpc_id: pulumi.Input[str],
        subnet_ids: Sequence[pulumi.Input[str]],
        nodes_group_id: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:HeadStorage", name, None, opts)
        self._name, self._site, self._plan = name, site, plan
        self._child = pulumi.ResourceOptions(parent=self)
        subnets = self._create_subnet_group(subnet_ids)
        group = self._create_security_group(vpc_id)
        rule = self._create_way_in(group, nodes_group_id)
        store = self._create_store(subnets, group)
        self.address = pulumi.Output.format("rediss://{0}:{1}", store.primary_endpoint_address, PORT)
        self.password = pulumi.Output.secret(store.auth_token.apply(str))
        self.ready = [store, rule]
        self.register_outputs({"address": self.address})

    def _create_subnet_group(self, subnet_ids: Sequence[pulumi.Input[str]]) -> aws.elasticache.SubnetGroup:
        return aws.elasticache.SubnetGroup(
            self._name,
            name=store_id(self._site.stack),
            description="Subnets of the store of the Ray head",
            subnet_ids=list(subnet_ids),
            tags=self._site.tagged(self._name),
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )

    def _create_security_group(self, vpc_id: pulumi.Input[str]) -> aws.ec2.SecurityGroup:
        return aws.ec2.SecurityGroup(
            self._name,
            description="Store of the Ray head: from the nodes of the cluster",
            vpc_id=vpc_id,
            tags=self._site.tagged(self._name),
            opts=self._child,
        )

    def _create_way_in(self, group: aws.ec2.SecurityGroup, nodes_group_id: pulumi.Input[str]) -> pulumi.Resource:
        """Pods have their node's security groups, so a policy in the cluster says which pods these are."""
        return aws.vpc.SecurityGroupIngressRule(
            self._name,
            security_group_id=group.id,
            description="Ray head",
            ip_protocol="tcp",
            from_port=PORT,
            to_port=PORT,
            referenced_security_group_id=nodes_group_id,
            tags=self._site.tagged(self._name),
            opts=self._child,
        )

    def _create_store(
        self, subnets: aws.elasticache.SubnetGroup, group: aws.ec2.SecurityGroup
    ) -> aws.elasticache.ReplicationGroup:
        several = self._plan.nodes > 1
        return aws.elasticache.ReplicationGroup(
            self._name,
            replication_group_id=store_id(self._site.stack),
            description=f"State of the Ray head of the modelfleet stack {self._site.stack}",
            engine="valkey",
            engine_version=ENGINE_VERSION,
            node_type=self._plan.node_type,
            num_cache_clusters=self._plan.nodes,
            automatic_failover_enabled=several,
            multi_az_enabled=several,
            port=PORT,
            subnet_group_name=subnets.name,
            security_group_ids=[group.id],
            at_rest_encryption_enabled=True,
            transit_encryption_enabled=True,
            auth_token=pulumi.Output.secret(secrets.token_hex(TOKEN_BYTES)),
            snapshot_retention_limit=0,
            apply_immediately=True,
            tags=self._site.tagged(self._name),
            # Each run makes a token, and only the first one's is used: it is in the state, and the Secret has it from
            # there. The id is fixed, so the old store goes before the new one.
            opts=pulumi.ResourceOptions(parent=self, ignore_changes=["authToken"], delete_before_replace=True),
        )
