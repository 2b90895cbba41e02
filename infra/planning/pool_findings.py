"""What is wrong with models and their pools, or costs too much: one sentence each, with the fix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from modelfleet.infra.catalog import REFERENCE_REGION, Catalog
from modelfleet.infra.planning.candidates import UNBOUNDED, Candidate, PoolChoice
from modelfleet.infra.planning.demand import Demand
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.mirrors import stored_bytes
from modelfleet.infra.planning.nodes import MIB, OBJECT_STORE_MIB, node_shape, weights_disk_gb
from modelfleet.infra.planning.packing import copies
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import actor_options

#: A hint about CPUs must save at least the first share of the price and keep at least the second of the CPUs.
WORTH_SAVING, LEAST_CPUS = 0.1, 0.5


def missing_pool(stack: LoadedStack, demand: Demand) -> Finding:
    """The finding that no pool has the model's accelerator."""
    accelerator = demand.model.config.accelerator
    entry = f"{{name: {accelerator.lower()}, accelerator: {accelerator}, maxNodes: {max(demand.max, 1)}}}"
    message = f"no pool has {accelerator}, which {demand.model_id} needs; append {entry} at the end of the list"
    return stack.finding(("pools",), message)


def too_large(demand: Demand, candidates: Sequence[Candidate], catalog: Catalog) -> Finding:
    """The finding that no node with its accelerator carries a replica, alone or next to the pool's other models."""
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
            f"{asked}, but no node carries it next to the pool's other models; append another pool with {accelerator}"
        )
        return at(("scaling_config",), message)
    return at(("scaling_config",), f"{asked}; {_way_out(demand, candidates, catalog)}")


def _way_out(demand: Demand, candidates: Sequence[Candidate], catalog: Catalog) -> str:
    """The fix: the cheapest instance type that would carry the replica, otherwise to ask for less."""
    tried = {name for candidate in candidates for name in candidate.instance_types}
    accelerator, able = demand.model.config.accelerator, []
    for one in catalog.instance_types_with(accelerator):
        other = Candidate(accelerator, (one.name,), node_shape([one], catalog, made_here=False), one.vcpus, None, 0.0)
        if tried and one.name not in tried and demand.fits(other.room):
            able.append((catalog.usd_per_hour(one.name, region=REFERENCE_REGION) or float("inf"), one.name))
    if not able:
        return "ask for fewer workers, fewer CPUs or less memory"
    price, name = min(able)
    return f"append a pool with instanceTypes: [{name}] ({price:.2f} USD/h), or ask for less"


def amounts(resources: Mapping[str, float]) -> str:
    """`9 CPU, 1 GPU, 8.0 GiB memory` for messages."""
    texts = [f"{value:g} {name}" for name, value in resources.items() if name in ("CPU", "GPU")]
    if 0 < resources.get("memory", 0) < UNBOUNDED:
        texts.append(f"{resources['memory'] / MIB / 1024:.1f} GiB memory")
    return ", ".join(texts) or "nothing"


def choice_findings(
    index: int, stack: LoadedStack, choice: PoolChoice, candidates: Sequence[Candidate]
) -> list[Finding]:
    """Findings about limits, about open instance types, and about CPUs that cost a larger node."""
    found = _limits(index, stack, choice)
    if choice.pool.instance_types == "auto" and stack.config.target.chooses_nodes:
        path = ("pools", index)
        message = (
            f"instanceTypes is not set; the plan chose {choice.candidate.name}; `modelfleet plan --stack {stack.name} "
            "--pin` writes it into the stack file, so that a later model cannot change a live pool"
        )
        found.append(stack.finding(path, message, Severity.NOTICE))
        found += [hint for demand in choice.demands if (hint := _cpu_hint(demand, choice, candidates)) is not None]
    return found


