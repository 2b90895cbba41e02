"""Where the Ray head keeps its state: whether the stack makes a store for it, and what it is made of. Pure.

Without a store all of Ray's state is in the head's memory: a head that dies takes every replica with it.
https://docs.ray.io/en/latest/cluster/kubernetes/user-guides/kuberay-gcs-ft.html
"""

from __future__ import annotations

from typing import Final

from modelfleet.infra.planning.plan import HeadStoragePlan
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding

#: The smallest node: Ray's state is a few MB. Nodes and not ElastiCache Serverless: Serverless is always in cluster
#: mode and wants users (RBAC), and Ray was seen to fail on it (ray-project/ray#44965); a node is a plain server.
#: https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/auth.html
NODE_TYPE: Final = "cache.t4g.micro"
#: A primary and a replica in another zone. A node alone that fails is replaced by an empty one, and an empty store is
#: the death of all replicas: what the store is there to prevent.
#: https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/AutoFailover.html
NODES: Final = 2


def head_storage_plan(stack: LoadedStack) -> HeadStoragePlan | None:
    """The store that the stack makes: where it asks for one, and by default where it is protected from deletion."""
    config = stack.config
    wanted = config.kubernetes.head_storage
    if wanted is None and config.kubernetes.redis_address is None and config.target.makes_cluster:
        wanted = "valkey" if config.cluster.deletion_protection else "none"
    return HeadStoragePlan(NODE_TYPE, NODES) if wanted == "valkey" else None


def head_storage_findings(stack: LoadedStack) -> list[Finding]:
    """Only a stack that makes its own network has a place for a store."""
    if stack.config.target.makes_cluster or stack.config.kubernetes.head_storage != "valkey":
        return []
    message = (
        f"found 'valkey', which target eks makes in its own network; target {stack.config.target} takes a store that "
        "exists: name it in redisAddress, or remove this"
    )
    return [stack.finding(("kubernetes", "headStorage"), message)]
