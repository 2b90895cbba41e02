"""The nodes that a pool may consist of, and which of them is cheapest for its models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from modelfleet.infra.catalog import REFERENCE_REGION, Catalog, InstanceType
from modelfleet.infra.planning.demand import Demand, nodes_for
from modelfleet.infra.planning.local import local_node
from modelfleet.infra.planning.nodes import MIB, node_shape, ray_resources, sized_node
from modelfleet.infra.planning.packing import Steps, steps
from modelfleet.infra.planning.plan import NodeShape
from modelfleet.infra.stack import LoadedStack, Pool
from modelfleet.infra.stack.schema import Fallback, Purchase
from modelfleet.serving.config.accelerators import resource_name
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.config.validation import near

#: Bytes of memory of a node whose memory is unknown: no limit.
UNBOUNDED = 1e15


@dataclass(frozen=True)
class OtherNode:
    """A pool's nodes with another accelerator, on which it falls back."""

    accelerator: str
    instance_types: tuple[str, ...]
    purchases: tuple[Purchase, ...]
    usd_per_hour: float | None


@dataclass(frozen=True)
class Candidate:
    """A node that a pool may consist of. This machine and nodes of a given size have no instance types.

    `node` is what a node offers at least, those of `fallbacks` included; `usd_per_hour` is the price of its own types.
    """

    accelerator: str
    instance_types: tuple[str, ...]
    node: NodeShape
    vcpus: int
    usd_per_hour: float | None
    rank_price: float
    fallbacks: tuple[OtherNode, ...] = ()
    #: Its own nodes are a Capacity Block's alone.
    paid_ahead: bool = False
    #: Accelerators of other pools that are on the same node: this machine has all of them.
    beside: tuple[str, ...] = ()

    @property
    def dearest_usd_per_hour(self) -> float | None:
        """USD per hour of the dearest accelerator that is not paid ahead; None where a price is unknown."""
        own = [] if self.paid_ahead and self.fallbacks else [self.usd_per_hour]
        prices = [*own, *(one.usd_per_hour for one in self.fallbacks)]
        return None if None in prices else max(filter(None, prices), default=None)

    @cached_property
    def offer(self) -> dict[str, float]:
        """Ray resources of one node, memory in bytes among them."""
        memory = float(self.node.memory_mib * MIB) or UNBOUNDED
        own = ray_resources(self.accelerator, self.node)
        return {**own, **{resource_name(one): 1.0 for one in self.beside}, "memory": memory}

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
    """A pool with its node, and how many nodes its models need at their fewest and at their most replicas."""

    pool: Pool
    candidate: Candidate
    demands: tuple[Demand, ...]
    need_at_min: int
    need_at_max: int

    @property
    def least(self) -> int:
        """Nodes that always run: enough for min_replicas and for the pool's minNodes."""
        return max(self.need_at_min, self.pool.min_nodes)

    @property
    def rank(self) -> tuple[bool, bool, float, float, int, str]:
        """Smallest is best: within maxNodes first, then USD per hour of minimum plus maximum, then of one node."""
        least, most = self.least, self.need_at_max
        over = (least > self.pool.max_nodes, most > self.pool.max_nodes)
        price = self.candidate.rank_price
        return (*over, round(price * (least + most), 6), price, most, self.candidate.name)


def candidates_of(
    index: int, stack: LoadedStack, catalog: Catalog, gpus: int | None = None
) -> tuple[list[Candidate], list[Finding]]:
    """The node that the stack file names, otherwise every type with the accelerator; findings for wrong names."""
    pool, config = stack.config.pools[index], stack.config
    if config.target.on_this_machine:
        return [Candidate(pool.accelerator, (), local_node(pool, config, gpus), 0, None, 0.0)], []
    if pool.fallback and (wrong := _wrong_fallbacks(index, stack, catalog)):
        return [], wrong
    if pool.node is not None:
        node = _least(sized_node(pool.node, catalog, pool.reserve), pool, catalog)
        others = _others(pool, stack, catalog)
        return _with_room(index, stack, [Candidate(pool.accelerator, (), node, pool.node.cpus, None, 0.0, others)])
    if pool.instance_types != "auto":
        found, findings = _named(index, pool.instance_types, stack, catalog)
        return ([], findings) if findings else _with_room(index, stack, found)
    if not config.target.chooses_nodes:
        message = (
            f"pool {pool.name} does not describe its nodes, and the plan does not choose those of an existing cluster; "
            "give instanceTypes, or `node: {cpus, memoryGib, gpus}` with the allocatable of `kubectl describe node`"
        )
        return [], [stack.finding(("pools", index), message)]
    kinds = list(catalog.instance_types_with(pool.accelerator))
    if pool.fallback:
        gpus = _types_of(pool.fallback[0], catalog)[0].gpus
        kinds = [one for one in kinds if one.gpus == gpus]
        if not kinds:
            message = f"found types with {gpus} GPUs, and no type with {pool.accelerator} has as many; use another pool"
            return [], [stack.finding(("pools", index, "fallback"), message)]
    return _with_room(index, stack, [_candidate([one], pool, stack, catalog) for one in kinds])


def _types_of(other: Fallback, catalog: Catalog) -> list[InstanceType]:
    """The instance types of a fallback, in the stack file's order."""
    known = {one.name: one for one in catalog.instance_types_with(other.accelerator)}
    return [known[name] for name in other.instance_types if name in known]


