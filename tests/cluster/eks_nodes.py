"""Nodes as EKS makes them: what a kubelet of each instance type reports, computed here independently of the planner.

Sources: awslabs/amazon-eks-ami nodeadm internal/kubelet/config.go (reservations), EC2's instance types, and the
memory that such instances really show the kernel (about 3 % less than advertised on the sizes used here).
"""

from __future__ import annotations

from typing import Any

from modelfleet.infra.planning.plan import Plan, PoolPlan
from tools.kubernetes.nodes import fake_node

#: vCPUs, advertised memory in MiB, GPUs, most pods (amazon-vpc-cni's table), GB of NVMe disks.
SHAPES = {
    "m7i.xlarge": (4, 16384, 0, 58, 0),
    "m7i.2xlarge": (8, 32768, 0, 58, 0),
    "g4dn.12xlarge": (48, 196608, 4, 234, 900),
    "g6.2xlarge": (8, 32768, 1, 58, 450),
    "g5.2xlarge": (8, 32768, 1, 58, 450),
    "g5.12xlarge": (48, 196608, 4, 737, 3800),
    "p4d.24xlarge": (96, 1179648, 8, 737, 8000),
    "p4de.24xlarge": (96, 1179648, 8, 737, 8000),
    "c7i.2xlarge": (8, 16384, 0, 58, 0),
}
SHOWN_TO_KERNEL = 0.97
#: The share of a disk that its file system shows, and the root volumes that the stack asks for, GiB.
SHOWN_BY_FILE_SYSTEM = 0.98
ROOT_GIB, SYSTEM_ROOT_GIB, MIRROR_ROOT_GIB = 500, 50, 100


def allocatable(instance_type: str, root_gib: int = ROOT_GIB) -> dict[str, str]:
    """What the kubelet of an AL2023 node offers to pods."""
    vcpus, memory_mib, gpus, pods, nvme_gb = SHAPES[instance_type]
    reserved = 60.0 + 10.0 * (vcpus > 1) + 5.0 * max(min(vcpus, 4) - 2, 0) + 2.5 * max(vcpus - 4, 0)
    memory = int(memory_mib * SHOWN_TO_KERNEL) - (11 * pods + 255) - 100
    disk = (nvme_gb * 10**9 or root_gib * 2**30) * SHOWN_BY_FILE_SYSTEM * 0.9 - 2**30  # nodefs.available, and 1 GiB
    amounts = {
        "cpu": f"{vcpus * 1000 - int(reserved)}m",
        "memory": f"{memory}Mi",
        "ephemeral-storage": str(int(disk)),
        "pods": str(pods),
    }
    return {**amounts, "nvidia.com/gpu": str(gpus)} if gpus else amounts


def pool_nodes(plan: Plan, pool: PoolPlan, count: int) -> list[dict[str, Any]]:
    """`count` nodes of the pool's node group with the labels and taints that the plan gives the group."""
    taints = [{"key": t.key, "value": t.value, "effect": t.effect} for t in pool.taints]
    kind = pool.instance_types[0]
    return [
        fake_node(
            f"{plan.stack}-{pool.name}-{i}",
            allocatable(kind, MIRROR_ROOT_GIB if pool == plan.copies.pool else ROOT_GIB),
            labels={**pool.labels, "node.kubernetes.io/instance-type": kind},
            taints=taints,
        )
        for i in range(count)
    ]


def system_nodes(plan: Plan, count: int = 2) -> list[dict[str, Any]]:
    """The untainted nodes for the head, the operator and the gateway."""
    labels = {"modelfleet.dev/stack": plan.stack, "modelfleet.dev/pool": "system"}
    kind = plan.config.cluster.system_instance_type
    return [
        fake_node(f"{plan.stack}-system-{i}", allocatable(kind, SYSTEM_ROOT_GIB), labels=labels) for i in range(count)
    ]
