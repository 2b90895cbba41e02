"""What this machine has, for the local target."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import psutil

from modelfleet.infra.names import LAST_START, local_folder, mark
from modelfleet.infra.planning.local import Machine
from modelfleet.infra.reading.cards import these_gpus
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.accelerators import CPU


def this_machine(stack: LoadedStack, root: Path) -> Machine:
    """All memory of this machine, whoever uses it now: a plan does not change with what else runs.

    Its cards are looked at only where a pool has GPUs, less what this stack's own processes have of them.
    """
    wanted = any(pool.accelerator != CPU for pool in stack.config.pools)
    folder = local_folder(root, stack.name)
    gpus = these_gpus(mark(folder, "ray"), last_session=_left_session(folder)) if wanted else None
    return Machine(psutil.virtual_memory().total, gpus)


def _left_session(folder: Path) -> int | None:
    """The session of the stack's last Ray where its leader has ended; None where it runs, and has the mark itself.

    Until the last of a session ends, no other process gets its leader's id.
    """
    with suppress(OSError, ValueError, KeyError):
        leader = int(json.loads((folder / LAST_START).read_text(encoding="utf-8"))["pid"])
        return None if psutil.pid_exists(leader) else leader
    return None