def _wrong_fallbacks(index: int, stack: LoadedStack, catalog: Catalog) -> list[Finding]:
    """Types that the fallback's accelerator does not have, and nodes with other numbers of GPUs than the pool's own.

    A worker asks for all GPUs of its node, so on a larger one there would be two, and on a smaller one none.
    """
    pool = stack.config.pools[index]
    found, gpus = [], {}
    if pool.node is not None:
        gpus["node"] = pool.node.gpus
    if pool.instance_types != "auto":
        known = {one.name: one.gpus for one in catalog.instance_types_with(pool.accelerator)}
        gpus |= {name: known[name] for name in pool.instance_types if name in known}
    for number, other in enumerate(pool.fallback):
        path = ("pools", index, "fallback", number, "instanceTypes")
        allowed = [one.name for one in catalog.instance_types_with(other.accelerator)]
        found += [
            stack.finding((*path, at), f"found {name!r}, which has no {other.accelerator}; {near(name, allowed)}")
            for at, name in enumerate(other.instance_types)
            if name not in allowed
        ]
        own = {one.name: one.gpus for one in _types_of(other, catalog)}
        if len({*gpus.values(), *own.values()}) > 1:
            shapes = ", ".join(f"{name} has {count}" for name, count in {**gpus, **own}.items())
            found.append(
                stack.finding(path, f"found types with different numbers of GPUs ({shapes}); use another pool")
            )
        gpus |= own
    return found


def _with_room(index: int, stack: LoadedStack, found: Sequence[Candidate]) -> tuple[list[Candidate], list[Finding]]:
    """The nodes on which the pool's `reserve` leaves a CPU and memory for a worker; a finding if there is none."""
    reserve = stack.config.pools[index].reserve
    able = [one for one in found if one.node.cpu_millis >= 1000 and one.node.memory_mib > 0]
    if able or not found or reserve is None:
        return list(able or found), []
    message = (
        f"found cpuMillis {reserve.cpu_millis} and memoryMib {reserve.memory_mib}, which leave a worker less than one "
        f"CPU or no memory on {found[-1].name}; reserve less, or name larger nodes"
    )
    return [], [stack.finding(("pools", index, "reserve"), message)]


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
            stack.finding(path, f"found types with different numbers of GPUs ({shapes}); use one pool per shape")
        )
    return ([] if findings else [_candidate(types, pool, stack, catalog)]), findings


def _candidate(types: Sequence[InstanceType], pool: Pool, stack: LoadedStack, catalog: Catalog) -> Candidate:
    names = tuple(one.name for one in types)
    all_types = [*types, *(kind for one in pool.fallback for kind in _types_of(one, catalog))]
    block = set(pool.purchases) == {"capacity-block"}
    price = None if block else usd_per_hour(catalog, names, stack.region)
    rank = usd_per_hour(catalog, names, stack.region) or usd_per_hour(catalog, names, REFERENCE_REGION) or 0.0
    node = node_shape(all_types, catalog, made_here=stack.config.target.makes_cluster, reserve=pool.reserve)
    vcpus, others = max(t.vcpus for t in types), _others(pool, stack, catalog)
    return Candidate(pool.accelerator, names, node, vcpus, price, rank, others, block)


def _others(pool: Pool, stack: LoadedStack, catalog: Catalog) -> tuple[OtherNode, ...]:
    return tuple(
        OtherNode(
            one.accelerator,
            tuple(one.instance_types),
            one.purchases,
            usd_per_hour(catalog, one.instance_types, stack.region),
        )
        for one in pool.fallback
    )


def _least(node: NodeShape, pool: Pool, catalog: Catalog) -> NodeShape:
    """What a node of a given size and one of each fallback offer at least."""
    types = [kind for one in pool.fallback for kind in _types_of(one, catalog)]
    if not types:
        return node
    other = node_shape(types, catalog, made_here=False, reserve=pool.reserve)
    cpu, memory = min(node.cpu_millis, other.cpu_millis), min(node.memory_mib, other.memory_mib)
    return replace(node, cpu_millis=cpu, memory_mib=memory, shm_mib=min(node.shm_mib, other.shm_mib))


def usd_per_hour(catalog: Catalog, types: Sequence[str], region: str | None) -> float | None:
    """The highest on-demand price among `types`; None when one of them is unknown."""
    prices = [catalog.usd_per_hour(name, region=region or "") for name in types]
    return None if None in prices else max(filter(None, prices), default=None)


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


def on_one_node(choices: Sequence[PoolChoice]) -> PoolChoice:
    """This machine's pools as one, with the models of all: they share its CPUs and its cards."""
    first, *others = sorted(choices, key=lambda choice: -choice.candidate.node.gpus)
    if not others:
        return first
    beside = tuple(one.candidate.accelerator for one in others)
    demands = [demand for choice in choices for demand in choice.demands]
    return _evaluated(first.pool, replace(first.candidate, beside=beside), demands)


def _evaluated(pool: Pool, candidate: Candidate, demands: Sequence[Demand]) -> PoolChoice:
    least = nodes_for(demands, {d.model_id: d.min for d in demands}, candidate.room)
    most = nodes_for(demands, {d.model_id: max(d.max, d.min) for d in demands}, candidate.room)
    return PoolChoice(pool, candidate, tuple(demands), least, most)
