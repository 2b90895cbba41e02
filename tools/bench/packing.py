"""Packing against the plain rule 'cheapest instance that fits one replica, one replica a node': cost and speed.

    python -m tools.bench.packing

Fleets are drawn from a fixed seed: model files as in practice (1 to 8 workers, 1 to 10 CPUs each, 0 to 20 replicas)
on pools of every accelerator. Prices are the catalog's, us-east-1.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.catalog import Catalog, default_catalog
from infra.planning import Plan, plan
from infra.planning.candidates import candidates_of
from infra.planning.demand import demand_of
from infra.planning.plan import CodeArtifact
from infra.stack import LoadedStack, StackConfig
from serving.config.document import Document
from serving.config.load import LoadedModel
from serving.config.schema import ModelConfig

SEED = 20261124
#: So that a large fleet needs several pools of the same accelerator.
MAX_NODES = 60
ACCELERATORS = ("T4", "L4", "A10G", "A100-40G", "A100-80G")
#: Workers that occur per accelerator: small models on small GPUs, large ones on eight A100.
WORKERS = {
    "T4": (1, 1, 2, 4),
    "L4": (1, 1, 1, 2, 4),
    "A10G": (1, 1, 2, 4),
    "A100-40G": (1, 2, 4),
    "A100-80G": (2, 4, 8),
}


@dataclass(frozen=True)
class Result:
    """USD per hour at minimum and maximum of the plan and of the plain rule, and what planning took."""

    models: int
    pools: int
    usd_min: float
    usd_max: float
    plain_usd_min: float
    plain_usd_max: float
    cpu_s: float
    peak_mib: float


def fleet(models: int, pools: int, seed: int = SEED) -> tuple[list[LoadedModel], LoadedStack]:
    """Random model files and a stack whose pools take turns through the accelerators."""
    rng = random.Random(seed)
    accelerators = [ACCELERATORS[index % len(ACCELERATORS)] for index in range(pools)]
    entries = [{"name": f"p{i}", "accelerator": name, "maxNodes": MAX_NODES} for i, name in enumerate(accelerators)]
    data = {"models": ["*"], "target": "eks", "accountId": "111122223333", "auth": "none", "pools": entries}
    document = Document("stacks/Pulumi.bench.yaml", {}, {})
    stack = LoadedStack("bench", StackConfig.model_validate(data), "us-east-1", document, frozenset())
    return [_model(index, rng, sorted(set(accelerators))) for index in range(models)], stack


def _model(index: int, rng: random.Random, accelerators: Sequence[str]) -> LoadedModel:
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
            "num_cpus_per_worker": rng.choice((1, 2, 2, 4, 6, 8, 10)),
            "placement_strategy": "STRICT_PACK",
            "resources_per_worker": steering,
        },
    }
    return LoadedModel(ModelConfig.model_validate(data), Document(f"models/model-{index:04}.yaml", data, {}))


def plain_cost(models: Sequence[LoadedModel], stack: LoadedStack, catalog: Catalog) -> tuple[float, float]:
    """USD per hour of the plain rule, at the minimum and at the maximum, the stack's fixed costs left out."""
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


def _peak_mib() -> float:
    """Most memory that this program held, in MiB; `ru_maxrss` would count the process that started it too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def pools_cost(made: Plan) -> tuple[float, float]:
    """USD per hour of the pools alone, at the maximum without the limit of maxNodes."""
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
    sys.stdout.flush()


if __name__ == "__main__":
    main()
