"""Pools to nodes: which pool a model runs on, which instance type a pool takes, how many nodes it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.catalog import Catalog, InstanceType, NoPrice
from infra.planning.demand import Demand
from infra.planning.local import local_node
from infra.planning.nodes import MIB, node_shape, ray_resources, sized_node
from infra.planning.packing import Amounts, copies_per_node, nodes_needed
from infra.planning.plan import NodeShape
from infra.stack import LoadedStack, Pool
from serving.config.errors import Finding, Severity
from serving.config.validation import near

#: Prices of this region rank instance types where a region's own are not known.
REFERENCE_REGION = "us-east-1"


@dataclass(frozen=True)
class Candidate:
    """A node that a pool may consist of; no instance types for this machine and for sized nodes."""

    instance_types: tuple[str, ...]
    node: NodeShape
    vcpus: int


@dataclass(frozen=True)
class PoolChoice:
    """A pool with its node and what its models need."""

    pool: Pool
    instance_types: tuple[str, ...]
    node: NodeShape
    vcpus: int
    usd_per_hour: float | None
    demands: tuple[Demand, ...]
    min_nodes: int
    max_nodes: int

    @property
    def offer(self) -> dict[str, float]:
        """What Ray can place on one node."""
        return node_offer(self.pool.accelerator, self.node)


def node_offer(accelerator: str, node: NodeShape) -> dict[str, float]:
    """Ray resources of one node, memory in bytes among them."""
    return {**ray_resources(accelerator, node), "memory": float(node.memory_mib * MIB)}


def usd_per_hour(catalog: Catalog, types: Sequence[str], region: str | None) -> float | None:
    """The dearest on-demand price among `types`, None when one is not known."""
    if not types:
        return None
    try:
        return max(catalog.usd_per_hour(name, region=region or "") for name in types)
    except NoPrice:
        return None


def items(demands: Sequence[Demand], counts: Mapping[str, int], node: Amounts) -> list[tuple[Amounts, int]]:
    """The things to pack: a whole replica where one node carries it, else bundle by bundle."""
    found: list[tuple[Amounts, int]] = []
    for demand in demands:
        count = counts[demand.model.config.model_id]
        if demand.on_one_node or (demand.strategy == "PACK" and copies_per_node(demand.total, node)):
            found.append((demand.total, count))
        else:
            found += [(bundle, count) for bundle in demand.bundles]
    return found


def pool_choice(
    index: int, stack: LoadedStack, demands: Sequence[Demand], catalog: Catalog
) -> tuple[PoolChoice | None, list[Finding]]:
    """The pool's node and numbers of nodes, or findings that say why there is none."""
    pool = stack.config.pools[index]
    candidates, findings = _candidates(index, stack, catalog)
    choices = [
        c for c in (_evaluated(pool, one, demands, catalog, stack.region) for one in candidates) if c is not None
    ]
    if not choices:
        return None, findings + _too_large(candidates, demands, pool)
    choice = min(choices, key=lambda c: _rank(c, catalog))
    return choice, findings + _node_limits(index, stack, choice)


def _candidates(index: int, stack: LoadedStack, catalog: Catalog) -> tuple[list[Candidate], list[Finding]]:
    """The nodes that the pool may consist of: one where the stack file decides, else every instance type."""
    pool, config = stack.config.pools[index], stack.config
    if config.target == "local":
        return [Candidate((), local_node(pool, config), 0)], []
    if pool.node is not None:
        return [Candidate((), sized_node(pool.node.cpus, pool.node.memory_gib, pool.node.gpus), pool.node.cpus)], []
    if pool.instance_types == "auto":
        if config.target == "kubernetes":
            message = "is missing: an existing cluster's nodes are not chosen here; give instanceTypes or `node: {cpus, memoryGib, gpus}`"
            return [], [stack.finding(("pools", index, "instanceTypes"), message)]
        return [_candidate([one]) for one in catalog.instance_types_with(pool.accelerator)], []
    return _named(index, pool.instance_types, stack, catalog)


def _named(
    index: int, names: Sequence[str], stack: LoadedStack, catalog: Catalog
) -> tuple[list[Candidate], list[Finding]]:
    """The one node of the types that the stack file names; findings for unknown and unequal ones."""
    accelerator = stack.config.pools[index].accelerator
    allowed = catalog.instance_types_with(accelerator)
    found = [one for one in allowed if one.name in names]
    wrong = [name for name in names if name not in {one.name for one in allowed}]
    findings = [
        stack.finding(
            ("pools", index, "instanceTypes", list(names).index(name)),
            f"found {name!r}, which has no {accelerator}; {near(name, [one.name for one in allowed])}",
        )
        for name in wrong
    ]
    if len({one.gpus for one in found}) > 1:
        message = (
            f"found {', '.join(names)} with different numbers of GPUs; name types of one shape, and one pool per shape"
        )
        findings.append(stack.finding(("pools", index, "instanceTypes"), message))
    ordered = sorted(found, key=lambda one: list(names).index(one.name))
    return ([] if findings else [_candidate(ordered)]), findings


