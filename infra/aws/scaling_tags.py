"""Tags on a pool's Auto Scaling group that describe a node to cluster-autoscaler before it exists."""

from __future__ import annotations

from modelfleet.infra.aws.launch_template import root_gib
from modelfleet.infra.names import GPU
from modelfleet.infra.planning.plan import PoolPlan

TEMPLATE = "k8s.io/cluster-autoscaler/node-template"
#: Share of a disk that is left for pods, after kubelet's reserve (nodefs eviction at 10 %) and the images.
EPHEMERAL_SHARE = 0.8
GB_PER_GIB = 1.073741824


def scaling_tags(pool: PoolPlan) -> dict[str, tuple[str, str]]:
    """Tags as short name → (key, value).

    Tags of a node group do not reach its Auto Scaling group (containers-roadmap#608). The autoscaler can read labels
    and taints from EKS if its role allows it, but taints have failed (autoscaler#6481). It cannot read disk and GPUs.
    """
    disk_gb = pool.node.nvme_gb or int(root_gib(pool) * GB_PER_GIB)
    tags = {"disk": (f"{TEMPLATE}/resources/ephemeral-storage", f"{int(disk_gb * EPHEMERAL_SHARE)}G")}
    if pool.node.gpus:
        tags["gpus"] = (f"{TEMPLATE}/resources/{GPU}", str(pool.node.gpus))
    for taint in pool.taints:
        tags[f"taint-{taint.key.rpartition('/')[2]}"] = (
            f"{TEMPLATE}/taint/{taint.key}",
            f"{taint.value}:{taint.effect}",
        )
    return tags
