"""A replica's process before vLLM is imported and when Serve ends it; without vLLM."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import multiprocessing
import os
import signal
import threading
import time
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelfleet.infra.local.provider.ray import ray_environment
from modelfleet.infra.reading.node_hours import read_node_hours
from modelfleet.serving.config.serve_options import RAY_ENVIRONMENT
from modelfleet.serving.environment import lift_thread_limit, prepare
from modelfleet.serving.errors import EngineError, MirrorError, WeightsError
from modelfleet.serving.replica import VllmReplica
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


@pytest.mark.parametrize("stages", [1, 2])
def test_stages_send_over_as_many_connections_as_nccl_takes_on_ec2(
    stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection has 5 Gbit/s there, and in a pod NCCL does not see where it is."""
    sockets = ("NCCL_SOCKET_NTHREADS", "NCCL_NSOCKS_PERTHREAD")
    monkeypatch.setattr("os.environ", {})
    prepare(model(engine={"engine_kwargs": {"pipeline_parallel_size": stages}}, num_workers=stages))
    assert [os.environ.get(name) for name in sockets] == (["2", "8"] if stages > 1 else [None, None])
    os.environ["NCCL_NSOCKS_PERTHREAD"] = "4"
    prepare(model(engine={"engine_kwargs": {"pipeline_parallel_size": stages}}, num_workers=stages))
    assert os.environ["NCCL_NSOCKS_PERTHREAD"] == "4", "the model file's"


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
    replica._stages = SimpleNamespace(forget=lambda: seen.append("forget"), end=lambda: seen.append("stages"))
    replica._hours = SimpleNamespace(last_words=lambda: seen.append("hours"))
    replica._meter = SimpleNamespace(last_words=lambda: seen.append("meter") or 1 / 0)
    replica._copy = SimpleNamespace(last_words=lambda: seen.append("copy"))
    replica.__del__()
    replica.__del__()
    assert seen == ["task", "forget", "hours", "meter", "copy", "engine", "stages"], (
        "no stage that ends is a fault by then; the copy has what the others wrote; a fault ends none"
    )


def test_a_replica_that_never_started_ends_in_silence() -> None:
    VllmReplica.__new__(VllmReplica).__del__()


def started(monkeypatch: pytest.MonkeyPatch, fetch: Any, import_engine: Any, **sections: Any) -> None:
    """Starts a replica as far as its engine; `fetch` is called in place of `weights.resolve`."""
    monkeypatch.setattr("modelfleet.serving.replica.check_versions", lambda **_: None)
    monkeypatch.setattr("modelfleet.serving.replica.resolve", fetch)
    monkeypatch.setattr("modelfleet.serving.replica._import_engine", import_engine)
    replica = VllmReplica.__new__(VllmReplica)  # its `__init__` changes the process
    replica._model, replica._cards, replica._weights, replica._clock = model(**sections), [], {}, StartupClock()
    replica._seal_root, replica._tasks, replica._usage, replica._traces = None, set(), None, None
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


