"""One replica of one model: the weights, vLLM's engine, and vLLM's own OpenAI application as the Serve ingress."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelfleet.serving.bind import bind_to_node_address_only
from modelfleet.serving.config.errors import ModelfleetError
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.errors import EngineError
from modelfleet.serving.explain import sentence
from modelfleet.serving.gate import EngineGate
from modelfleet.serving.log_handlers import kept_targets
from modelfleet.serving.metrics import MetricsCopy
from modelfleet.serving.startup import StartupClock
from modelfleet.serving.versions import check_versions

if TYPE_CHECKING:
    from starlette.types import ASGIApp

ENGINE_POLL_S = 0.25
"""Seconds between a replica's checks that its engine is alive; a check reads one attribute."""

LAST_WORDS_S = 5.0
"""Most seconds that open streams get to receive their error event before the process of a dead engine ends."""

SENT_S = 0.1
"""Seconds for the last bytes of an answer to leave the process."""

DEFAULT_ENVIRONMENT = {
    # Limits of a request: RayLLM's 8 stop strings (vLLM's default is 4) and OpenAI's 128 answers.
    "VLLM_MAX_STOP_STRINGS": "8",
    "VLLM_MAX_N_SEQUENCES": "128",
    "VLLM_NO_USAGE_STATS": "1",
    # A host that a model file allows could otherwise send the replica to one that it does not.
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
}
"""Environment of vLLM, unless the node or the model file's `runtime_env` says otherwise."""

LOG_TAIL_BYTES = 256 * 1024

logger = logging.getLogger("ray.serve")


class VllmReplica:
    """Serve deployment: builds vLLM's FastAPI application when the replica starts."""

    def __init__(self, model: dict[str, Any], weights: dict[str, Any]) -> None:
        self._model = ModelConfig.model_validate(model)
        self._weights = weights
        self._engine: Any = None
        self._clock = StartupClock()
        self._clock.passed("Ray's worker")
        bind_to_node_address_only()
        for name, value in DEFAULT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if names := self._model.engine_config.env_vars_to_propogate:
            # vLLM's Ray workers get them from this process; the child processes of a CPU engine inherit them anyway.
            os.environ["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"] = ",".join(names)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once the replica's process is up; the replica is ready when this returns."""
        try:
            return await self._start()
        except ModelfleetError as error:
            logger.error("%s", error)
            # Serve puts the formatted traceback into the deployment's status message. Without frames, that message is
            # the one line that a user can act on; this process is about to end anyway.
            sys.tracebacklimit = 0
            raise error.with_traceback(None) from None

    async def check_health(self) -> None:
        """Serve's health check: the engine's own."""
        if self._engine is not None:
            await self._engine.check_health()

    async def _start(self) -> ASGIApp:
        from modelfleet.serving.weights import resolve, resolve_adapter

        check_versions()
        weights = await asyncio.to_thread(resolve, self._model, self._weights, logger.info)
        adapters = {
            adapter.name: await asyncio.to_thread(resolve_adapter, adapter, logger.info)
            for adapter in self._model.engine_config.lora
        }
        self._clock.passed("weights")
        log, offset = _own_log()
        try:
            with kept_targets(logger):
                from modelfleet.serving.engine import start

                self._clock.passed("import of vLLM")
                app, self._engine = await start(self._model, weights, adapters, self._clock)
        except ModelfleetError:
            raise
        except Exception as error:
            logger.exception("vLLM cannot start %s", self._model.model_id)
            raise EngineError(sentence(self._model.model_id, error, _read_from(log, offset))) from None
        logger.info("%s", self._clock.line())
        gate = EngineGate(app, self._engine)
        metrics = MetricsCopy(self._model.slug)
        self._tasks = [asyncio.create_task(self._exit_with_engine(gate)), asyncio.create_task(metrics.run())]
        return gate

    async def _exit_with_engine(self, gate: EngineGate) -> None:
        """Ends the process once the engine is dead, so that Serve starts another at once.

        Otherwise Serve waits for three failed health checks and returns 500 meanwhile (25 s, measured).
        """
        while not gate.engine.errored:
            await asyncio.sleep(ENGINE_POLL_S)
        logger.error("the engine of %s died; this replica ends so that Serve starts a new one", self._model.model_id)
        ends = time.monotonic() + LAST_WORDS_S
        while gate.open_requests and time.monotonic() < ends:
            await asyncio.sleep(SENT_S)
        await asyncio.sleep(SENT_S)
        os._exit(1)


def _own_log() -> tuple[Path | None, int]:
    """The file to which this process and vLLM's child processes write errors (Ray redirects stderr), and its size."""
    path = Path("/proc/self/fd/2").resolve()
    return (path, path.stat().st_size) if path.is_file() else (None, 0)


def _read_from(path: Path | None, offset: int) -> str:
    if path is None:
        return ""
    sys.stderr.flush()
    with path.open("rb") as stream:
        stream.seek(max(offset, path.stat().st_size - LOG_TAIL_BYTES))
        return stream.read().decode(errors="replace")
