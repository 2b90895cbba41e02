"""Node groups: the untainted system pool, and one per pool of the plan with its labels, taints and capacity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.launch_template import (
    ROOT_GIB_SYSTEM,
    efa_interfaces,
    launch_template,
    purchase_options,
    root_volume,
)
from modelfleet.infra.aws.scaling_tags import scaling_tags
from modelfleet.infra.aws.site import Site
from modelfleet.infra.names import POOL_LABEL, STACK_LABEL, SYSTEM_POOL
from modelfleet.infra.planning.plan import PoolPlan
from modelfleet.infra.stack.schema import Cluster as ClusterConfig

AMI_TYPE = "AL2023_x86_64_STANDARD"
GPU_AMI_TYPE = "AL2023_x86_64_NVIDIA"
CAPACITY_TYPES = {"on-demand": "ON_DEMAND", "spot": "SPOT", "capacity-block": "CAPACITY_BLOCK"}
EFFECTS = {"NoSchedule": "NO_SCHEDULE", "NoExecute": "NO_EXECUTE", "PreferNoSchedule": "PREFER_NO_SCHEDULE"}
#: MINIMAL ends an old node before it starts a new one, because spare GPUs for a surge are rarely available. One node
#: at a time, so that an update never takes down a whole pool. EKS API, NodegroupUpdateConfig.
UPDATE: aws.eks.NodeGroupUpdateConfigArgsDict = {"max_unavailable": 1, "update_strategy": "MINIMAL"}
#: One repair at a time; none when over half a pool is unhealthy, because the nodes are then not the cause.
REPAIR: aws.eks.NodeGroupNodeRepairConfigArgsDict = {
    "enabled": True,
    "max_parallel_nodes_repaired_count": 1,
    "max_unhealthy_node_threshold_percentage": 50,
}
NODE_POLICIES = ("AmazonEKSWorkerNodeMinimalPolicy", "AmazonEC2ContainerRegistryPullOnly")


class NodeRole(pulumi.ComponentResource):
    """The role of all nodes: join the cluster and pull images; no S3, no CNI (pods have their own roles)."""

    arn: pulumi.Output[str]
    ready: Sequence[pulumi.Resource]

    def __init__(self, name: str, site: Site, *, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("modelfleet:aws:NodeRole", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        role = aws.iam.Role(
            name,
            assume_role_policy=json.dumps(policies.service_trust("ec2.amazonaws.com")),
            tags=site.tagged(name),
            opts=child,
        )
        self.ready = [
            aws.iam.RolePolicyAttachment(
                f"{name}-{policy}",
                role=role.name,
                policy_arn=f"arn:{site.partition}:iam::aws:policy/{policy}",
                opts=child,
            )
            for policy in NODE_POLICIES
        ]
        self.arn = role.arn
        self.register_outputs({"arn": self.arn})


class SystemPool(pulumi.ComponentResource):
    """Children: launch template and node group for the Ray head, the operator, the gateway and the add-ons."""

    node_group: aws.eks.NodeGroup

    def __init__(
        self,
        name: str,
        site: Site,
        config: ClusterConfig,
        *,
        cluster: aws.eks.Cluster,
        role: NodeRole,
        subnet_ids: Sequence[pulumi.Input[str]],
        after: Sequence[pulumi.Resource],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:SystemPool", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        labels = {STACK_LABEL: site.stack, POOL_LABEL: SYSTEM_POOL}
        template = launch_template(
            name, site, volume=root_volume(ROOT_GIB_SYSTEM, fast=False), gpu=False, labels=labels, opts=child
        )
        self.node_group = aws.eks.NodeGroup(
            name,
            cluster_name=cluster.name,
            node_group_name_prefix=f"{SYSTEM_POOL}-",
            node_role_arn=role.arn,
            subnet_ids=list(subnet_ids),
            ami_type=AMI_TYPE,
            release_version=config.node_release,
            version=config.version,
            instance_types=[config.system_instance_type],
            capacity_type=CAPACITY_TYPES["on-demand"],
            scaling_config={
                "min_size": config.system_nodes,
                "desired_size": config.system_nodes,
                "max_size": config.system_nodes,
            },
            labels=labels,
            update_config=UPDATE,
            node_repair_config=REPAIR,
            launch_template={"id": template.id, "version": template.latest_version.apply(str)},
            tags=site.tagged(name, **{POOL_LABEL: SYSTEM_POOL}),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[*role.ready, *after]),
        )
        self.register_outputs({"name": self.node_group.node_group_name})


class NodeGroups(pulumi.ComponentResource):
    """Children: a launch template, a node group and the tags for scaling from zero, per pool of the plan."""

    groups: Mapping[str, aws.eks.NodeGroup]

    def __init__(
        self,
        name: str,
        site: Site,
        pools: Sequence[PoolPlan],
        *,
        config: ClusterConfig,
        cluster: aws.eks.Cluster,
        security_group_id: pulumi.Input[str],
        role: NodeRole,
        subnet_ids: Mapping[str, Sequence[pulumi.Input[str]]],
        after: Sequence[pulumi.Resource],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:NodeGroups", name, None, opts)
        self._name, self._site, self._config = name, site, config
        self._cluster, self._security_group_id, self._role = cluster, security_group_id, role
        self._first = [*role.ready, *after]
        self.groups = {pool.name: self._create_group(pool, subnet_ids[pool.name]) for pool in pools}
        self.register_outputs({"groups": {name: group.node_group_name for name, group in self.groups.items()}})

    def _create_group(self, pool: PoolPlan, subnet_ids: Sequence[pulumi.Input[str]]) -> aws.eks.NodeGroup:
        name = f"{self._name}-{pool.name}"
        template = self._create_template(name, pool)
        group = aws.eks.NodeGroup(
            name,
            cluster_name=self._cluster.name,
            # A prefix, not a name: the replacement is made before the old group is deleted.
            node_group_name_prefix=f"{pool.name}-",
            node_role_arn=self._role.arn,
            subnet_ids=list(subnet_ids),
            ami_type=GPU_AMI_TYPE if pool.node.gpus else AMI_TYPE,
            release_version=self._config.node_release,
            version=self._config.version,
            instance_types=None if pool.purchase == "capacity-block" else list(pool.instance_types),
            capacity_type=CAPACITY_TYPES[pool.purchase],
            # The minimum is the stack file's, so that adding a model to a pool changes no node group.
            scaling_config={
                "min_size": pool.floor_nodes,
                "desired_size": pool.min_nodes,
                "max_size": pool.max_nodes,
            },
            labels=dict(pool.labels),
            taints=[{"key": t.key, "value": t.value, "effect": EFFECTS[t.effect]} for t in pool.taints],
            update_config=UPDATE,
            node_repair_config=REPAIR,
            launch_template={"id": template.id, "version": template.latest_version.apply(str)},
            tags=self._site.tagged(name, **{POOL_LABEL: pool.name}),
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=self._first,
                # The autoscaler owns the desired size. Ignored on a component (pulumi-eks#709), so set here.
                ignore_changes=["scalingConfig.desiredSize"],
            ),
        )
        self._create_scaling_tags(name, pool, group)
        return group

    def _create_template(self, name: str, pool: PoolPlan) -> aws.ec2.LaunchTemplate:
        more: dict[str, Any] = purchase_options(pool)
        if pool.efa:
            more["network_interfaces"] = efa_interfaces(pool, [self._security_group_id])
        return launch_template(
            name,
            self._site,
            volume=root_volume(pool.node.root_gib, fast=True),
            gpu=bool(pool.node.gpus),
            labels={STACK_LABEL: self._site.stack, POOL_LABEL: pool.name},
            opts=pulumi.ResourceOptions(parent=self),
            **more,
        )

    def _create_scaling_tags(self, name: str, pool: PoolPlan, group: aws.eks.NodeGroup) -> None:
        asg = group.resources.apply(
            lambda found: next(asg.name for one in found or () for asg in one.autoscaling_groups or ())
        )
        for short, (key, value) in scaling_tags(pool).items():
            aws.autoscaling.Tag(
                f"{name}-{short}",
                autoscaling_group_name=asg,
                tag={"key": key, "value": value, "propagate_at_launch": False},
                opts=pulumi.ResourceOptions(parent=self),
            )
