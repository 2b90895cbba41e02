"""Auto Scaling groups of node groups: EKS makes, tags, resizes and deletes them. They are moto's.

moto has their names, ARNs and tags. How many instances they want and have is in `backends/scaling.py`.
https://docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moto.autoscaling.models import AutoScalingBackend, FakeAutoScalingGroup, autoscaling_backends
from moto.eks.models import eks_backends

from tools.cloud.callers import ACCOUNT, PARTITION
from tools.cloud.wire import Call


def backend_of(region: str) -> AutoScalingBackend:
    """moto's Auto Scaling."""
    return autoscaling_backends[ACCOUNT][region]


def make(call: Call) -> None:
    """EKS puts the node group's name into that of its Auto Scaling group; moto does not. aws/containers-roadmap#1304"""
    group = _node_group(call)
    group.resources["autoScalingGroups"][0]["name"] = f"eks-{group.nodegroup_name}-{group.uuid}"
    sizes, kinds = group.scaling_config, list(call.params.get("instanceTypes") or ["t3.medium"])
    for name in names(group):
        backend_of(call.region).create_launch_configuration(
            name=name,
            image_id="ami-12c6146b",  # one that moto has
            key_name=None,
            kernel_id="",
            ramdisk_id="",
            security_groups=[],
            user_data=None,
            instance_type=kinds[0],
            instance_monitoring=False,
            instance_profile_name=None,
            spot_price=None,
            ebs_optimized=False,
            associate_public_ip_address=False,
            block_device_mappings=[],
        )
        backend_of(call.region).create_auto_scaling_group(
            name=name,
            availability_zones=[],
            desired_capacity=0,
            max_size=sizes["maxSize"],
            min_size=0,
            launch_config_name=name,
            launch_template={},
            vpc_zone_identifier=",".join(call.params["subnets"]),
            default_cooldown=None,
            health_check_period=None,
            health_check_type=None,
            load_balancers=[],
            target_group_arns=[],
            placement_group=None,
            termination_policies=[],
            tags=_tags(call),
        )


def _tags(call: Call) -> list[dict[str, Any]]:
    """EKS's own tags, by which cluster-autoscaler finds the groups of a cluster.

    https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/cloudprovider/aws/README.md
    """
    cluster = str(call.params["clusterName"])
    tags = {
        "eks:cluster-name": cluster,
        "eks:nodegroup-name": str(call.params["nodegroupName"]),
        "k8s.io/cluster-autoscaler/enabled": "true",
        f"k8s.io/cluster-autoscaler/{cluster}": "owned",
        f"kubernetes.io/cluster/{cluster}": "owned",
    }
    return [{"Key": key, "Value": value, "PropagateAtLaunch": True} for key, value in tags.items()]


def resize(call: Call) -> None:
    """The maximum that EKS has set."""
    group = _node_group(call)
    for name in names(group):
        if found := backend_of(call.region).autoscaling_groups.get(name):
            found.max_size = group.scaling_config["maxSize"]


def end(call: Call) -> None:
    """The end of a node group's Auto Scaling groups."""
    wanted = {key: call.params[name] for key, name in _OWNER.items()}
    backend = backend_of(call.region)
    for group in list(backend.autoscaling_groups.values()):
        if wanted.items() <= tags_of(group).items():
            backend.delete_auto_scaling_group(group.name)
            backend.delete_launch_configuration(group.name)


_OWNER = {"eks:cluster-name": "clusterName", "eks:nodegroup-name": "nodegroupName"}


def _node_group(call: Call) -> Any:
    cluster = eks_backends[ACCOUNT][call.region].clusters[str(call.params["clusterName"])]
    return cluster.nodegroups[call.params["nodegroupName"]]


def names(group: Any) -> list[str]:
    """The Auto Scaling groups of a node group."""
    return [one["name"] for one in group.resources["autoScalingGroups"]]


def tags_of(group: FakeAutoScalingGroup) -> dict[str, str]:
    """A group's tags."""
    return {tag["Key"]: tag["Value"] for tag in group.tags}


def named(call: Call) -> list[str]:
    """The groups that a call of Auto Scaling is about: by name, by the resource of tags, or by an instance."""
    params = call.params
    if "AutoScalingGroupName" in params:
        return [str(params["AutoScalingGroupName"])]
    if call.operation == "TerminateInstanceInAutoScalingGroup":
        groups = backend_of(call.region).autoscaling_groups.values()
        mine = (g.name for g in groups for one in g.instance_states if one.instance.id == params["InstanceId"])
        return list(mine)
    return sorted({str(tag["ResourceId"]) for tag in params.get("Tags") or ()})


def values(call: Call) -> Mapping[str, Any]:
    """The ARNs of the groups that a call is about, and their tags by ARN."""
    known = backend_of(call.region).autoscaling_groups
    absent = f"arn:{PARTITION}:autoscaling:{call.region}:{ACCOUNT}:autoScalingGroup:*:autoScalingGroupName/"
    arns = {name: str(known[name].arn) if name in known else absent + name for name in named(call)}
    tags = {arn: tags_of(known[name]) for name, arn in arns.items() if name in known}
    return {"groupArns": list(arns.values()), "resourceTags": tags}
