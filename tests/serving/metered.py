"""A replica's application without Ray: vLLM's engine, the meter and the gate, at `/<slug>` of a port as Serve has it.

At `/plain--<slug>` the same engine answers without the meter, to compare. Beside the records are those of node time, of
a node that this process has for itself.

`python -m tests.serving.metered MODEL.json WEIGHTS ADAPTER FOLDER PORT`; prints `ready` to stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from modelfleet.serving import node_hours, usage
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.engine import start
from modelfleet.serving.engine_args import engine_arguments
from modelfleet.serving.gate import EngineGate
from modelfleet.serving.node_hours import NodeHours, RayNode
from modelfleet.serving.settling import Settling
from modelfleet.serving.startup import StartupClock
from modelfleet.serving.usage import UsageMeter, replica_name

#: Seconds between two lines of an open request, here: the tiny model's whole answer takes less than the real ten.
EACH_S = 0.3

#: The node's pool.
POOL = "cpu"


class OneNode:
    """What Ray would say of a node on which this replica alone holds half of the CPUs."""

    def __init__(self) -> None:
        began = psutil.Process().create_time()  # no process is older than its node
        self._node = RayNode(f"node-{os.getpid()}", POOL, began, None, 0.0, 2.0)

    def nodes(self) -> dict[str, RayNode]:
        return {self.here(): self._node}

    def held(self) -> dict[str, dict[str, float]]:
        return {self.here(): {"CPU": 1.0}}

    def first(self, minute: int) -> bool:
        return True

    def here(self) -> str:
        return self._node.node


class Alone:
    """What replicas share, where there is one."""

    def put(self, replica: str, text: str, *, new: bool = False) -> None:
        """Nobody reads it."""

    def all(self) -> dict[str, str]:
        return {}

    def remove(self, replica: str) -> None:
        """Nothing is there."""


async def main(model_file: str, weights: str, adapter: str, folder: str, port: str) -> None:
    """Serves until it is told to end, or killed."""
    model = ModelConfig.model_validate(json.loads(Path(model_file).read_text(encoding="utf-8")))
    # Each process is a machine of its own here.
    node_hours.boot = dict  # type: ignore[assignment]
    usage.PERIOD_S = usage.OPEN_EVERY_S = node_hours.EVERY_S = EACH_S
    replica, records = replica_name(), Path(folder)
    hours = NodeHours(records.parent, model.model_id, replica, OneNode())
    tasks = [asyncio.create_task(hours.run())]
    names = [one.name for one in model.engine_config.lora]
    arguments = engine_arguments(model, weights, {name: Path(adapter) for name in names})
    app, engine, _ = await start(model, arguments, StartupClock())
    hours.ready()
    meter = UsageMeter(app, records, replica=replica, settling=Settling("metered", Alone()))
    tasks += [asyncio.create_task(one) for one in (meter.run(), meter.tell())]
    metered, plain = (
        Mount(f"/{model.slug}", EngineGate(meter, engine)),
        Mount(f"/plain--{model.slug}", EngineGate(app, engine)),
    )
    served = Starlette(routes=[metered, plain])
    server = uvicorn.Server(uvicorn.Config(served, host="127.0.0.1", port=int(port), log_level="warning"))
    print("ready", flush=True)
    await server.serve()
    for task in tasks:
        task.cancel()
    hours.last_words()
    meter.last_words()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