def _candidate(types: Sequence[InstanceType]) -> Candidate:
    return Candidate(tuple(one.name for one in types), node_shape(types), max(one.vcpus for one in types))


def _evaluated(
    pool: Pool, candidate: Candidate, demands: Sequence[Demand], catalog: Catalog, region: str | None
) -> PoolChoice | None:
    """The pool on such nodes; None when a replica fits none of them."""
    offer = node_offer(pool.accelerator, candidate.node)
    least = nodes_needed(items(demands, {d.model.config.model_id: d.min for d in demands}, offer), offer)
    most = nodes_needed(items(demands, {d.model.config.model_id: max(d.max, 1) for d in demands}, offer), offer)
    if least is None or most is None:
        return None
    price = usd_per_hour(catalog, candidate.instance_types, region)
    return PoolChoice(
        pool, candidate.instance_types, candidate.node, candidate.vcpus, price, tuple(demands), least, most
    )


def _rank(choice: PoolChoice, catalog: Catalog) -> tuple[bool, float, int, str]:
    """Cheapest first: USD per hour at the minimum and at the maximum together; then fewer nodes."""
    name = choice.instance_types[0] if choice.instance_types else ""
    price = choice.usd_per_hour or usd_per_hour(catalog, choice.instance_types, REFERENCE_REGION) or 0.0
    least, most = max(choice.min_nodes, choice.pool.min_nodes), choice.max_nodes
    return (most > choice.pool.max_nodes, price * (least + most), most, name)


def _too_large(candidates: Sequence[Candidate], demands: Sequence[Demand], pool: Pool) -> list[Finding]:
    """Models of which no node carries a replica, each with what it asks and what the largest node offers."""
    findings = []
    for demand in demands if candidates else ():
        offers = [node_offer(pool.accelerator, c.node) for c in candidates]
        pieces = [piece for piece, _ in items([demand], {demand.model.config.model_id: 1}, offers[-1])]
        if any(copies_per_node(piece, offer) == 0 for offer in offers[-1:] for piece in pieces):
            names = ", ".join(candidates[-1].instance_types) or f"a node of pool {pool.name}"
            message = f"one replica asks for {amounts(demand.total)}; {names} offers {amounts(offers[-1])}"
            findings.append(demand.model.document.finding(("scaling_config",), message))
    return findings


def amounts(resources: Amounts) -> str:
    """`1 CPU, 2 GPU` for messages."""
    shown = {k: v for k, v in resources.items() if k != "memory"}
    text = ", ".join(f"{value:g} {name}" for name, value in shown.items())
    return f"{text}, {resources['memory'] / MIB / 1024:.1f} GiB memory" if resources.get("memory") else text


def _node_limits(index: int, stack: LoadedStack, choice: PoolChoice) -> list[Finding]:
    """maxNodes against what the models' fewest and most replicas need."""
    pool, at = choice.pool, ("pools", index, "maxNodes")
    if choice.min_nodes > pool.max_nodes:
        message = f"found {pool.max_nodes}; min_replicas of the pool's models need {choice.min_nodes} nodes"
        return [stack.finding(at, message)]
    if choice.max_nodes > pool.max_nodes:
        message = f"found {pool.max_nodes}; max_replicas of all models together would need {choice.max_nodes} nodes, replicas beyond wait"
        return [stack.finding(at, message, Severity.WARNING)]
    return []


def assign(stack: LoadedStack, demands: Sequence[Demand]) -> tuple[dict[str, list[Demand]], list[Finding]]:
    """Each model on the first pool of the stack that has its accelerator; findings for those without one."""
    by_pool: dict[str, list[Demand]] = {pool.name: [] for pool in stack.config.pools}
    findings = []
    for demand in demands:
        accelerator = demand.model.config.accelerator
        pool = next((p for p in stack.config.pools if p.accelerator == accelerator), None)
        if pool is None:
            message = (
                f"no pool has {accelerator}, which {demand.model.config.model_id} needs; append "
                f"{{name: {accelerator.lower()}, accelerator: {accelerator}, maxNodes: {max(demand.max, 1)}}} at the end of the list"
            )
            findings.append(stack.finding(("pools",), message))
        else:
            by_pool[pool.name].append(demand)
    return by_pool, findings
