"""While an engine is dead and its replica about to end, new requests get a 503 that a client may repeat."""

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
    """Pure ASGI: one attribute read per request; vLLM itself answers 500, after which clients do not try again."""

    def __init__(self, app: ASGIApp, engine: Any) -> None:
        self.app, self.engine = app, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or not self.engine.errored:
            await self.app(scope, receive, send)
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(BODY)).encode()),
            (b"retry-after", str(RETRY_AFTER_S).encode()),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})