def cpu_findings(stack: LoadedStack, choices: Sequence[PoolChoice]) -> list[Finding]:
    """Models whose pools hold them one by one, and this machine, which all pools share, does not: Ray would wait.

    With a pool that is over its own limit this says nothing more.
    """
    if not stack.config.target.on_this_machine or any(one.need_at_min > one.pool.max_nodes for one in choices):
        return []
    needed = math.ceil(sum(one.min * one.total.get("CPU", 0.0) for choice in choices for one in choice.demands))
    have = max((choice.candidate.node.cpu_millis // 1000 for choice in choices), default=0)
    if needed <= have:
        return []
    message = (
        f"the models take {needed} CPUs at their fewest replicas, and all pools together have this machine's {have}; "
        f"write {needed}, which steers placement and reserves no core, or serve fewer models here"
    )
    return [stack.finding(("local", "cpus"), message)]


def shared_memory_findings(choice: PoolChoice) -> list[Finding]:
    """Caches in host memory that /dev/shm of the node cannot hold: vLLM refuses to start with them.

    vLLM 0.32 `vllm/v1/kv_offload/cpu/shared_offload_region.py`: all of `kv_offloading_size`, for all workers together.
    The replicas of a node share it.
    """
    found = []
    room_gib = caches_gib(choice)
    for demand in choice.demands if room_gib is not None else ():
        asked = cache_gib(demand)
        together = max(1, min(copies(demand.whole, choice.candidate.room), demand.max))
        if room_gib is not None and asked * together > room_gib:
            each = f" for each of its {together} replicas" if together > 1 else ""
            message = (
                f"found {asked:g}{each}; it lies in /dev/shm, where {choice.candidate.name} has {room_gib:.1f} GiB for "
                f"it: write at most {int(room_gib / together)}, or use a larger node (a quarter of its memory, at most "
                "16 GiB)"
            )
            path = ("engine_config", "engine_kwargs", "kv_offloading_size")
            found.append(demand.model.document.finding(path, message))
    return found


def caches_gib(choice: PoolChoice) -> float | None:
    """What /dev/shm of the pool's nodes has for caches, GiB; None on this machine, where it is the machine's own."""
    shm_mib = choice.candidate.node.shm_mib
    return (shm_mib - OBJECT_STORE_MIB) / 1024 if shm_mib else None


def cache_gib(demand: Demand) -> float:
    """What one replica keeps in /dev/shm of its node (`kv_offloading_size`), GiB."""
    config = demand.model.config
    asked = config.engine_config.engine_kwargs.get("kv_offloading_size")
    return float(asked) if config.scaling_config.num_gpus_per_worker and isinstance(asked, int | float) else 0.0


def weights_room_gb(choice: PoolChoice, model: ModelConfig) -> int | None:
    """What weights on a node may take where this model keeps them, GB; None where the plan does not know that disk."""
    own_folder = "MODELFLEET_MODEL_CACHE" in actor_options(model)["runtime_env"]["env_vars"]
    return None if own_folder else weights_disk_gb(choice.candidate.node)


def weights_disk_findings(choice: PoolChoice, facts: Mapping[str, ModelFacts | None]) -> list[Finding]:
    """Weights that the disk of the pool's nodes does not hold: their replica would refuse to start.

    Weights that a file names on the node, streams past the disk or keeps in a folder of its own choice
    (`MODELFLEET_MODEL_CACHE`) take none of it.
    """
    found = []
    for demand in choice.demands:
        room_gb = weights_room_gb(choice, demand.model.config)
        if room_gb is None:
            continue
        engine = demand.model.config.engine_config
        size = stored_bytes(facts.get(demand.model_id))
        streamed = str(engine.engine_kwargs.get("load_format", "")).startswith("runai_streamer")
        if size is None or streamed or engine.weights_id.startswith("/") or size <= room_gb * 1e9:
            continue
        message = (
            f"needs {size / 1e9:,.0f} GB of disk for its weights; {choice.candidate.name} has {room_gb} GB for them; "
            "use a type with more of it, or `engine_kwargs.load_format: runai_streamer`"
        )
        found.append(demand.model.document.finding(("engine_config", "model_id"), message))
    return found


def _limits(index: int, stack: LoadedStack, choice: PoolChoice) -> list[Finding]:
    """Findings about a maxNodes that is too low for the models' fewest or most replicas."""
    pool, at = choice.pool, ("pools", index, "maxNodes")
    if choice.need_at_min > pool.max_nodes:
        who = ", ".join(f"{d.model_id} {d.min}" for d in choice.demands if d.min)
        message = (
            f"found {pool.max_nodes}; min_replicas ({who}) need {choice.need_at_min} nodes; write {choice.need_at_min}"
        )
        return [stack.finding(at, message)]
    if choice.need_at_max > pool.max_nodes:
        message = (
            f"found {pool.max_nodes}; max_replicas of all its models at once would take {choice.need_at_max} nodes, "
            f"so replicas beyond {pool.max_nodes} nodes wait; raise it or lower max_replicas"
        )
        return [stack.finding(at, message, Severity.WARNING)]
    return []


def _cpu_hint(demand: Demand, choice: PoolChoice, candidates: Sequence[Candidate]) -> Finding | None:
    """The notice that with fewer CPUs per worker a cheaper node would be enough."""
    scaling = demand.model.config.scaling_config
    asked, workers = scaling.num_cpus_per_worker, scaling.num_workers
    room = choice.candidate.room
    if not scaling.num_gpus_per_worker or not asked or demand.spreads(room) or not copies(demand.whole, room):
        return None
    now = choice.candidate.rank_price / copies(demand.whole, room)
    for candidate in sorted(candidates, key=lambda c: c.rank_price):
        without = {name: amount for name, amount in demand.whole.items() if name != "CPU"}
        count = copies(without, candidate.room)
        others = demand.total["CPU"] - asked * workers
        allowed = (candidate.offer["CPU"] / count - others) // workers if count else 0
        if LEAST_CPUS * asked <= allowed < asked and candidate.rank_price / count < (1 - WORTH_SAVING) * now:
            message = (
                f"found {asked:g}; with {allowed:g} a replica would fit {candidate.name} "
                f"({candidate.rank_price / count:.2f} instead of {now:.2f} USD/h)"
            )
            return demand.model.document.finding(("scaling_config", "num_cpus_per_worker"), message, Severity.NOTICE)
    return None
