"""A replica over several nodes: the further stages of its pipeline, each a Ray actor on a node of its own.

    replica (bundle 0)   vLLM's front end, its engine and the first stage's workers
    Stage (bundle 1…)    vLLM's executor without an engine, and that stage's workers

vLLM's workers find each other as in `vllm serve --nnodes`, by an address and a port of the first stage's node. Ray only
places the stages and ends them: an actor lives no longer than the replica that made it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import placement_bundles, stages_of
from modelfleet.serving.environment import place_caches, prepare
from modelfleet.serving.errors import WeightsError
from modelfleet.serving.shared_memory import note, remove_left
from modelfleet.serving.versions import PRETENDED_CARD, check_versions
from modelfleet.serving.weights import resolve, resolve_other

logger = logging.getLogger("ray.serve")


def meeting_arguments(stages: int, rank: int, address: str, port: int) -> dict[str, Any]:
    """vLLM's arguments by which the stages of one replica find each other; none for a replica on one node."""
    if stages == 1:
        return {}
    return {
        "distributed_executor_backend": "mp",
        "nnodes": stages,
        "node_rank": rank,
        "master_addr": address,
        "master_port": port,
    }


class Stage:
    """One further stage; a Ray actor in its own bundle of the replica's placement group."""

    def __init__(self, model: dict[str, Any], weights: dict[str, Any]) -> None:
        self._model = ModelConfig.model_validate(model)
        self._weights = weights
        prepare(self._model)
        place_caches()
        os.environ["VLLM_HOST_IP"] = own_address()

    def fetch(self) -> dict[str, str]:
        """Gets the weights onto this node; returns vLLM's arguments that name their folders."""
        on_gpus = bool(self._model.scaling_config.num_gpus_per_worker)
        check_versions(gpus=on_gpus, pretended=on_gpus and bool(os.environ.get(PRETENDED_CARD)))
        try:
            found = {"model": resolve(self._model, self._weights, logger.info)}
            tokenizer = resolve_other(self._weights, "tokenizer", logger.info)
        except OSError as error:  # such as a full disk
            raise WeightsError(f"{self._model.model_id}: its weights cannot be fetched: {error}") from None
        return {**found, "tokenizer": tokenizer} if tokenizer else found

    def run(self, arguments: dict[str, Any]) -> None:
        """Runs the stage's workers until one of them ends, which is always a fault: the replica ends with it."""
        from modelfleet.serving.engine import run_stage

        remove_left()
        run_stage(arguments, begun=_note)


class Stages:
    """The further stages of this replica, from the replica's side."""

    def __init__(self, model: ModelConfig, weights: Mapping[str, Any]) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = ray.util.get_current_placement_group()
        self._count = stages_of(model)
        self._runs: list[Any] = []
        self._over = False
        self._actors = []
        for rank, bundle in enumerate(placement_bundles(model)[1:], start=1):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            actor = ray.remote(Stage).options(scheduling_strategy=place, **_resources(bundle))
            self._actors.append(actor.remote(model.model_dump(mode="json"), dict(weights)))

    async def fetch(self) -> list[dict[str, str]]:
        """Waits until every stage's node has the weights, and returns its arguments. Raises what kept one from it."""
        import ray

        try:
            return list(await asyncio.gather(*(actor.fetch.remote() for actor in self._actors)))
        except ray.exceptions.RayTaskError as error:  # a traceback of that node; its cause is one line
            raise error.cause if isinstance(error.cause, Exception) else error from None

    def begin(self, arguments: Mapping[str, Any], folders: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Starts all further stages with the first one's `arguments` and their own `folders`; returns the first's."""
        address, port = own_address(), free_port()
        os.environ["VLLM_HOST_IP"] = address
        all_folders: list[Mapping[str, str]] = [{}, *folders]
        first, *further = (
            {**arguments, **own, **meeting_arguments(self._count, rank, address, port)}
            for rank, own in enumerate(all_folders)
        )
        self._runs = [actor.run.remote(one) for actor, one in zip(self._actors, further, strict=True)]
        return first

    def watch(self, lost: Callable[[str], None]) -> None:
        """Calls `lost` with the reason once a stage has ended, in a thread: vLLM's start holds the event loop."""
        threading.Thread(target=self._watch, args=(lost,), daemon=True, name="stages").start()

    def _watch(self, lost: Callable[[str], None]) -> None:
        import ray

        done, _ = ray.wait(self._runs, num_returns=1)
        if not self._over:
            lost(_why(done[0]))

    def forget(self) -> None:
        """From now on a stage may end."""
        self._over = True

    def end(self) -> None:
        """Ends all further stages, once the engine has ended."""
        import ray

        for actor in self._actors:
            ray.kill(actor)


def _note() -> None:
    try:
        note()
    except OSError as error:  # such as a full /dev/shm, which the workers themselves do without from here on
        logger.warning("what this stage shares in /dev/shm is not noted: %s", error)


def end_engine() -> None:
    """Ends vLLM's processes below this one: it then tells its open requests, as when its engine dies."""
    for process in multiprocessing.active_children():
        process.kill()


def _why(run: Any) -> str:
    import ray

    try:
        ray.get(run)
    except ray.exceptions.RayTaskError as error:  # its own error, whose text is a traceback
        return " ".join(f"{type(error.cause).__name__}: {error.cause}".split())
    except ray.exceptions.RayError as error:  # such as that its process died
        return " ".join(str(error).split())
    return "a worker of it ended"


def _resources(bundle: Mapping[str, float]) -> dict[str, Any]:
    """Ray's options of an actor that takes a whole bundle; the memory is the bundle's without them."""
    own = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU", "memory")}
    return {"num_cpus": bundle.get("CPU", 0.0), "num_gpus": bundle.get("GPU", 0.0), "resources": own}


def own_address() -> str:
    """The address of this node, as Ray's other nodes reach it."""
    import ray

    return str(ray.util.get_node_ip_address())


def free_port() -> int:
    """A free TCP port of this node."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])
