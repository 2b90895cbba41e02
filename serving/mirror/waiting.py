"""Waiting for a mirror that a Job beside the cluster is filling."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from serving.errors import MirrorError
from serving.mirror.read import Status, status

POLL_S = 5.0
#: Seconds to wait; unset where a mirror is filled before its application is deployed.
WAIT = "MODELFLEET_MIRROR_WAIT_S"


def wait_until_complete(
    uri: str, *, look: Callable[[str], Status] = status, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return when the mirror is whole; raises `MirrorError` when it is not in `MODELFLEET_MIRROR_WAIT_S` seconds.

    Without that variable nothing is asked and nothing awaited: the replica reads the mirror, and says what it lacks.
    """
    seconds = float(os.environ.get(WAIT) or 0)
    end = time.monotonic() + seconds
    while seconds and (found := look(uri)) is not Status.COMPLETE:
        if time.monotonic() > end:
            command = "kubectl logs -l app.kubernetes.io/name=mirror"
            raise MirrorError(f"{uri} is {found} after {seconds:.0f} s; its Job says why: {command}")
        sleep(POLL_S)
