"""Waits for a mirror that a Job next to the cluster is filling."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.read import Status, status

POLL_S = 5.0
#: Seconds to wait; unset if a mirror is filled before its application is deployed.
WAIT = "MODELFLEET_MIRROR_WAIT_S"


def wait_until_complete(
    uri: str, *, look: Callable[[str], Status] = status, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return once the mirror is complete; raises `MirrorError` if it is not after `MODELFLEET_MIRROR_WAIT_S` seconds.

    Without that variable it returns at once, without a query: the replica reads the mirror and reports what it lacks.
    """
    seconds = wait_s()
    end = time.monotonic() + seconds
    while seconds and (found := look(uri)) is not Status.COMPLETE:
        if time.monotonic() > end:
            raise MirrorError(overdue(uri, found))
        sleep(POLL_S)


def wait_s() -> float:
    """`MODELFLEET_MIRROR_WAIT_S`; 0 where a mirror is filled before its application is deployed."""
    return float(os.environ.get(WAIT) or 0)


def is_filling(uri: str, *, look: Callable[[str], Status] = status) -> bool:
    """Whether a Job may still be copying; never, and without a query, where nobody waits for one."""
    return wait_s() > 0 and look(uri) is not Status.COMPLETE


def overdue(uri: str, found: str) -> str:
    """The sentence about a mirror that is not complete in time; `found` is its state."""
    command = "kubectl -n NAMESPACE-mirror logs -l app.kubernetes.io/name=mirror"
    return f"{uri} is {found} after {wait_s():.0f} s; its Job says why: {command}"
