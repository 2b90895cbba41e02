"""A stand-in engine, to measure what is around an engine: an application that streams tokens nobody computed.

Every table that uses it says so. It answers `/v1/chat/completions` as vLLM's application would (FastAPI, one event per
token). This shows what Serve and the gateway add per request and per chunk, without an engine's noise.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.serve import Application

#: Seconds between two tokens.
PACE_S = 0.004


def application() -> FastAPI:
    """The application alone, for uvicorn: `uvicorn --factory tools.bench.echo:application`."""
    app = FastAPI()

    @app.get("/health")
    async def health() -> Any:
        return {}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": "bench/echo", "object": "model", "created": 0, "owned_by": "bench"}]}

    @app.post("/v1/chat/completions")
    @app.post("/{slug}/v1/chat/completions")  # as the gateway asks one server with several applications
    async def chat(request: Request) -> Any:
        asked = await request.json()
        tokens = asked.get("max_tokens") or asked["max_completion_tokens"]
        if asked.get("stream"):
            return StreamingResponse(_events(tokens), media_type="text/event-stream")
        await asyncio.sleep(PACE_S * tokens)
        return JSONResponse(_event("a" * tokens))

    return app


async def _events(tokens: int) -> AsyncIterator[str]:
    for _ in range(tokens):
        await asyncio.sleep(PACE_S)
        yield f"data: {json.dumps(_event('token'))}\n\n"
    yield "data: [DONE]\n\n"


def _event(text: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "bench/echo",
        "choices": [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}],
    }


class EchoReplica:
    """The same kind of deployment as `modelfleet.serving.replica.VllmReplica`, with the stand-in instead of vLLM."""

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the replica's process is up."""
        return application()


def build(_: dict[str, Any]) -> Application:
    """Returns the Serve application of the stand-in."""
    deployment = serve.deployment(serve.ingress()(EchoReplica)).options(
        name="vllm", max_ongoing_requests=256, ray_actor_options={"num_cpus": 1}
    )
    bound: Application = deployment.bind()
    return bound
