"""What is wrong, or dearer than it need be, about models and their pools: one sentence each, with the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.catalog import Catalog, NoPrice
from infra.planning.candidates import REFERENCE_REGION, UNBOUNDED, Candidate, PoolChoice
from infra.planning.demand import Demand
from infra.planning.nodes import MIB, node_shape
from infra.planning.packing import copies
from infra.stack import LoadedStack
from serving.config.errors import Finding, Severity

#: A hint about CPUs is given from this saving on, and never below this part of what was asked.
WORTH_SAVING, LEAST_CPUS = 0.1, 0.5


def missing_pool(stack: LoadedStack, demand: Demand) -> Finding:
    """No pool has the model's accelerator."""
    accelerator = demand.model.config.accelerator
    entry = f"{{name: {accelerator.lower()}, accelerator: {accelerator}, maxNodes: {max(demand.max, 1)}}}"
    message = f"no pool has {accelerator}, which {demand.model_id} needs; append {entry} at the end of the list"
    return stack.finding(("pools",), message)


def too_large(demand: Demand, candidates: Sequence[Candidate], catalog: Catalog) -> Finding:
    """No node of the pools with its accelerator carries a replica, or not together with the pool's other models."""
    largest = max(candidates, key=lambda c: (c.node.gpus, c.node.cpu_millis, c.node.memory_mib))
    at = demand.model.document.finding
    unknown = sorted(set(demand.total) - set(largest.offer))
    if unknown and all(name != "GPU" for name in unknown):
        message = f"asks for {', '.join(unknown)}, which no node offers; nodes offer {', '.join(largest.offer)}"
        return at(("scaling_config", "resources_per_worker"), message)
    asked = f"one replica asks for {amounts(demand.total)}; {largest.name} offers {amounts(largest.offer)}"
    if any(demand.fits(c.room) for c in candidates):
        accelerator = demand.model.config.accelerator
        message = (
            f"{asked}, but no node carries it beside the pool's other models; append another pool with {accelerator}"
        )
        return at(("scaling_config",), message)
    return at(("scaling_config",), f"{asked}; {_way_out(demand, candidates, catalog)}")


def _way_out(demand: Demand, candidates: Sequence[Candidate], catalog: Catalog) -> str:
    """The cheapest instance type that would carry the replica, else what to ask less of."""
    tried = {name for candidate in candidates for name in candidate.instance_types}
    accelerator, able = demand.model.config.accelerator, []
    for one in catalog.instance_types_with(accelerator):
        other = Candidate(accelerator, (one.name,), node_shape([one], catalog), one.vcpus, None, 0.0)
        if tried and one.name not in tried and demand.fits(other.room):
            able.append((_price(one.name, catalog), one.name))
    if not able:
        return "ask for fewer workers, CPUs or less memory"
    price, name = min(able)
    return f"append a pool with instanceTypes: [{name}] ({price:.2f} USD/h), or ask for less"


def _price(name: str, catalog: Catalog) -> float:
    try:
        return catalog.usd_per_hour(name, region=REFERENCE_REGION)
    except NoPrice:
        return float("inf")


def amounts(resources: Mapping[str, float]) -> str:
    """`9 CPU, 1 GPU, 8.0 GiB memory` for messages."""
    texts = [f"{value:g} {name}" for name, value in resources.items() if name in ("CPU", "GPU")]
    if 0 < resources.get("memory", 0) < UNBOUNDED:
        texts.append(f"{resources['memory'] / MIB / 1024:.1f} GiB memory")
    return ", ".join(texts) or "nothing"


def choice_findings(
    index: int, stack: LoadedStack, choice: PoolChoice, candidates: Sequence[Candidate]
) -> list[Finding]:
    """Limits, pinning, and CPUs that cost a larger node."""
    found = _limits(index, stack, choice)
    if choice.pool.instance_types == "auto" and stack.config.target == "eks":
        path = ("pools", index)
        message = (
            f"instanceTypes is left open and now is {choice.candidate.name}; `modelfleet plan --stack {stack.name} "
            "--pin` writes it down, so that a later model cannot change a live pool"
        )
        found.append(stack.finding(path, message, Severity.NOTICE))
        found += [hint for demand in choice.demands if (hint := _cpu_hint(demand, choice, candidates)) is not None]
    return found


def _limits(index: int, stack: LoadedStack, choice: PoolChoice) -> list[Finding]:
    """maxNodes against the models' fewest and most replicas."""
    pool, at = choice.pool, ("pools", index, "maxNodes")
    if choice.min_nodes > pool.max_nodes:
        who = ", ".join(f"{d.model_id} {d.min}" for d in choice.demands if d.min)
        message = (
            f"found {pool.max_nodes}; min_replicas ({who}) need {choice.min_nodes} nodes; write {choice.min_nodes}"
        )
        return [stack.finding(at, message)]
    if choice.max_nodes > pool.max_nodes:
        message = (
            f"found {pool.max_nodes}; max_replicas of all its models at once would take {choice.max_nodes} nodes, "
            f"so replicas beyond {pool.max_nodes} nodes wait; raise it or lower max_replicas"
        )
        return [stack.finding(at, message, Severity.WARNING)]
    return []


def _cpu_hint(demand: Demand, choice: PoolChoice, candidates: Sequence[Candidate]) -> Finding | None:
    """Fewer CPUs per worker would do with a cheaper node."""
    scaling = demand.model.config.scaling_config
    asked, workers = scaling.num_cpus_per_worker, scaling.num_workers
    if len(demand.parts) == 1 or not asked or not copies(demand.whole, choice.candidate.room):
        return None
    now = choice.candidate.rank_price / copies(demand.whole, choice.candidate.room)
    for candidate in sorted(candidates, key=lambda c: c.rank_price):
        without = {name: amount for name, amount in demand.whole.items() if name != "CPU"}
        count = copies(without, candidate.room)
        others = demand.total["CPU"] - asked * workers
        allowed = (candidate.offer["CPU"] / count - others) // workers if count else 0
        if LEAST_CPUS * asked <= allowed < asked and candidate.rank_price / count < (1 - WORTH_SAVING) * now:
            message = (
                f"found {asked:g}; with {allowed:g} a replica would do with {candidate.name} "
                f"({candidate.rank_price / count:.2f} instead of {now:.2f} USD/h)"
            )
            return demand.model.document.finding(("scaling_config", "num_cpus_per_worker"), message, Severity.NOTICE)
    return None
