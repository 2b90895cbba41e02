"""Node groups: of the untainted system pool one per zone, of each pool of the plan one per rung and zone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.launch_template import launch_template, purchase_options, root_volume
from modelfleet.infra.aws.scaling_tags import disk_tag, scaling_tags
from modelfleet.infra.aws.site import Site
from modelfleet.infra.names import POOL_LABEL, STACK_LABEL, SYSTEM_POOL
from modelfleet.infra.planning.plan import PoolPlan, Rung, SystemPlan
from modelfleet.infra.planning.zone_sizes import GroupSize, zone_sizes
from modelfleet.infra.stack.schema import Cluster as ClusterConfig

AMI_TYPE = "AL2023_x86_64_STANDARD"
GPU_AMI_TYPE = "AL2023_x86_64_NVIDIA"
#: To EKS a reservation is on demand; the launch template names it.
CAPACITY_TYPES = {
    "reservation": "ON_DEMAND",
    "capacity-block": "CAPACITY_BLOCK",
    "spot": "SPOT",
    "on-demand": "ON_DEMAND",
}
EFFECTS = {"NoSchedule": "NO_SCHEDULE", "NoExecute": "NO_EXECUTE", "PreferNoSchedule": "PREFER_NO_SCHEDULE"}
#: MINIMAL ends an old node before it starts a new one, because spare GPUs for a surge are rarely available. One node
#: at a time, so that an update never takes down a whole pool. System nodes can be had, so their update starts the new
#: one first (DEFAULT): what runs there needs a place to go. EKS API, NodegroupUpdateConfig.
UPDATE: aws.eks.NodeGroupUpdateConfigArgsDict = {"max_unavailable": 1, "update_strategy": "MINIMAL"}
#: One repair at a time. A group is one zone of a pool and often has one node, so no share of it stops the repair: EKS
#: repairs nothing above this percentage. EKS API, NodeRepairConfig.
REPAIR: aws.eks.NodeGroupNodeRepairConfigArgsDict = {
    "enabled": True,
    "max_parallel_nodes_repaired_count": 1,
    "max_unhealthy_node_threshold_percentage": 100,
}
#: nodeadm asks EC2 for the node's name, which AmazonEKSWorkerNodeMinimalPolicy does not allow: the node never joins
#: (awslabs/amazon-eks-ami nodeadm/internal/api/status.go). AWS names these two policies:
#: https://docs.aws.amazon.com/eks/latest/userguide/create-node-role.html
NODE_POLICIES = ("AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly")

#: Subnets by zone.
Subnets = Mapping[str, Sequence[pulumi.Input[str]]]


@dataclass(frozen=True)
class NodeSettings:
    """What all node groups of a cluster share. `first` is what must exist before a node starts.

    `live` is the size of every node group that exists, by its tag `Name`.
    """

    site: Site
    config: ClusterConfig
    cluster: aws.eks.Cluster
    role: NodeRole
    live: Mapping[str, int]
    first: Sequence[pulumi.Resource]


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
    """Children: launch template, and per zone a node group and its tag, for Ray head, operator, gateway, add-ons."""

    groups: Mapping[str, aws.eks.NodeGroup]

    def __init__(
        self,
        name: str,
        plan: SystemPlan,
        *,
        nodes: NodeSettings,
        subnets: Subnets,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:SystemPool", name, None, opts)
        site, child = nodes.site, pulumi.ResourceOptions(parent=self)
        labels = {STACK_LABEL: site.stack, POOL_LABEL: SYSTEM_POOL}
        volume = root_volume(plan.root_gib, fast=False)
        template = launch_template(name, site, volume=volume, gpu=False, labels=labels, opts=child)
        own = {
            "ami_type": AMI_TYPE,
            "instance_types": [plan.instance_type],
            "capacity_type": CAPACITY_TYPES["on-demand"],
            "update_config": {**UPDATE, "update_strategy": "DEFAULT"},
            "labels": labels,
        }
        self.groups = _groups(
            name, (SYSTEM_POOL, SYSTEM_POOL), nodes, subnets, template, own,
            least=plan.min_nodes, most=plan.max_nodes, before=(), parent=self,
        )  # fmt: skip
        for zone, group in self.groups.items():
            _tag(f"{name}-{zone}", disk_tag(plan.disk_gb), group, parent=self)
        self.register_outputs({"groups": {zone: group.node_group_name for zone, group in self.groups.items()}})


class NodeGroups(pulumi.ComponentResource):
    """Children, per rung of each pool: a launch template, and per zone a node group and tags for scaling from zero.

    `groups` are by rung (`Rung.group`), then by zone.
    """

    groups: Mapping[str, Mapping[str, aws.eks.NodeGroup]]

    def __init__(
        self,
        name: str,
        pools: Sequence[PoolPlan],
        *,
        nodes: NodeSettings,
        subnets: Mapping[str, Subnets],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`subnets` are those of each rung's zones, by `Rung.group`."""
        super().__init__("modelfleet:aws:NodeGroups", name, None, opts)
        self._name, self._nodes = name, nodes
        self.groups = {group: own for pool in pools for group, own in self._create_pool(pool, subnets).items()}
        self.register_outputs(
            {"groups": {f"{p}-{z}": g.node_group_name for p, own in self.groups.items() for z, g in own.items()}}
        )

    def _create_pool(self, pool: PoolPlan, subnets: Mapping[str, Subnets]) -> dict[str, dict[str, aws.eks.NodeGroup]]:
        made: dict[str, dict[str, aws.eks.NodeGroup]] = {}
        for rung in pool.rungs:
            before = [group for own in made.values() for group in own.values()][-1:]
            made[rung.group] = self._create_rung(pool, rung, subnets[rung.group], before)
        return made

    def _create_rung(
        self, pool: PoolPlan, rung: Rung, subnets: Subnets, before: Sequence[pulumi.Resource]
    ) -> dict[str, aws.eks.NodeGroup]:
        name = f"{self._name}-{rung.group}"
        template = launch_template(
            name,
            self._nodes.site,
            volume=root_volume(pool.node.root_gib, fast=True),
            gpu=bool(pool.node.gpus),
            labels={STACK_LABEL: self._nodes.site.stack, POOL_LABEL: pool.name},
            opts=pulumi.ResourceOptions(parent=self),
            **purchase_options(rung),
        )
        own = {
            "ami_type": GPU_AMI_TYPE if pool.node.gpus else AMI_TYPE,
            "instance_types": None if rung.purchase == "capacity-block" else list(rung.instance_types),
            "capacity_type": CAPACITY_TYPES[rung.purchase],
            "update_config": UPDATE,
            "labels": dict(rung.labels),
            "taints": [{"key": t.key, "value": t.value, "effect": EFFECTS[t.effect]} for t in pool.taints],
        }
        # The minimum is the stack file's, so that adding a model to a pool changes no node group. A new group starts
        # there too: nodes for models are bought when Ray asks for them, which is when they can work.
        groups = _groups(
            name, (pool.name, rung.group), self._nodes, subnets, template, own,
            least=rung.floor_nodes, most=pool.max_nodes, before=before, parent=self,
        )  # fmt: skip
        for zone, group in groups.items():
            _tag(f"{name}-{zone}", scaling_tags(pool), group, parent=self)
        return groups


