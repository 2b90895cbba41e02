"""The nodes of a node group as the cluster sees them: labels, taints, and what their kubelet offers to pods.

Shapes are EC2's (moto has DescribeInstanceTypes), reservations nodeadm's, and the daemon sets those of the add-ons.
Nothing here is the planner's: it checks the planner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moto.ec2.models.instance_types import INSTANCE_TYPES

from tools.cloud.joining import node_configs
from tools.cloud.rules import bought_as, template_data, zones_of

GIB = 2**30
#: What an instance shows its kernel of the memory on EC2's page: Karpenter's default, its VM_MEMORY_OVERHEAD_PERCENT.
#: https://karpenter.sh/docs/reference/settings/
SHOWN_TO_KERNEL = 1 - 0.075
#: nodefs.available, of what a file system shows of its disk. https://kubernetes.io/docs/concepts/scheduling-eviction/
EVICTION_MEMORY_MIB, EVICTION_DISK, SHOWN_BY_FILE_SYSTEM = 100, 0.1, 0.98
#: kubeReserved of ephemeral storage: awslabs/amazon-eks-ami nodeadm/internal/kubelet/config.go.
RESERVED_DISK_GIB = 1
#: Of EKS's own labels. https://docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html
EFFECTS: Mapping[str, str] = {
    "NO_SCHEDULE": "NoSchedule",
    "NO_EXECUTE": "NoExecute",
    "PREFER_NO_SCHEDULE": "PreferNoSchedule",
}


def nodes_of(region: str, group: Any, instances: list[str]) -> Iterator[dict[str, Any]]:
    """A node for each instance, given by its type, of a group whose nodes join."""
    data = template_data(region, group.launch_template or {})
    for number, kind in enumerate(instances):
        yield {
            "name": f"{group.nodegroup_name}-{number}",
            "nodeGroup": group.nodegroup_name,
            "labels": {**_labels(region, group, kind), **group.labels, **_own_labels(data)},
            "taints": [{**taint, "effect": EFFECTS[taint["effect"]]} for taint in group.taints],
            "allocatable": allocatable(kind, data),
        }


def _labels(region: str, group: Any, kind: str) -> dict[str, str]:
    (zone, *_) = zones_of(region, group)
    bought = {"spot": "SPOT", "capacity-block": "CAPACITY_BLOCK"}.get(bought_as(region, group), "ON_DEMAND")
    return {
        "eks.amazonaws.com/nodegroup": group.nodegroup_name,
        "eks.amazonaws.com/capacityType": bought,
        "node.kubernetes.io/instance-type": kind,
        "topology.kubernetes.io/region": region,
        "topology.kubernetes.io/zone": zone,
    }


def _own_labels(data: Mapping[str, Any]) -> dict[str, str]:
    """Labels of kubelet's flags in the NodeConfig (`--node-labels=a=b,c=d`)."""
    flags = [flag for one in node_configs(data.get("UserData")) for flag in _flags(one)]
    pairs = [pair for flag in flags if flag.startswith("--node-labels=") for pair in flag.partition("=")[2].split(",")]
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


def _flags(config: Mapping[str, Any]) -> list[str]:
    return list((config["spec"].get("kubelet") or {}).get("flags") or ())


def allocatable(kind: str, data: Mapping[str, Any]) -> dict[str, int]:
    """CPU in millicores, memory and disk in bytes, pods and GPUs that the kubelet of an AL2023 node offers.

    https://github.com/awslabs/amazon-eks-ami/blob/main/nodeadm/internal/kubelet/config.go
    """
    shape = INSTANCE_TYPES[kind]
    card, cores = shape["NetworkInfo"]["NetworkCards"][0], int(shape["VCpuInfo"]["DefaultVCpus"])
    pods = card["MaximumNetworkInterfaces"] * (shape["NetworkInfo"]["Ipv4AddressesPerInterface"] - 1) + 2
    reserved = 60 + 10 * (cores > 1) + 5 * max(min(cores, 4) - 2, 0) + 2.5 * max(cores - 4, 0)
    memory = int(shape["MemoryInfo"]["SizeInMiB"] * SHOWN_TO_KERNEL) - (11 * pods + 255) - EVICTION_MEMORY_MIB
    gpus = sum(int(gpu["Count"]) for gpu in (shape.get("GpuInfo") or {}).get("Gpus") or ())
    disk = _disk_bytes(shape, data) * SHOWN_BY_FILE_SYSTEM * (1 - EVICTION_DISK) - RESERVED_DISK_GIB * GIB
    found = {
        "cpu": cores * 1000 - int(reserved),
        "memory": memory * 2**20,
        "ephemeral-storage": int(disk),
        "pods": pods,
    }
    return {**found, "nvidia.com/gpu": gpus} if gpus else found


def _disk_bytes(shape: Mapping[str, Any], data: Mapping[str, Any]) -> int:
    """The disk under the kubelet: all NVMe disks where the NodeConfig makes one of them, else the root volume."""
    storage = [
        (one["spec"].get("instance") or {}).get("localStorage") or {} for one in node_configs(data.get("UserData"))
    ]
    disks = (shape.get("InstanceStorageInfo") or {}).get("TotalSizeInGB")
    if disks and any(one.get("strategy") == "RAID0" for one in storage):
        return int(disks) * 10**9
    roots = [one["Ebs"]["VolumeSize"] for one in data.get("BlockDeviceMappings") or () if one.get("Ebs")]
    return int(roots[0] if roots else 20) * GIB
