"""The local target's one node: this machine, as Ray counts it. It depends on the stack file only, so that a
changed model never restarts the local Ray."""

from __future__ import annotations

from infra.planning.plan import NodeShape
from infra.stack import Pool, StackConfig
from serving.config.accelerators import CPU

#: CPUs that Ray counts with when the stack says nothing. Ray's CPUs only steer placement; they reserve no core.
DEFAULT_CPUS = 32
#: This machine's memory is not known to pure functions, and so not held against the models.
UNKNOWN_MEMORY_MIB = 0


def local_node(pool: Pool, config: StackConfig) -> NodeShape:
    """This machine as the pool's node."""
    cpus = config.local.cpus or DEFAULT_CPUS
    return NodeShape(
        cpu_millis=cpus * 1000,
        memory_mib=UNKNOWN_MEMORY_MIB,
        gpus=0 if pool.accelerator == CPU else config.local.gpus,
        gpu_memory_mib=0,
        nvme_gb=0,
        shm_mib=0,
    )
