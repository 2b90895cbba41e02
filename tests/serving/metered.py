"""A replica's application without Ray: vLLM's engine, the meter and the gate, at `/<slug>` of a port as Serve has it.

`python -m tests.serving.metered MODEL.json WEIGHTS ADAPTER FOLDER PORT`; prints `ready` to stdout.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from modelfleet.serving import usage
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.engine import start
from modelfleet.serving.engine_args import engine_arguments
from modelfleet.serving.gate import EngineGate
from modelfleet.serving.settling import Settling
from modelfleet.serving.startup import StartupClock
from modelfleet.serving.usage import UsageMeter

#: Seconds between two lines of an open request, here: the tiny model's whole answer takes less than the real ten.
EACH_S = 0.3


class Alone:
    """What replicas share, where there is one."""

    def put(self, replica: str, text: str, *, new: bool = False) -> None:
        """Nobody reads it."""

    def all(self) -> dict[str, str]:
        return {}

    def remove(self, replica: str) -> None:
        """Nothing is there."""


async def main(model_file: str, weights: str, adapter: str, folder: str, port: str) -> None:
    """Serves until it is killed."""
    model = ModelConfig.model_validate(json.loads(Path(model_file).read_text(encoding="utf-8")))
    names = [one.name for one in model.engine_config.lora]
    arguments = engine_arguments(model, weights, {name: Path(adapter) for name in names})
    app, engine, _ = await start(model, arguments, StartupClock())
    usage.PERIOD_S = usage.OPEN_EVERY_S = EACH_S
    meter = UsageMeter(app, Path(folder), settling=Settling("metered", Alone()))
    noting = [asyncio.create_task(one) for one in (meter.run(), meter.tell())]
    served = Starlette(routes=[Mount(f"/{model.slug}", EngineGate(meter, engine))])
    server = uvicorn.Server(uvicorn.Config(served, host="127.0.0.1", port=int(port), log_level="warning"))
    print("ready", flush=True)
    await server.serve()
    for task in noting:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
