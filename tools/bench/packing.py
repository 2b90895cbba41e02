"""Compares packing with the rule 'cheapest instance that fits one replica, one replica per node', and with an optimum.

    python -m tools.bench.packing

Fleets come from a fixed seed: model files as in practice (1 to 8 workers, 1 to 10 CPUs each, 0 to 20 replicas) on pools
of every accelerator. `awkward` fleets also have CPU-only models, and numbers of CPUs that share no divisor. Prices are
the catalog's, for us-east-1.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from modelfleet.infra.catalog import Catalog, default_catalog
from modelfleet.infra.planning import Plan, plan
from modelfleet.infra.planning.candidates import candidates_of
from modelfleet.infra.planning.demand import demand_of
from modelfleet.infra.planning.plan import CodeArtifact
from modelfleet.infra.stack import LoadedStack, StackConfig
from modelfleet.serving.config.document import Document
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig
from tools.bench.exact_packing import fewest_nodes

SEED = 20261124
#: Small, so that a large fleet needs several pools of the same accelerator.
MAX_NODES = 60
#: Worker counts per accelerator: small models on small GPUs, large ones on eight A100.
WORKERS = {
    "T4": (1, 1, 2, 4),
    "L4": (1, 1, 1, 2, 4),
    "A10G": (1, 1, 2, 4),
    "A100-40G": (1, 2, 4),
    "A100-80G": (2, 4, 8),
    "CPU": (1,),
}
ACCELERATORS = tuple(name for name in WORKERS if name != "CPU")
CPUS, AWKWARD_CPUS = (1, 2, 2, 4, 6, 8, 10), (1, 2, 3, 5, 7, 10, 11)
#: Number of fleets that are planned with first fit and with the exact search.
STACKS = 1000


@dataclass(frozen=True)
class Result:
    """USD per hour of the plan and of the plain rule, at minimum and maximum, and the time and memory of planning."""

    models: int
    pools: int
    usd_min: float
    usd_max: float
    plain_usd_min: float
    plain_usd_max: float
    cpu_s: float
    peak_mib: float


def fleet(models: int, pools: int, seed: int = SEED, *, awkward: bool = False) -> tuple[list[LoadedModel], LoadedStack]:
    """Returns random model files and a stack whose pools take turns through the accelerators."""
    rng = random.Random(seed)
    known = ("CPU", *ACCELERATORS) if awkward else ACCELERATORS
    accelerators = [known[index % len(known)] for index in range(pools)]
    entries = [{"name": f"p{i}", "accelerator": name, "maxNodes": MAX_NODES} for i, name in enumerate(accelerators)]
    data = {
        "models": ["*"],
        "target": "eks",
        "accountId": "111122223333",
        "auth": "none",
        "pools": entries,
        "cluster": {"publicAccessCidrs": ["203.0.113.0/24"]},
    }
    document = Document("stacks/Pulumi.bench.yaml", {}, {})
    stack = LoadedStack("bench", StackConfig.model_validate(data), "us-east-1", document, frozenset())
    cpus = AWKWARD_CPUS if awkward else CPUS
    return [_model(index, rng, sorted(set(accelerators)), cpus) for index in range(models)], stack


def _model(index: int, rng: random.Random, accelerators: Sequence[str], cpus: Sequence[int]) -> LoadedModel:
    accelerator = rng.choice(accelerators)
    least = rng.choice((0, 1, 1, 1, 2))
    steering = {f"accelerator_type:{accelerator}": 0.001}
    data = {
        "deployment_config": {
            "autoscaling_config": {"min_replicas": least, "max_replicas": least + rng.choice((1, 2, 4, 8, 18))},
            "ray_actor_options": {"num_cpus": rng.choice((0, 1, 1)), "resources": steering},
        },
        "engine_config": {"model_id": f"org/model-{index:04}"},
        "scaling_config": {
            "num_workers": rng.choice(WORKERS[accelerator]),
            "num_gpus_per_worker": 0 if accelerator == "CPU" else 1,
            "num_cpus_per_worker": rng.choice(cpus),
            "placement_strategy": "STRICT_PACK",
            "resources_per_worker": steering,
        },
    }
    return LoadedModel(ModelConfig.model_validate(data), Document(f"models/model-{index:04}.yaml", data, {}))


def plain_cost(models: Sequence[LoadedModel], stack: LoadedStack, catalog: Catalog) -> tuple[float, float]:
    """USD per hour of the plain rule at the minimum and at the maximum, without the stack's fixed costs."""
    low = high = 0.0
    for demand in map(demand_of, models):
        accelerator = demand.model.config.accelerator
        index = next(i for i, pool in enumerate(stack.config.pools) if pool.accelerator == accelerator)
        able = [c.rank_price for c in candidates_of(index, stack, catalog)[0] if demand.fits(c.room)]
        low, high = low + demand.min * min(able), high + demand.max * min(able)
    return low, high


