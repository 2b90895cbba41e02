"""The local target's one node: this machine, as Ray counts it. It depends on the stack file only, so that a
changed model never restarts the local Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modelfleet.infra.planning.cards import Gpus
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.host_memory import host_bytes
from modelfleet.infra.planning.plan import NodeShape
from modelfleet.infra.stack import Pool, StackConfig
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import replica_bounds

Facts = Mapping[str, ModelFacts | None]
#: CPUs that Ray counts when the stack file gives no number. They only steer placement and reserve no core.
DEFAULT_CPUS = 32
#: Pure functions cannot know this machine's memory, so the plan does not compare it with the models.
UNKNOWN_MEMORY_MIB = 0


@dataclass(frozen=True)
class Machine:
    """What `infra/reading` found on this machine, for the local target. `gpus` is None where nobody looked."""

    memory_bytes: int
    gpus: Gpus | None = None


def memory_short(machine: Machine | None, model: ModelConfig, models: Iterable[ModelConfig], facts: Facts) -> bool:
    """Whether the machine's memory does not hold one replica of `model` more beside everybody's fewest.

    False where the machine, or what a replica takes, is not known.
    """
    more = host_bytes(model, facts.get(model.model_id)) if machine else 0
    if machine is None or not more:
        return False
    fewest = sum(max(replica_bounds(one)[0], 1) * host_bytes(one, facts.get(one.model_id)) for one in models)
    return fewest + more > machine.memory_bytes


def local_node(pool: Pool, config: StackConfig, gpus: int | None = None) -> NodeShape:
    """This machine as the pool's node: all pools are on it. `gpus` are its cards that serve."""
    cpus = config.local.cpus or DEFAULT_CPUS
    return NodeShape(
        cpu_millis=cpus * 1000,
        memory_mib=UNKNOWN_MEMORY_MIB,
        gpus=0 if pool.accelerator == CPU else gpus or config.local.gpus or 1,
        shm_mib=0,
    )
