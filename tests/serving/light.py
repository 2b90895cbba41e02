"""A replica without an engine, which shows in seconds, not minutes, what Serve and the gateway do with requests.

It is bound exactly as `modelfleet.serving.app` binds vLLM's, with the options from the model file.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from ray.serve import Application

from modelfleet.serving.app import AppArgs, application
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.turns import turn_of
from modelfleet.serving.waiting import Places


class LightReplica:
    """Answers `/v1/completions` with its process id, once per token, `pace_s` apart.

    With a part of a GPU it starts as `VllmReplica` does, when its turn on the card comes. It notes its card in the
    folder that is its source, and its start lasts until the test removes the second note.
    """

    def __init__(self, model: dict[str, Any], weights: dict[str, Any]) -> None:
        self._model, self._notes = ModelConfig.model_validate(model), weights["source"]
        self.places = Places()
        self.places.watch()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """As `VllmReplica`."""
        return self.places.stats()

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this once the replica's process is up."""
        app = FastAPI()
        if self._notes:
            await self._start(Path(self._notes))

        @app.post("/v1/completions")
        async def complete(request: Request) -> Any:
            asked = await request.json()
            tokens, pace_s = asked.get("max_tokens", 1), asked.get("pace_s", 0.01)
            if asked.get("stream"):
                return StreamingResponse(_events(tokens, pace_s), media_type="text/event-stream")
            await asyncio.sleep(tokens * pace_s)
            return JSONResponse({"pid": os.getpid()})

        return app

    async def _start(self, notes: Path) -> None:
        (notes / f"{self._model.slug}.card").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        async with turn_of(self._model, print):
            starts = notes / f"{self._model.slug}.starts"
            starts.touch()
            while starts.exists():
                await asyncio.sleep(0.1)


async def _events(tokens: int, pace_s: float) -> AsyncIterator[str]:
    for number in range(tokens):
        yield f"data: {json.dumps({'pid': os.getpid(), 'number': number})}\n\n"
        await asyncio.sleep(pace_s)
    yield "data: [DONE]\n\n"


def build(args: dict[str, Any]) -> Application:
    """Serve application of the light replica."""
    return application(LightReplica, AppArgs.model_validate(args))
