"""Defaults that only a request's field can carry (`seed`, `min_tokens`, …), written into the JSON body.

Used only for a model whose `generate_kwargs` has such a key, because it costs a second parse of every body.
`max_tokens` is one of them for completions only, where vLLM's request has its own default (16).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COMPLETIONS, CHAT, CHATS = "/v1/completions", "/v1/chat/completions", "/v1/chat/completions/batch"


class BodyDefaults:
    """Pure ASGI: adds the defaults of fields that a request leaves out; paths not in `by_path` pass untouched."""

    def __init__(self, app: ASGIApp, by_path: Mapping[str, Mapping[str, Any]]) -> None:
        self.app, self.by_path = app, {path: dict(defaults) for path, defaults in by_path.items() if defaults}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        defaults = self._defaults(scope)
        if not defaults:
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
        body = _with_defaults(b"".join(parts), defaults)
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self.app(scope, _replay({"type": "http.request", "body": body, "more_body": False}, receive), send)

    def _defaults(self, scope: Scope) -> dict[str, Any]:
        if scope["type"] == "http" and scope["method"] == "POST":
            for path, defaults in self.by_path.items():
                if scope["path"].endswith(path):
                    return defaults
        return {}


def _with_defaults(body: bytes, defaults: dict[str, Any]) -> bytes:
    try:
        data = json.loads(body)
    except ValueError:
        return body  # vLLM's own error says what is wrong with it
    if not isinstance(data, dict) or defaults.keys() <= data.keys():
        return body
    return json.dumps(defaults | data).encode()


def _replay(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
