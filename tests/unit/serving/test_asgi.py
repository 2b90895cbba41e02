"""The two small ASGI layers around vLLM's application."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from modelfleet.serving.body_defaults import BodyDefaults
from modelfleet.serving.gate import EngineGate


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Returns the body that it got, and remembers its length header."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    length = dict(scope["headers"]).get(b"content-length", b"")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-length", length)]})
    await send({"type": "http.response.body", "body": body})


def call(
    app: Any, *parts: bytes, path: str = "/m/v1/completions", method: str = "POST"
) -> tuple[int, dict[bytes, bytes], bytes]:
    waiting = [{"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"content-length", b"1")]}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_defaults_are_added_to_a_body_that_comes_in_pieces() -> None:
    _, headers, body = call(BodyDefaults(echo, {"/v1/completions": {"seed": 1, "n": 2}}), b'{"n": ', b"3}")
    assert json.loads(body) == {"seed": 1, "n": 3}
    assert headers[b"x-length"] == str(len(body)).encode()


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"", b'{"seed": 0}'])
def test_a_body_that_needs_or_takes_no_defaults_is_left_alone(body: bytes) -> None:
    assert call(BodyDefaults(echo, {"/v1/completions": {"seed": 1}}), body)[2] == body


def test_other_paths_and_methods_are_left_alone() -> None:
    app = BodyDefaults(echo, {"/v1/completions": {"seed": 1}})
    assert call(app, b"{}", path="/m/v1/embeddings")[2] == b"{}"
    assert call(app, b"{}", method="PUT")[2] == b"{}"


def test_a_dead_engine_is_503_with_retry_after_and_an_openai_error() -> None:
    engine = SimpleNamespace(errored=False)
    app = EngineGate(echo, engine)
    assert call(app, b"x")[0] == 200
    engine.errored = True
    status, headers, body = call(app, b"x")
    assert (status, headers[b"retry-after"]) == (503, b"5")
    assert json.loads(body)["error"]["code"] == 503


def test_an_open_request_is_counted_until_it_ends_even_if_it_fails() -> None:
    counts: list[int] = []

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        counts.append(app.open_requests)
        raise ConnectionResetError

    app = EngineGate(fails, SimpleNamespace(errored=False))
    with pytest.raises(ConnectionResetError):
        call(app, b"x")
    assert counts == [1] and app.open_requests == 0