def _tag(name: str, tags: Mapping[str, tuple[str, str]], group: aws.eks.NodeGroup, *, parent: pulumi.Resource) -> None:
    """Tags of the group's Auto Scaling group, as `scaling_tags` gives them."""
    asg = group.resources.apply(
        lambda found: next(asg.name for one in found or () for asg in one.autoscaling_groups or ())
    )
    for short, (key, value) in tags.items():
        aws.autoscaling.Tag(
            f"{name}-{short}",
            autoscaling_group_name=asg,
            tag={"key": key, "value": value, "propagate_at_launch": False},
            opts=pulumi.ResourceOptions(parent=parent),
        )


def _groups(
    name: str,
    rung: tuple[str, str],
    nodes: NodeSettings,
    subnets: Subnets,
    template: aws.ec2.LaunchTemplate,
    own: Mapping[str, Any],
    *,
    least: int,
    most: int,
    before: Sequence[pulumi.Resource],
    parent: pulumi.Resource,
) -> dict[str, aws.eks.NodeGroup]:
    """A node group per zone of a rung, which is given by its pool and its own name.

    `own` is what only its groups have; `before` is the pool's group that comes first.
    """
    live = {zone: nodes.live[f"{name}-{zone}"] for zone in subnets if f"{name}-{zone}" in nodes.live}
    sizes = zone_sizes(tuple(subnets), least=least, most=most, live=live)
    made: dict[str, aws.eks.NodeGroup] = {}
    for zone in subnets:
        # One group after another: an update drains a node of each group that it changes, and a pool's groups are one.
        last = list(made.values())[-1:] or before
        after = [*nodes.role.ready, *nodes.first, *last]
        made[zone] = _group(
            f"{name}-{zone}", (*rung, zone), nodes, subnets[zone], template, own, sizes[zone], after, parent
        )
    return made


def _group(
    name: str,
    place: tuple[str, str, str],
    nodes: NodeSettings,
    subnet_ids: Sequence[pulumi.Input[str]],
    template: aws.ec2.LaunchTemplate,
    own: Mapping[str, Any],
    size: GroupSize,
    after: Sequence[pulumi.Resource],
    parent: pulumi.Resource,
) -> aws.eks.NodeGroup:
    pool, rung, zone = place
    return aws.eks.NodeGroup(
        name,
        cluster_name=nodes.cluster.name,
        # A prefix, not a name: the replacement is made before the old group is deleted. The zone is its last letter,
        # because at most 37 characters are left for the prefix. The autoscaler's priorities know groups by it
        # (`infra/planning/ladder.py`).
        node_group_name_prefix=f"{rung}-{zone.removeprefix(nodes.site.region)}-",
        node_role_arn=nodes.role.arn,
        subnet_ids=list(subnet_ids),
        release_version=nodes.config.node_release,
        version=nodes.config.version,
        scaling_config={"min_size": size.least, "desired_size": size.desired, "max_size": size.most},
        node_repair_config=REPAIR,
        launch_template={"id": template.id, "version": template.latest_version.apply(str)},
        tags=nodes.site.tagged(name, **{POOL_LABEL: pool}),
        opts=pulumi.ResourceOptions(
            parent=parent,
            depends_on=after,
            # The autoscaler owns the desired size. Ignored on a component (pulumi-eks#709), so set here.
            ignore_changes=None if size.takes_over else ["scalingConfig.desiredSize"],
        ),
        **own,
    )
