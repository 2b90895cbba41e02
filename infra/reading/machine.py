"""What this machine has, for the local target."""

from __future__ import annotations

import psutil

from modelfleet.infra.planning.local import Machine


def this_machine() -> Machine:
    """All memory of this machine, whoever uses it now: a plan does not change with what else runs."""
    return Machine(psutil.virtual_memory().total)
