"""Tags on a pool's Auto Scaling group that let cluster-autoscaler know a node that does not exist yet."""

from __future__ import annotations

from infra.aws.launch_template import root_gib
from infra.planning.plan import PoolPlan

TEMPLATE = "k8s.io/cluster-autoscaler/node-template"
#: Share of a disk that kubelet offers to pods (nodefs eviction at 10 %), and of it what images leave free.
EPHEMERAL_SHARE = 0.8
GB_PER_GIB = 1.073741824


def scaling_tags(pool: PoolPlan) -> dict[str, tuple[str, str]]:
    """Tags as short name → (key, value).

    Tags of a node group do not reach its Auto Scaling group (containers-roadmap#608). Labels and taints the
    autoscaler reads from EKS, if its role may; disk and GPUs it cannot, and taints have failed (autoscaler#6481).
    """
    disk_gb = pool.node.nvme_gb or int(root_gib(pool) * GB_PER_GIB)
    tags = {"disk": (f"{TEMPLATE}/resources/ephemeral-storage", f"{int(disk_gb * EPHEMERAL_SHARE)}G")}
    if pool.node.gpus:
        tags["gpus"] = (f"{TEMPLATE}/resources/nvidia.com/gpu", str(pool.node.gpus))
    for taint in pool.taints:
        tags[f"taint-{taint.key.rpartition('/')[2]}"] = (
            f"{TEMPLATE}/taint/{taint.key}",
            f"{taint.value}:{taint.effect}",
        )
    return tags
