"""Returns a 503 that clients retry to new requests while an engine is dead and its replica is about to end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

RETRY_AFTER_S = 5
BODY = json.dumps(
    {
        "error": {
            "message": "The model's engine stopped and is being started again; try again in a moment.",
            "type": "ServiceUnavailableError",
            "param": None,
            "code": 503,
        }
    }
).encode()


class EngineGate:
    """Pure ASGI; vLLM itself would return 500, which clients do not retry.

    `open_requests` is the number of requests that have not ended yet.
    """

    def __init__(self, app: ASGIApp, engine: Any) -> None:
        self.app, self.engine = app, engine
        self.open_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not self.engine.errored:
            self.open_requests += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.open_requests -= 1
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(BODY)).encode()),
            (b"retry-after", str(RETRY_AFTER_S).encode()),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})
