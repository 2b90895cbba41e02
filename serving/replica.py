"""One replica of one model: the weights, vLLM's engine, and vLLM's own OpenAI application as the Serve ingress."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

from serving.config.schema import ModelConfig

if TYPE_CHECKING:
    from starlette.types import ASGIApp

ENGINE_POLL_S = 0.25
"""How often a replica looks whether its engine lives; an attribute read."""

LAST_WORDS_S = 1.0
"""Seconds for open streams to receive their error event before the process of a dead engine ends."""

logger = logging.getLogger("ray.serve")


class VllmReplica:
    """Serve deployment: builds vLLM's FastAPI application when the replica starts."""

    def __init__(self, model: dict[str, Any], weights: dict[str, Any]) -> None:
        self._model = ModelConfig.model_validate(model)
        self._weights = weights
        self._engine: Any = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once the replica's process is up; the replica is ready when this returns."""
        from serving.engine import start
        from serving.weights import resolve

        weights = await asyncio.to_thread(resolve, self._model, self._weights)
        app, self._engine = await start(self._model, weights)
        self._watch = asyncio.create_task(self._exit_with_engine())
        return app

    async def check_health(self) -> None:
        """Serve's health check: the engine answers."""
        if self._engine is not None:
            await self._engine.check_health()

    async def _exit_with_engine(self) -> None:
        """Ends the process once the engine is dead, so that Serve starts another at once.

        Left alone, Serve needs three failed health checks and answers 500 meanwhile (25 s, measured).
        """
        while not self._engine.errored:
            await asyncio.sleep(ENGINE_POLL_S)
        logger.error("the engine of %s died; this replica ends so that Serve starts a new one", self._model.model_id)
        await asyncio.sleep(LAST_WORDS_S)
        os._exit(1)
