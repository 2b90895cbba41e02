"""A replica without an engine for `replay`. It is bound as `modelfleet.serving.app` binds vLLM's, and waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from ray.serve import Application

from modelfleet.serving.app import AppArgs, application
from modelfleet.serving.waiting import Places
from tools.scaling.simulate import FIRST_TOKEN_S

START_VARIABLE = "MODELFLEET_REPLAY_START_S"
"""Seconds that a replica waits before it answers, as an engine that starts."""


class WaitingReplica:
    """Streams two events per request, as far apart as it says, once it has waited as long as an engine starts."""

    def __init__(self, model: dict[str, Any], weights: dict[str, Any]) -> None:
        self.model_id = model["engine_config"]["model_id"]
        self.places = Places()
        self.places.watch()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """As `VllmReplica`."""
        return self.places.stats()

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this once the replica's process is up."""
        await asyncio.sleep(float(os.environ[START_VARIABLE]))
        app = FastAPI()

        @app.post("/v1/completions")
        async def complete(request: Request) -> StreamingResponse:
            asked = await request.json()
            return StreamingResponse(_events(asked["answer_s"]), media_type="text/event-stream")

        return app


async def _events(answer_s: float) -> AsyncIterator[str]:
    await asyncio.sleep(FIRST_TOKEN_S)
    yield "data: {}\n\n"
    await asyncio.sleep(max(0.0, answer_s - FIRST_TOKEN_S))
    yield "data: [DONE]\n\n"


def build(args: dict[str, Any]) -> Application:
    """Serve application of the waiting replica."""
    return application(WaitingReplica, AppArgs.model_validate(args))
