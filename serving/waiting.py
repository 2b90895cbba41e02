"""What a replica says to the scaling policy: how many requests wait for a place in it, and how many have ended.

Serve reports the requests that have a place (`running_requests`), and no others of those that come straight to the
replica's own port. It knows them, but has no setting that reports them (Ray 2.60 `serve/_private/replica.py`,
`Replica._num_queued_requests` and `_start_request`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class Places:
    """Serve's places for requests in this process: `max_ongoing_requests` of them."""

    def __init__(self) -> None:
        self._finished = 0
        self._replica: Any = None

    def watch(self) -> None:
        """Begins to count; call it before the first request."""
        from ray.serve._private.replica import Replica

        start = Replica._start_request

        @asynccontextmanager
        async def counted(replica: Any, metadata: Any) -> AsyncIterator[None]:
            self._replica = replica  # none waits before one has a place, or asks for it
            try:
                async with start(replica, metadata):
                    yield
            finally:
                self._finished += 1

        Replica._start_request = counted  # type: ignore[method-assign,assignment]

    def stats(self) -> dict[str, float]:
        """For Serve's `record_autoscaling_stats`: `waiting` requests now, `finished` ones since the start."""
        waiting = 0 if self._replica is None else self._replica._num_queued_requests
        return {"waiting": float(waiting), "finished": float(self._finished)}
