"""The copies of weights that a stack makes: how many bytes, how long it takes, and on which nodes. Pure arithmetic.

On EKS the mirror Jobs have nodes of their own, which exist only while a Job runs. They stream from the Hub into the
bucket, so what a node needs is network and a disk for the image, not for weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.names import MIRROR_POOL, POOL_LABEL, STACK_LABEL, SYSTEM_POOL
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.nodes import DISK_SHARE, GB_PER_GIB, allocatable_cpu_millis, node_shape
from modelfleet.infra.planning.plan import CopyPlan, CostRange, MirrorPlan, NodeShape, PoolPlan, Rung, Taint
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.errors import Finding, Severity

#: Nodes at a time; one Job takes one. They hold 16 vCPUs of the account's quota with the default type.
MOST_NODES = 2
#: The serving image takes about 30 GB unpacked and 12 GB packed. Weights never touch this disk.
ROOT_GIB = 100
#: What one Job copies, MB/s: half of the 3.125 Gbit/s that m7i.2xlarge always has (EC2's DescribeInstanceTypes,
#: `BaselineBandwidthInGbps`). Assumed, not measured: the Hub and a NAT gateway may give more or less.
COPY_MB_S = 200
#: From the Job to its first byte: EC2 starts a node and pulls the image.
START_S = 600
#: How long a model waits for its weights, and so a run for copies of unknown size. It is part of the Ray cluster, so
#: it does not depend on the models.
MODELS_WAIT_S = 4 * 3600
#: A copy may take this much longer than planned before anything gives up.
PATIENCE = 2
#: What a Job requests where the stack does not make its node.
SHARED_NODE_MILLIS = 1000
MIRROR_TAINT = Taint(POOL_LABEL, MIRROR_POOL, "NoSchedule")
#: Names of the stack's own node groups.
OWN_POOLS = (SYSTEM_POOL, MIRROR_POOL)


def copy_plan(stack: LoadedStack, copied: Sequence[MirrorPlan], catalog: Catalog, *, image: str) -> CopyPlan:
    """What the mirror Jobs of a stack copy and where they run; nothing on this machine."""
    sizes = [mirror.bytes for mirror in copied]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    pool = _pool(stack, catalog) if stack.config.target.makes_cluster and stack.config.mirror.create else None
    seconds = None if total is None or not copied else round(_copy_seconds(sizes, pool))
    millis = SHARED_NODE_MILLIS
    if pool is not None and pool.vcpus_per_node:
        # More than half of all that a node offers, daemon sets or not, so that each Job has one alone.
        millis = max(millis, allocatable_cpu_millis(pool.vcpus_per_node) // 2 + 1)
    return CopyPlan(
        models=len(copied),
        bytes=total,
        seconds=seconds,
        wait_s=_wait(seconds) if copied else 0,
        job_cpu_millis=millis,
        image=image,
        pool=pool,
        usd=_usd(pool, sizes, seconds),
    )


def copy_findings(stack: LoadedStack) -> list[Finding]:
    """Pools that have the name of a node group of the stack's own."""
    if not stack.config.target.makes_cluster:
        return []
    return [
        stack.finding(
            ("pools", index, "name"),
            f"found '{pool.name}', which the stack's own nodes have ({', '.join(OWN_POOLS)}); choose another name",
        )
        for index, pool in enumerate(stack.config.pools)
        if pool.name in OWN_POOLS
    ]


def slow_copy_findings(stack: LoadedStack, copies: CopyPlan) -> list[Finding]:
    """Warns of copies that take longer than models wait for them."""
    if copies.bytes is None or copies.seconds is None or copies.seconds <= MODELS_WAIT_S:
        return []
    message = (
        f"need {copies.bytes / 1e9:,.0f} GB of weights, whose copies take about {copies.seconds / 3600:.1f} h; a model "
        f"gives up after {MODELS_WAIT_S // 3600} h; name fewer models at first, and the others once their mirror Jobs "
        "are done"
    )
    return [stack.finding(("models",), message, Severity.WARNING)]


def stored_bytes(facts: ModelFacts | None) -> int | None:
    """Bytes of a checkpoint in its repository; None where its shape is not known."""
    if facts is None:
        return None
    return facts.header_bytes or round(facts.counted_bytes * facts.header_ratio + facts.encoder_bytes)


def _copy_seconds(sizes: Sequence[int | None], pool: PoolPlan | None) -> float:
    """Seconds until the last Job is done, the start of a node included; a node that is free takes the next one."""
    nodes = [0.0] * (pool.max_nodes if pool else max(1, len(sizes)))
    for size in sizes:
        nodes.sort()
        nodes[0] += (size or 0) / (COPY_MB_S * 1e6)
    return START_S + max(nodes)


def _wait(seconds: int | None) -> int:
    return MODELS_WAIT_S if seconds is None else PATIENCE * seconds


def _usd(pool: PoolPlan | None, sizes: Sequence[int | None], seconds: int | None) -> float | None:
    """USD for all nodes until each is done; None where price or size is unknown."""
    if pool is None or pool.usd_per_node_hour is None or seconds is None:
        return None
    nodes = min(len(sizes), pool.max_nodes)
    busy_s = nodes * START_S + sum(size or 0 for size in sizes) / (COPY_MB_S * 1e6)
    return busy_s / 3600 * pool.usd_per_node_hour


def _pool(stack: LoadedStack, catalog: Catalog) -> PoolPlan:
    """The node group of the mirror Jobs; it does not depend on the models, so that a new model changes none."""
    name = stack.config.mirror.instance_type
    known = catalog.instance_types.get(name)
    price = catalog.usd_per_hour(name, region=stack.region or "")
    most = None if price is None else MOST_NODES * price
    labels = {STACK_LABEL: stack.name, POOL_LABEL: MIRROR_POOL}
    return PoolPlan(
        name=MIRROR_POOL,
        accelerator=CPU,
        instance_types=(name,),
        node=_disk_for_an_image(node_shape([known], catalog, made_here=True) if known else NodeShape(0, 0, 0, 0)),
        min_nodes=0,
        needed_nodes=MOST_NODES,
        max_nodes=MOST_NODES,
        floor_nodes=0,
        zones=None,
        labels=labels,
        taints=(MIRROR_TAINT,),
        ray_resources={},
        vcpus_per_node=known.vcpus if known else 0,
        usd_per_node_hour=price,
        cost=CostRange(0.0, most),
        rungs=(
            Rung(
                MIRROR_POOL,
                "on-demand",
                (name,),
                None,
                None,
                0,
                labels,
                price,
                single_zone=True,
                vcpus_per_node=known.vcpus if known else 0,
            ),
        ),
    )


def _disk_for_an_image(node: NodeShape) -> NodeShape:
    return dataclasses.replace(node, root_gib=ROOT_GIB, disk_gb=int(ROOT_GIB * GB_PER_GIB * DISK_SHARE))
