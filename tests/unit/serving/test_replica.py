"""A replica's process before vLLM is imported and when Serve ends it; without vLLM."""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.local.provider.ray import ray_environment
from modelfleet.serving.config.serve_options import RAY_ENVIRONMENT
from modelfleet.serving.errors import EngineError, MirrorError
from modelfleet.serving.replica import VllmReplica, lift_thread_limit
from modelfleet.serving.startup import StartupClock
from tests.unit.serving.test_engine_args import CPU, model


def threads_after(one: Any, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """OMP_NUM_THREADS of a replica for which Ray has set 1."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lift_thread_limit(one)
    return os.environ.get("OMP_NUM_THREADS")


def test_a_replica_with_a_gpu_loads_weights_with_more_than_the_one_thread_that_ray_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert threads_after(model(), monkeypatch) is None


@pytest.mark.parametrize(
    "sections",
    [
        {"engine": {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}},
        {"actor": {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}},
        {"num_gpus_per_worker": 0, "resources_per_worker": CPU},
    ],
    ids=["engine's environment", "replica's environment", "no GPU"],
)
def test_threads_that_the_file_sets_or_that_compute_stay(
    sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert threads_after(model(**sections), monkeypatch) == "1"


class Engine:
    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def shutdown(self, timeout: float) -> None:
        assert timeout > 5 + 4, "vLLM's executor waits 5 s for its workers, and 4 s more after SIGTERM"
        self.seen.append("engine")


class Task:
    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def cancel(self) -> None:
        self.seen.append("task")


def test_a_replica_that_ends_shuts_its_engine_down_once_and_does_not_take_it_for_dead() -> None:
    """Serve calls `__del__`, and Python calls it again. The task that watches the engine would end the process first."""
    seen: list[str] = []
    replica = VllmReplica.__new__(VllmReplica)
    replica._engine, replica._tasks = Engine(seen), [Task(seen)]
    replica.__del__()
    replica.__del__()
    assert seen == ["task", "engine"]


def test_a_replica_that_never_started_ends_in_silence() -> None:
    VllmReplica.__new__(VllmReplica).__del__()


def started(monkeypatch: pytest.MonkeyPatch, fetch: Any, import_engine: Any) -> None:
    """Starts a replica as far as its engine; `fetch` is called in place of `weights.resolve`."""
    monkeypatch.setattr("modelfleet.serving.replica.check_versions", lambda gpus: None)
    monkeypatch.setattr("modelfleet.serving.replica.resolve", fetch)
    monkeypatch.setattr("modelfleet.serving.replica._import_engine", import_engine)
    replica = VllmReplica.__new__(VllmReplica)  # its `__init__` changes the process
    replica._model, replica._weights, replica._clock = model(), {}, StartupClock()
    replica._cards = []
    asyncio.run(replica._start())


def test_vllm_is_imported_while_the_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other they took 8 to 20 s more at every start."""
    together = threading.Barrier(2, timeout=20)

    def fetch(*_: Any) -> str:
        together.wait()
        return "/folder"

    async def start(_: Any, arguments: dict[str, Any], clock: Any) -> Any:
        assert arguments["model"] == "/folder"
        assert [step for step, _ in clock._steps] == ["weights", "import of vLLM"]
        raise EngineError("enough")

    def import_engine() -> Any:
        together.wait()
        return start

    with pytest.raises(EngineError, match="enough"):
        started(monkeypatch, fetch, import_engine)


def test_weights_that_cannot_be_fetched_are_the_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any) -> str:
        raise MirrorError("no manifest")

    with pytest.raises(MirrorError, match="no manifest"):
        started(monkeypatch, fetch, lambda: None)


def test_an_import_that_fails_is_the_engines_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_engine() -> Any:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    with pytest.raises(EngineError, match="vLLM cannot start org/name: ImportError: libcuda"):
        started(monkeypatch, lambda *_: "/folder", import_engine)


@pytest.mark.parametrize("name", [name for name in RAY_ENVIRONMENT if name.startswith("RAY_")])
def test_ray_knows_the_settings_that_every_node_gets(name: str) -> None:
    """A name that Ray does not know is ignored without a word; its settings are texts of the raylet."""
    ray = find_spec("ray")
    assert ray is not None and ray.origin is not None
    with (Path(ray.origin).parent / "core/src/ray/raylet/raylet").open("rb") as program:
        assert mmap.mmap(program.fileno(), 0, access=mmap.ACCESS_READ).find(name.removeprefix("RAY_").encode()) > 0


def test_the_local_target_has_the_settings_of_every_node() -> None:
    assert RAY_ENVIRONMENT.items() <= ray_environment({}).items()
