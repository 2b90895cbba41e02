"""What this machine has, for the local target."""

from __future__ import annotations

from pathlib import Path

import psutil

from modelfleet.infra.names import mark
from modelfleet.infra.planning.local import Machine
from modelfleet.infra.reading.cards import these_gpus
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.accelerators import CPU


def this_machine(stack: LoadedStack, root: Path) -> Machine:
    """All memory of this machine, whoever uses it now: a plan does not change with what else runs.

    Its cards are looked at only where a pool has GPUs, less what this stack's own processes have of them.
    """
    wanted = any(pool.accelerator != CPU for pool in stack.config.pools)
    own = mark(root / ".modelfleet" / "local" / stack.name, "ray")
    return Machine(psutil.virtual_memory().total, these_gpus(own) if wanted else None)
