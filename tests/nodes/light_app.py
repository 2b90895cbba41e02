"""A Serve application of the serving package, except that the replica streams ticks instead of tokens.

`import_path: light_app:build`, from the code zip with this file added, takes the arguments that the plan writes for
`modelfleet.serving.app:build`: resources, placement group, limits and route are those of the model file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ray.serve import Application
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from modelfleet.serving.app import AppArgs, application

TICK_SECONDS = 0.2


class Ticker:
    """Replaces `modelfleet.serving.replica.VllmReplica`."""

    def __init__(self, model: dict[str, Any], weights: dict[str, Any]) -> None:
        """Takes what a replica takes."""

    async def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(routes=[Route("/stream", _stream)])


async def _stream(request: Request) -> StreamingResponse:
    return StreamingResponse(_ticks(), media_type="text/plain")


async def _ticks() -> AsyncIterator[str]:
    number = 0
    while True:
        yield f"{number}\n"
        number += 1
        await asyncio.sleep(TICK_SECONDS)


def build(args: dict[str, Any]) -> Application:
    """The application of one model."""
    return application(Ticker, AppArgs.model_validate(args))
