"""Tags on a pool's Auto Scaling group that describe a node to cluster-autoscaler before it exists."""

from __future__ import annotations

from modelfleet.infra.names import DISK, GPU
from modelfleet.infra.planning.plan import PoolPlan

TEMPLATE = "k8s.io/cluster-autoscaler/node-template"


def scaling_tags(pool: PoolPlan) -> dict[str, tuple[str, str]]:
    """Tags as short name → (key, value).

    Tags of a node group do not reach its Auto Scaling group (containers-roadmap#608). The autoscaler can read labels
    and taints from EKS if its role allows it, but taints have failed (autoscaler#6481). It cannot read disk and GPUs.
    """
    tags = disk_tag(pool.node.disk_gb)
    if pool.node.gpus:
        tags["gpus"] = (f"{TEMPLATE}/resources/{GPU}", str(pool.node.gpus))
    for taint in pool.taints:
        tags[f"taint-{taint.key.rpartition('/')[2]}"] = (
            f"{TEMPLATE}/taint/{taint.key}",
            f"{taint.value}:{taint.effect}",
        )
    return tags


def disk_tag(gb: int) -> dict[str, tuple[str, str]]:
    """The tag without which a pod that requests disk fits no node that does not exist yet."""
    return {"disk": (f"{TEMPLATE}/resources/{DISK}", f"{gb}G")}
