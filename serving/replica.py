"""One replica of one model: the weights, vLLM's engine, and vLLM's own OpenAI application as the Serve ingress."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelfleet.serving.adapters import WantedAdapters
from modelfleet.serving.bind import bind_to_node_address_only
from modelfleet.serving.card import Card, on_this_card
from modelfleet.serving.config.errors import ModelfleetError
from modelfleet.serving.config.schema import POLICY_TARGETS, ModelConfig
from modelfleet.serving.config.serve_options import data_ranks_of, stages_of, workers_are_ray_actors
from modelfleet.serving.engine_args import engine_arguments
from modelfleet.serving.environment import place_caches, prepare
from modelfleet.serving.errors import EngineError, WeightsError, died
from modelfleet.serving.explain import sentence
from modelfleet.serving.gate import EngineGate
from modelfleet.serving.log_handlers import kept_targets
from modelfleet.serving.metrics import MetricsCopy, followed
from modelfleet.serving.mirror.waiting import POLL_S, overdue, wait_s
from modelfleet.serving.node_hours import NodeHours
from modelfleet.serving.ray_cluster import RayCluster, RayStore
from modelfleet.serving.seal import cache_environment, seal_root, take, this_machine
from modelfleet.serving.settling import Settling
from modelfleet.serving.shared_memory import note, remove_left
from modelfleet.serving.stages import Stages, end_engine
from modelfleet.serving.startup import StartupClock
from modelfleet.serving.turns import turn_of
from modelfleet.serving.usage import UsageMeter, last_records, replica_name, usage_folder
from modelfleet.serving.usage_bucket import BucketCopy
from modelfleet.serving.usage_metrics import TokenMetrics
from modelfleet.serving.versions import PRETENDED_CARD, check_versions
from modelfleet.serving.waiting import Places
from modelfleet.serving.weights import cache_limit, resolve, resolve_adapter, resolve_other

if TYPE_CHECKING:
    from starlette.types import ASGIApp

ENGINE_POLL_S = 0.25
"""Seconds between a replica's checks that its engine is alive; a check reads one attribute."""

LAST_WORDS_S = 5.0
"""Most seconds that open streams get to receive their error event before the process of a dead engine ends."""

SENT_S = 0.1
"""Seconds for the last bytes of an answer to leave the process."""

ENGINE_END_S = 30.0
"""Seconds in which vLLM's processes end by themselves: its own 5 are all that a worker may take to notice (vLLM 0.32
`VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS`), and those that are killed leave their shared memory."""

LOG_TAIL_BYTES = 256 * 1024

logger = logging.getLogger("ray.serve")


