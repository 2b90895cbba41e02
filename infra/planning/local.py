"""The local target's one node: this machine, as Ray counts it. It depends on the stack file only, so that a
changed model never restarts the local Ray."""

from __future__ import annotations

from modelfleet.infra.planning.plan import NodeShape
from modelfleet.infra.stack import Pool, StackConfig
from modelfleet.serving.config.accelerators import CPU

#: CPUs that Ray counts when the stack file gives no number. They only steer placement and reserve no core.
DEFAULT_CPUS = 32
#: Pure functions cannot know this machine's memory, so the plan does not compare it with the models.
UNKNOWN_MEMORY_MIB = 0


def local_node(pool: Pool, config: StackConfig) -> NodeShape:
    """This machine as the pool's node."""
    cpus = config.local.cpus or DEFAULT_CPUS
    return NodeShape(
        cpu_millis=cpus * 1000,
        memory_mib=UNKNOWN_MEMORY_MIB,
        gpus=0 if pool.accelerator == CPU else config.local.gpus,
        shm_mib=0,
    )