def measure(models: int, pools: int, seed: int = SEED) -> Result:
    """One fleet."""
    files, stack = fleet(models, pools, seed)
    catalog = default_catalog()
    start = time.process_time()
    made = plan(files, stack, code=CodeArtifact("0" * 64), catalog=catalog, facts={})
    spent = time.process_time() - start
    low, high = pools_cost(made)
    plain_low, plain_high = plain_cost(files, stack, catalog)
    peak = _peak_mib()
    return Result(models, pools, low, high, plain_low, plain_high, spent, peak)


def against_exact(*, awkward: bool) -> str:
    """One line: how many of `STACKS` random fleets the exact search plans differently, and what that saves."""
    others, plain, exact = 0, 0.0, 0.0
    for seed in range(STACKS):
        files, stack = fleet(random.Random(seed).randint(1, 20), 6, seed, awkward=awkward)
        first = _nodes(files, stack)
        with mock.patch("modelfleet.infra.planning.packing.first_fit", fewest_nodes):
            best = _nodes(files, stack)
        others += first != best
        plain, exact = plain + sum(usd for _, _, usd in first), exact + sum(usd for _, _, usd in best)
    kind = "awkward" if awkward else "usual"
    return (
        f"{STACKS} {kind} fleets: the exact search plans {others} differently; "
        f"USD/h {plain:,.0f} with first fit, {exact:,.0f} with it ({plain / exact - 1:+.2%})"
    )


def _nodes(files: Sequence[LoadedModel], stack: LoadedStack) -> list[tuple[tuple[str, ...], int, float]]:
    """Each pool's types, its nodes at minimum plus maximum, and their USD per hour."""
    made = plan(files, stack, code=CodeArtifact("0" * 64), catalog=default_catalog(), facts={})
    counts = [(pool, pool.min_nodes + pool.needed_nodes) for pool in made.pools]
    return [(pool.instance_types, count, count * (pool.usd_per_node_hour or 0)) for pool, count in counts]


def _peak_mib() -> float:
    """Peak memory of this program in MiB; `ru_maxrss` would also count the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def pools_cost(made: Plan) -> tuple[float, float]:
    """USD per hour of the pools alone, at the minimum and at the maximum; the maximum ignores maxNodes."""
    costs = [pool.cost for pool in made.pools]
    high = sum(pool.needed_nodes * (pool.usd_per_node_hour or 0) for pool in made.pools)
    return sum(c.min_usd_per_hour or 0 for c in costs), high


def main() -> None:
    """Print one line per fleet."""
    print("models  pools   USD/h min (plain, ratio)      USD/h max (plain, ratio)      CPU s  peak MiB")
    for models, pools in ((5, 5), (20, 5), (100, 10), (1000, 20)):
        r = measure(models, pools)
        low, high = r.usd_min / r.plain_usd_min, r.usd_max / r.plain_usd_max
        print(
            f"{r.models:6}  {r.pools:5}   {r.usd_min:9.2f} ({r.plain_usd_min:9.2f}, {low:.2f})  "
            f"{r.usd_max:9.2f} ({r.plain_usd_max:9.2f}, {high:.2f})  {r.cpu_s:6.2f}  {r.peak_mib:8.0f}"
        )
    for awkward in (False, True):
        print(against_exact(awkward=awkward))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