@pytest.mark.parametrize("gpus", [0.25, 1])
def test_no_other_replica_starts_on_the_card_while_one_with_a_part_of_it_does(
    gpus: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("modelfleet.serving.turns.own_card", lambda: "GPU-1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def is_free() -> bool:
        descriptor = os.open(tmp_path / "modelfleet-GPU-1.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def import_engine() -> Any:
        assert is_free(), "what is fetched and imported keeps nobody waiting"

        async def start(*_: Any) -> Any:
            assert is_free() is (gpus == 1)
            raise EngineError("CUDA out of memory")

        return start

    with pytest.raises(EngineError, match="out of memory"):
        started(monkeypatch, lambda *_: "/folder", import_engine, num_gpus_per_worker=gpus)
    assert is_free(), "also after a start that failed"


def test_weights_that_cannot_be_fetched_are_the_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any) -> str:
        raise MirrorError("no manifest")

    with pytest.raises(MirrorError, match="no manifest"):
        started(monkeypatch, fetch, lambda: None)


def test_a_disk_that_is_full_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any) -> str:
        raise OSError(28, "No space left on device", "/cache/model.safetensors")

    with pytest.raises(WeightsError, match=r"^org/name: its weights cannot be fetched: .*No space left .*'/cache"):
        started(monkeypatch, fetch, lambda: None)


def test_a_start_that_fails_is_in_the_books_as_long_as_it_took(
    monkeypatch: pytest.MonkeyPatch, usage_records: Path
) -> None:
    failed: list[float] = []

    def fetch(*_: Any) -> str:
        time.sleep(0.2)  # the first line is written by then
        failed.append(time.time())
        raise MirrorError("no manifest")

    with pytest.raises(MirrorError):
        started(monkeypatch, fetch, lambda: None)
    (holding,) = read_node_hours(usage_records, datetime(2026, 1, 1, tzinfo=UTC)).holdings
    assert (holding.model, holding.machine, holding.share, holding.ready) == ("org/name", "here", 0.5, None)
    assert holding.ended >= int(failed[0] * 1e6), "until the end, not only until its last minute"


def test_a_start_that_fails_says_why_although_its_stages_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that was lost would end the process before Serve has the message."""
    forgotten: list[bool] = []
    made = SimpleNamespace(fetch=lambda: asyncio.sleep(0, []), forget=lambda: forgotten.append(True))
    monkeypatch.setattr("modelfleet.serving.replica.Stages", lambda *_: made)

    def import_engine() -> Any:
        raise ImportError("libcuda.so.1")

    piped = {"engine": {"engine_kwargs": {"pipeline_parallel_size": 2}}, "num_workers": 2}
    with pytest.raises(EngineError, match="libcuda"):
        started(monkeypatch, lambda *_: "/folder", import_engine, **piped)
    assert forgotten == [True]


def test_an_import_that_fails_is_the_engines_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_engine() -> Any:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    with pytest.raises(EngineError, match="vLLM cannot start org/name: ImportError: libcuda"):
        started(monkeypatch, lambda *_: "/folder", import_engine)


class Loaded:
    """vLLM's adapters: `steps` has the names after each change."""

    def __init__(self) -> None:
        self.steps: list[set[str]] = []
        self.names: set[str] = set()

    async def become(self, folders: dict[str, Path], keep: set[str]) -> dict[str, str]:
        self.names = set(folders) | (self.names & keep)
        self.steps.append(self.names)
        return {}


class Served:
    """A replica whose engine runs; `broken` are faults by source, `filling` the mirrors that a Job still copies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: dict[str, Exception] = {}
        self.filling: set[str] = set()
        self.gate = threading.Event()  # a fetch waits for it
        self.gate.set()
        self.replica = VllmReplica.__new__(VllmReplica)  # its `__init__` changes the process
        self.loaded = Loaded()
        self.replica._adapters, self.replica._weights, self.replica._model = self.loaded, {}, model()
        self.replica._wanted, self.replica._loading, self.replica._tasks = None, asyncio.Lock(), set()
        monkeypatch.setattr("modelfleet.serving.adapters.resolve_adapter", self.resolve)
        monkeypatch.setattr("modelfleet.serving.adapters.is_filling", lambda mirror, **_: mirror in self.filling)
        monkeypatch.setattr("modelfleet.serving.replica.POLL_S", 0.01)
        monkeypatch.setenv("MODELFLEET_MIRROR_WAIT_S", "20")

    def resolve(self, adapter: Any, *_: Any, **__: Any) -> Path:
        assert self.gate.wait(20)
        if fault := self.broken.get(adapter.source):
            raise fault
        return Path(adapter.source)

    async def reconfigure(self, **sources: str) -> None:
        """The mirror of an adapter is named as its source."""
        lora = [{"name": name, "source": source, "mirror": source} for name, source in sources.items()]
        await self.replica.reconfigure({"lora": lora})

    async def settled(self) -> None:
        await asyncio.wait_for(asyncio.gather(*self.replica._tasks), 20)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    return Served(monkeypatch)


def test_adapters_that_change_keep_no_request_waiting_and_the_newest_list_counts(served: Served) -> None:
    """Serve sends a replica nothing while `reconfigure` runs, and a mirror may take hours."""

    async def run() -> None:
        await served.reconfigure(a="/a")
        assert served.loaded.steps == [{"a"}], "the first call returns when its adapters are loaded"
        served.gate.clear()
        await served.reconfigure(a="/a", b="/b")
        await served.reconfigure(c="/c")
        served.gate.set()
        await served.settled()
        assert served.loaded.steps == [{"a"}, {"c"}], "the list between was never the engine's"

    asyncio.run(run())


@pytest.mark.parametrize("fault", [MirrorError("no manifest"), OSError(28, "No space left on device"), KeyError("x")])
def test_an_adapter_that_cannot_be_fetched_later_is_a_line_in_the_log_and_stops_no_replica(
    served: Served, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Serve stops a replica whose `reconfigure` raises."""
    served.broken["/b"] = fault

    async def run() -> None:
        await served.reconfigure(a="/a")
        await served.reconfigure(b="/b", c="/c")
        await served.settled()

    asyncio.run(run())
    assert str(fault) in caplog.text
    assert isinstance(fault, KeyError) or served.loaded.names == {"c"}


def test_a_disk_that_is_full_at_the_start_is_one_sentence(served: Served) -> None:
    served.broken["/b"] = OSError(28, "No space left on device")
    with pytest.raises(EngineError, match=r"^lora b: .*No space left on device$"):
        asyncio.run(served.reconfigure(b="/b"))


def test_a_start_does_not_wait_for_an_adapter_that_a_job_still_copies(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.filling = {"/b"}

    async def run() -> None:
        with caplog.at_level("INFO", "ray.serve"):
            await served.reconfigure(a="/a", b="/b")
        assert served.loaded.names == {"a"} and "because a Job still copies them: lora b" in caplog.text
        served.filling.clear()
        await served.settled()
        assert served.loaded.names == {"a", "b"}

    asyncio.run(run())


def test_a_mirror_that_is_not_filled_in_time_is_a_line_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELFLEET_MIRROR_WAIT_S", "0.02")
    served.filling = {"/b"}

    async def run() -> None:
        await served.reconfigure(b="/b")
        await served.settled()

    asyncio.run(run())
    assert "lora b: /b is not complete after 0 s; its Job says why: kubectl" in caplog.text


@pytest.mark.parametrize("name", [name for name in RAY_ENVIRONMENT if name.startswith("RAY_")])
def test_ray_knows_the_settings_that_every_node_gets(name: str) -> None:
    """A name that Ray does not know is ignored without a word; its settings are texts of the raylet."""
    ray = find_spec("ray")
    assert ray is not None and ray.origin is not None
    with (Path(ray.origin).parent / "core/src/ray/raylet/raylet").open("rb") as program:
        assert mmap.mmap(program.fileno(), 0, access=mmap.ACCESS_READ).find(name.removeprefix("RAY_").encode()) > 0


def test_the_local_target_has_the_settings_of_every_node() -> None:
    assert RAY_ENVIRONMENT.items() <= ray_environment({}).items()


def test_a_stage_that_ends_while_the_engine_starts_ends_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM holds the event loop until that stage answers, which it never does."""
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    replica = VllmReplica.__new__(VllmReplica)
    replica._model, replica._meter = model(), None
    replica._hours = SimpleNamespace(last_words=lambda: ended.append(0))
    replica._stage_lost("its node went")
    assert ended == [0, 1] and "its node went" in replica._lost, "the books first"
    replica._stage_lost("another one")
    assert ended == [0, 1, 1], "once the books are closed too"


def test_a_stage_that_ends_later_is_the_engines_death(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    replica = VllmReplica.__new__(VllmReplica)
    replica._model, replica._meter = model(), SimpleNamespace(last_words=lambda: None)
    engine = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
    engine.start()
    replica._stage_lost("its node went")
    assert not ended
    engine.join(30)
    assert engine.exitcode == -signal.SIGKILL, "vLLM tells its open requests once its engine is dead"
    gate = SimpleNamespace(engine=SimpleNamespace(errored=False), open_requests=0)
    asyncio.run(asyncio.wait_for(replica._exit_with_engine(gate), 30))
    assert ended == [1]
