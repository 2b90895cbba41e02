"""The nodes that a pool may consist of, and which of them is cheapest for its models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from infra.catalog import Catalog, InstanceType, NoPrice
from infra.planning.demand import Demand, nodes_for
from infra.planning.local import local_node
from infra.planning.nodes import MIB, node_shape, ray_resources, sized_node
from infra.planning.packing import Steps, steps
from infra.planning.plan import NodeShape
from infra.stack import LoadedStack, Pool
from serving.config.errors import Finding
from serving.config.validation import near

#: Bytes of memory where the node's own are not known.
UNBOUNDED = 1e15
#: Prices of this region rank instance types where the stack's own region has none.
REFERENCE_REGION = "us-east-1"


@dataclass(frozen=True)
class Candidate:
    """A node that a pool may consist of; no instance types for this machine and for nodes of a given size."""

    accelerator: str
    instance_types: tuple[str, ...]
    node: NodeShape
    vcpus: int
    usd_per_hour: float | None
    rank_price: float

    @cached_property
    def offer(self) -> dict[str, float]:
        """Ray resources of one node, memory in bytes among them."""
        memory = float(self.node.memory_mib * MIB) or UNBOUNDED
        return {**ray_resources(self.accelerator, self.node), "memory": memory}

    @cached_property
    def room(self) -> Steps:
        """`offer` in Ray's steps."""
        return steps(self.offer)

    @property
    def name(self) -> str:
        """For messages."""
        return ", ".join(self.instance_types) or "a node"


@dataclass(frozen=True)
class PoolChoice:
    """A pool with its node and the nodes that its models need at their fewest and at their most replicas."""

    pool: Pool
    candidate: Candidate
    demands: tuple[Demand, ...]
    min_nodes: int
    max_nodes: int

    @property
    def rank(self) -> tuple[bool, bool, float, float, int, str]:
        """Smallest is best: within maxNodes, then USD per hour at minimum and maximum together, then of one node."""
        least, most = max(self.min_nodes, self.pool.min_nodes), self.max_nodes
        over = (least > self.pool.max_nodes, most > self.pool.max_nodes)
        price = self.candidate.rank_price
        return (*over, round(price * (least + most), 6), price, most, self.candidate.name)


def candidates_of(index: int, stack: LoadedStack, catalog: Catalog) -> tuple[list[Candidate], list[Finding]]:
    """One node where the stack file decides, else every type with the accelerator; findings for wrong names."""
    pool, config = stack.config.pools[index], stack.config
    if config.target == "local":
        return [Candidate(pool.accelerator, (), local_node(pool, config), 0, None, 0.0)], []
    if pool.node is not None:
        node = sized_node(pool.node.cpus, pool.node.memory_gib, pool.node.gpus, catalog)
        return [Candidate(pool.accelerator, (), node, pool.node.cpus, None, 0.0)], []
    if pool.instance_types != "auto":
        return _named(index, pool.instance_types, stack, catalog)
    if config.target == "kubernetes":
        message = (
            f"pool {pool.name} does not say what its nodes are, and an existing cluster's are not chosen here; "
            "give instanceTypes, or `node: {cpus, memoryGib, gpus}` as `kubectl describe node` shows its allocatable"
        )
        return [], [stack.finding(("pools", index), message)]
    return [_candidate([one], pool, stack, catalog) for one in catalog.instance_types_with(pool.accelerator)], []


def _named(
    index: int, names: Sequence[str], stack: LoadedStack, catalog: Catalog
) -> tuple[list[Candidate], list[Finding]]:
    """The one node of the types that the stack file names; findings for unknown and unequal ones."""
    pool = stack.config.pools[index]
    allowed = {one.name: one for one in catalog.instance_types_with(pool.accelerator)}
    path = ("pools", index, "instanceTypes")
    findings = [
        stack.finding((*path, at), f"found {name!r}, which has no {pool.accelerator}; {near(name, list(allowed))}")
        for at, name in enumerate(names)
        if name not in allowed
    ]
    types = [allowed[name] for name in names if name in allowed]
    if len({one.gpus for one in types}) > 1:
        shapes = ", ".join(f"{one.name} has {one.gpus}" for one in types)
        findings.append(
            stack.finding(path, f"found types with different numbers of GPUs ({shapes}); one pool per shape")
        )
    if pool.efa and any(one.efa_interfaces < 4 for one in types):
        findings.append(
            stack.finding(("pools", index, "efa"), "found true; it is for p4d and p4de, with four interfaces")
        )
    return ([] if findings else [_candidate(types, pool, stack, catalog)]), findings


def _candidate(types: Sequence[InstanceType], pool: Pool, stack: LoadedStack, catalog: Catalog) -> Candidate:
    names = tuple(one.name for one in types)
    price = usd_per_hour(catalog, names, stack.region) if pool.purchase != "capacity-block" else None
    rank = usd_per_hour(catalog, names, stack.region) or usd_per_hour(catalog, names, REFERENCE_REGION) or 0.0
    node = node_shape(types, catalog)
    return Candidate(pool.accelerator, names, node, max(t.vcpus for t in types), price, rank)


def usd_per_hour(catalog: Catalog, types: Sequence[str], region: str | None) -> float | None:
    """The dearest on-demand price among `types`; None when one is not known."""
    try:
        return max((catalog.usd_per_hour(name, region=region or "") for name in types), default=None)
    except NoPrice:
        return None


def cheapest(pool: Pool, candidates: Sequence[Candidate], demands: Sequence[Demand]) -> PoolChoice | None:
    """The best candidate that carries all of `demands`; None when none does."""
    best: PoolChoice | None = None
    for candidate in sorted(candidates, key=lambda c: (c.rank_price, c.name)):
        if not all(demand.fits(candidate.room) for demand in demands):
            continue
        choice = _evaluated(pool, candidate, demands)
        if best is None or choice.rank < best.rank:
            best = choice
    return best


def _evaluated(pool: Pool, candidate: Candidate, demands: Sequence[Demand]) -> PoolChoice:
    least = nodes_for(demands, {d.model_id: d.min for d in demands}, candidate.room)
    most = nodes_for(demands, {d.model_id: max(d.max, d.min) for d in demands}, candidate.room)
    return PoolChoice(pool, candidate, tuple(demands), least, most)
