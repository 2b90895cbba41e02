"""Defaults that only a request's field can carry (`seed`, `min_tokens`, …): written into the JSON body.

Used only for a model whose `generate_kwargs` has such a key, because it costs a second parse of every body.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = ("/v1/completions", "/v1/chat/completions")


class BodyDefaults:
    """Pure ASGI: puts `defaults` under the fields of a completion request; other requests pass untouched."""

    def __init__(self, app: ASGIApp, defaults: Mapping[str, Any]) -> None:
        self.app, self.defaults = app, dict(defaults)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(PATHS):
            await self.app(scope, receive, send)
            return
        parts, more = [], True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                await self.app(scope, _replay(message, receive), send)
                return
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = self._with_defaults(b"".join(parts))
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self.app(scope, _replay({"type": "http.request", "body": body, "more_body": False}, receive), send)

    def _with_defaults(self, body: bytes) -> bytes:
        try:
            data = json.loads(body)
        except ValueError:
            return body  # vLLM's own error says what is wrong with it
        if not isinstance(data, dict) or self.defaults.keys() <= data.keys():
            return body
        return json.dumps(self.defaults | data).encode()


def _replay(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