class VllmReplica:
    """Serve deployment: builds vLLM's FastAPI application when the replica starts."""

    _stages: Stages | None = None
    _lost = ""

    def __init__(
        self,
        model: dict[str, Any],
        weights: dict[str, Any],
        cards: Sequence[dict[str, Any]] = (),
        usage: str | None = None,
        traces: str | None = None,
    ) -> None:
        self._traces = traces
        self._model = ModelConfig.model_validate(model)
        self._cards = [Card.model_validate(card) for card in cards]
        self._weights = weights
        self._usage = usage
        self._engine: Any = None
        self._adapters: Any = None
        self._wanted: WantedAdapters | None = None
        self._seal_root: Path | None = None
        self._loading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hours: NodeHours | None = None
        self._meter: UsageMeter | None = None
        self._copy: BucketCopy | None = None
        self._clock = StartupClock()
        self._clock.passed("Ray's worker")
        bind_to_node_address_only()
        self._places = Places()
        self._places.watch()
        prepare(self._model)
        if traces:
            # Before vLLM, whose processes inherit it. Its own default is gRPC.
            os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
            os.environ.setdefault("OTEL_SERVICE_NAME", self._model.model_id)
        self._place_caches()
        names = self._model.engine_config.env_vars_to_propogate
        if names and workers_are_ray_actors(self._model):
            # vLLM's Ray workers get them from this process; child processes inherit its whole environment.
            os.environ["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"] = ",".join(names)

    def _place_caches(self) -> None:
        """Puts all compile caches below one folder, the seal's where the plan has one; before vLLM is imported.

        Without a seal they are where the node's VLLM_CACHE_ROOT says, which a pod has and this machine need not have.
        """
        if (seal := self._weights.get("seal")) is not None:
            self._seal_root = seal_root(seal)  # asked once: it is below the variable that the next line changes
            os.environ.update(cache_environment(self._seal_root))
        else:
            place_caches()

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

    def __del__(self) -> None:
        """Serve calls this when it stops the replica, after the last request: vLLM's processes end in order.

        Otherwise Ray kills them, and what they shared in /dev/shm stays (vLLM 0.32 `device_communicators`).
        """
        for task in self.__dict__.pop("_tasks", ()):
            task.cancel()  # before the engine goes, or the replica would take it for dead
        stages = self.__dict__.pop("_stages", None)
        if stages is not None:
            stages.forget()  # they end with the engine, which is then no fault
        self._last_words()
        if (engine := self.__dict__.pop("_engine", None)) is not None:
            engine.shutdown(timeout=ENGINE_END_S)
            remove_left()
        if stages is not None:
            stages.end()

    def _last_words(self) -> None:
        """What this replica has to write down before it ends, once; nothing of it may keep it from ending."""
        parts = [self.__dict__.pop(name, None) for name in ("_hours", "_meter", "_copy")]
        for words in [part.last_words for part in parts if part is not None]:
            try:
                words()
            except Exception:  # Ray may be gone already
                logger.warning("a part of this replica's last records is missing", exc_info=True)

    async def check_health(self) -> None:
        """Serve's health check: the engine's own."""
        if self._engine is not None:
            await self._engine.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks this as often as a replica reports (`serving/scaling.py` reads it)."""
        scaling = self._model.deployment_config.autoscaling_config
        of_engine = followed() if scaling is not None and scaling.policy in POLICY_TARGETS else {}
        return {**self._places.stats(), **of_engine}

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve calls this before a replica is ready, and whenever the application's `user_config` changes.

        At the start an adapter that cannot be served fails the replica; one that a Job still copies is served once it
        is there. Later an adapter that cannot be served is a line in the log, and everything else goes on: a new one is
        vLLM's 404, a changed one stays as it was.

        Only the first call waits for a fetch. A replica gets no requests before this returns, and is stopped when it
        raises (Ray 2.60 `serve/_private/deployment_state.py`, `ReplicaState.UPDATING` and
        `_check_startup_replicas`).
        """
        first = self._wanted is None
        self._wanted = wanted = WantedAdapters(
            user_config.get("lora") or [], cache_limit(self._weights), self._weights.get("manifest_key")
        )
        if first:
            await self._take_over(wanted)
            if wanted.faults:
                sys.tracebacklimit = 0
                raise EngineError("; ".join(wanted.faults.values()))
        if wanted.late or not first:
            self._begin(self._follow(wanted))

    async def _follow(self, wanted: WantedAdapters) -> None:
        """Takes over what is `wanted` as its mirrors fill, until a newer configuration comes."""
        ends = time.monotonic() + wait_s()
        try:
            while wanted is self._wanted:
                await self._take_over(wanted)
                if not wanted.late:
                    return
                if time.monotonic() > ends:
                    for name, adapter in wanted.late.items():
                        logger.error("lora %s: %s", name, overdue(adapter["mirror"], "not complete"))
                    return
                await asyncio.sleep(POLL_S)
        except Exception:  # nobody else would see it
            logger.exception("the LoRA adapters of %s stay as they are", self._model.model_id)

    async def _take_over(self, wanted: WantedAdapters) -> None:
        """Fetches what is there by now and has the engine serve it; new faults, and what is late, go to the log."""
        known = set(wanted.faults)
        await asyncio.to_thread(wanted.fetch)
        async with self._loading:
            if wanted is not self._wanted:
                return
            wanted.refuse(await self._adapters.become(wanted.folders, keep={*wanted.faults, *wanted.late}))
        for name in wanted.faults.keys() - known:
            logger.error("%s", wanted.faults[name])
        if wanted.late and wanted.late.keys() != wanted.noted:
            wanted.noted = set(wanted.late)
            logger.info("not served yet, because a Job still copies them: lora %s", ", ".join(wanted.late))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Does it beside the requests, until the replica ends."""
        tasks = self._tasks
        tasks.add(task := asyncio.create_task(work))
        task.add_done_callback(tasks.discard)

    async def _start(self) -> ASGIApp:
        """The application, and what goes on beside the requests."""
        replica = replica_name()
        self._hours = hours = NodeHours(usage_folder(), self._model.model_id, replica, RayCluster())
        self._begin(hours.run())
        if self._usage is not None:
            self._copy = BucketCopy(usage_folder(), self._usage, replica)
            self._begin(self._copy.run())
        try:
            app = await self.start_engine()
        except BaseException:
            if self._stages is not None:
                self._stages.forget()  # what is wrong is said; a stage that ends now would only end this process first
            self._last_words()
            raise
        hours.ready()
        try:
            note()
        except OSError as error:  # such as a full /dev/shm, which the engine itself does without from here on
            logger.warning("what this replica shares in /dev/shm is not noted: %s", error)
        logger.info("%s", self._clock.line())
        settling = Settling(replica, RayStore(), records=partial(last_records, usage_folder()))
        own = usage_folder() / self._model.slug
        counted = TokenMetrics().count
        self._meter = meter = UsageMeter(app, own, replica=replica, counted=counted, settling=settling)
        gate = EngineGate(meter, self._engine)
        metrics = MetricsCopy(self._model.slug)
        self._begin(self._exit_with_engine(gate))
        self._begin(metrics.run())
        self._begin(meter.run())
        self._begin(meter.tell())
        return gate

    async def start_engine(self) -> ASGIApp:
        """vLLM's application on its running engine; a warm-up Job calls this too, so that both compile the same.

        The weights are fetched while vLLM is imported, each in a thread, so that this process answers meanwhile.
        """
        # Both threads need it. Two that begin to import the same modules may see one of them half done.
        from huggingface_hub import HfApi, snapshot_download  # noqa: F401

        on_gpus = bool(self._model.scaling_config.num_gpus_per_worker)
        pretended = on_gpus and bool(os.environ.get(PRETENDED_CARD))
        check_versions(gpus=on_gpus, pretended=pretended)
        if pretended:
            check_experts(self._model)
        self._model = on_this_card(self._model, self._cards, logger.info)
        log, offset = _own_log()
        if self._seal_root is not None:
            # Before the import, which may make folders: one that is there counts as filled.
            await asyncio.to_thread(self._take_seal, self._weights["seal"], self._seal_root)
            self._clock.passed("sealed compile cache")
        importing = asyncio.create_task(asyncio.to_thread(_import_engine))
        if stages_of(self._model) > 1:
            self._stages = Stages(self._model, self._weights)
        folders: Any = asyncio.ensure_future(self._stages.fetch()) if self._stages else None
        try:
            weights, others, adapters = await asyncio.to_thread(self._fetch)
        except OSError as error:  # such as a full disk
            raise WeightsError(f"{self._model.model_id}: its weights cannot be fetched: {error}") from None
        self._clock.passed("weights")
        try:
            with kept_targets(logger):
                start = await importing
                self._clock.passed("import of vLLM")  # what it took longer than the weights
                if left := remove_left():
                    logger.info("removed what a killed replica left in /dev/shm: %s", ", ".join(left))
                arguments = engine_arguments(self._model, weights, adapters, **others, traces=self._traces)
                if pretended:
                    logger.warning("the card is pretended: vLLM's CPU build serves %s", self._model.model_id)
                    arguments["enforce_eager"] = True  # as without GPUs (`engine_arguments`)
                if self._stages is not None:
                    arguments = self._stages.begin(arguments, await folders)
                    self._stages.watch(self._stage_lost)
                    self._clock.passed("weights of the further stages")
                async with turn_of(self._model, logger.info) as waited:
                    if waited:
                        self._clock.passed("turn on its card")
                    app, self._engine, self._adapters = await start(self._model, arguments, self._clock)
            return app
        except ModelfleetError:
            raise
        except Exception as error:
            logger.exception("vLLM cannot start %s", self._model.model_id)
            raise EngineError(sentence(self._model.model_id, error, _read_from(log, offset))) from None

    def _stage_lost(self, why: str) -> None:
        """A stage on another node ended: no request can be answered without it. vLLM itself would wait for it."""
        self._lost = f"a stage on another node ({why})"
        # The last words take the meter away.
        if self.__dict__.get("_meter") is None:  # still starting: vLLM waits for that stage, and holds the event loop
            logger.error("%s", died(self._model.model_id, self._lost))
            try:
                self._last_words()
            finally:
                os._exit(1)
        end_engine()

    def _take_seal(self, uri: str, root: Path) -> None:
        """Copies the sealed compile cache to this node; without one, or with a foreign one, vLLM compiles."""
        try:
            machine = this_machine(gpus=bool(self._model.scaling_config.num_gpus_per_worker))
        except EngineError as error:
            logger.info("no sealed compile cache, so vLLM compiles: %s", error)
        else:
            take(uri, root, machine, logger.info)

    def _fetch(self) -> tuple[str, dict[str, str | None], dict[str, Path]]:
        """The weights, the folders of tokenizer and draft, and those of the adapters by their names."""
        limit = cache_limit(self._weights)
        weights = resolve(self._model, self._weights, logger.info)
        others = {name: resolve_other(self._weights, name, logger.info) for name in ("tokenizer", "draft")}
        adapters = {one.name: resolve_adapter(one, logger.info, limit=limit) for one in self._model.engine_config.lora}
        return weights, others, adapters

    async def _exit_with_engine(self, gate: EngineGate) -> None:
        """Ends the process once the engine is dead, so that Serve starts another at once.

        Otherwise Serve waits for three failed health checks and returns 500 meanwhile (25 s, measured).
        """
        while not gate.engine.errored and not self._lost:
            await asyncio.sleep(ENGINE_POLL_S)
        logger.error("%s", died(self._model.model_id, self._lost))
        ends = time.monotonic() + LAST_WORDS_S
        while gate.open_requests and time.monotonic() < ends:
            await asyncio.sleep(SENT_S)
        await asyncio.sleep(SENT_S)
        try:
            self._last_words()
        finally:
            os._exit(1)


def check_experts(model: ModelConfig) -> None:
    """Raises `EngineError` for a model on a pretended card whose first request would end vLLM's CPU build."""
    dealt_out = model.engine_config.engine_kwargs.get("enable_expert_parallel") is True
    if data_ranks_of(model) > 1 or (dealt_out and model.scaling_config.num_workers > 1):
        raise EngineError(
            f"{model.model_id}: the card is pretended, and vLLM's CPU build cannot share experts between workers: "
            "leave out data_parallel_size and enable_expert_parallel"
        )


def _import_engine() -> Callable[..., Awaitable[tuple[ASGIApp, Any, Any]]]:
    """`serving.engine.start`; its import is vLLM's, 8 to 20 s."""
    with kept_targets(logger):
        from modelfleet.serving.engine import start
    return start


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
