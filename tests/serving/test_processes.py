"""Two workers of one replica: they answer as the model does, and no process or shared memory outlives the replica.

On a GPU a process that lives on keeps its memory, and the next replica does not start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.serving.cluster import READY_S, Cluster
from tests.serving.conftest import application, model
from tests.waiting import wait_until

MORTAL = "test/mortal"
SLUG = MORTAL.replace("/", "--")
#: Seconds in which the processes of a replica end after it: 1.8 on two cores with a load of 27. Without Ray's cleanup of
#: the process group they live on.
AFTER_S = 10.0
NOT_OURS = ("plasma", "(deleted)")


@pytest.fixture(scope="module")
def replica(cluster: Cluster, tiny: Path) -> Iterator[Callable[[], psutil.Process]]:
    """The replica's process once it runs: an engine with two workers, each a process, as with several GPUs."""
    # As on the nodes: the tier's other models have their engine in the replica's process.
    runtime_env = {"env_vars": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}}
    deployment = {"graceful_shutdown_timeout_s": 30, "graceful_shutdown_wait_loop_s": 0.1}
    data = model(MORTAL, tiny, engine={"runtime_env": runtime_env}, scaling={"num_workers": 2}, deployment=deployment)

    def alive() -> list[dict[str, Any]]:
        # Serve calls a killed one running until its next check.
        return [one for one in cluster.replicas(SLUG) if one["state"] == "RUNNING" and psutil.pid_exists(one["pid"])]

    def running() -> psutil.Process:
        cluster.serve(application(data))
        cluster.wait(SLUG)
        found = wait_until(alive, what="a running replica", seconds=READY_S, every_s=0.5)
        return psutil.Process(found[0]["pid"])

    yield running
    cluster.remove(SLUG)


def engine_of(replica: psutil.Process) -> list[psutil.Process]:
    """The engine's process, its two workers and what Python runs beside them."""
    found = replica.children(recursive=True)
    names = " ".join(" ".join(one.cmdline()) for one in found)
    assert "EngineCore" in names and names.count("VLLM::Worker") == 2, names
    return found


def named(word: str, processes: list[psutil.Process]) -> psutil.Process:
    """The process with that word in its command line."""
    return next(one for one in processes if word in " ".join(one.cmdline()))


def shared_memory_of(processes: list[psutil.Process]) -> set[str]:
    """The files in /dev/shm that the processes have mapped, but for Ray's object store."""
    paths = {region.path for one in processes for region in one.memory_maps() if region.path.startswith("/dev/shm/")}
    return {path for path in paths if not any(word in path for word in NOT_OURS)}


def living(processes: list[psutil.Process]) -> list[str]:
    """What still runs of the processes."""
    return [" ".join(one.cmdline()) for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


ENDS: dict[str, Callable[[psutil.Process], None]] = {
    "the replica is killed": lambda one: one.kill(),
    # The replica notices, and ends itself by os._exit.
    "its engine is killed": lambda one: named("EngineCore", engine_of(one)).kill(),
}


def greedy(folder: Path, prompt: str, tokens: int) -> str:
    """What the checkpoint says by transformers, which splits nothing over workers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = tokenizer(prompt, return_tensors="pt")
    said = model.float().generate(**asked, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
    return str(tokenizer.decode(said[0, asked["input_ids"].shape[1] :]))


def test_tensor_parallel_two_answers_as_the_checkpoint_does(
    cluster: Cluster, replica: Callable[[], psutil.Process], tiny: Path
) -> None:
    engine_of(replica())
    body = {"model": MORTAL, "prompt": "a b c", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    answer = requests.post(f"{cluster.url(SLUG)}/v1/completions", json=body, timeout=120).json()
    assert answer["choices"][0]["text"] == greedy(tiny, "a b c", 5)


@pytest.mark.parametrize(
    "end",
    ["the replica is killed", pytest.param("its engine is killed", marks=pytest.mark.long(why="vLLM once more"))],
)
def test_vllms_processes_end_with_their_replica(
    cluster: Cluster, replica: Callable[[], psutil.Process], end: str
) -> None:
    one = replica()
    processes = engine_of(one)
    left = shared_memory_of([one, *processes])
    assert left, "workers and engine talk over shared memory"
    ENDS[end](one)
    psutil.wait_procs([one], timeout=30)
    assert not living([one])
    ended = time.monotonic()
    wait_until(lambda: not living(processes), what="nothing of vLLM lives", every_s=0.05)
    assert time.monotonic() - ended < AFTER_S
    replica()
    assert not [path for path in left if Path(path).exists()], "what a killed one left, the next removes"


def test_a_replica_that_serve_stops_leaves_neither_processes_nor_shared_memory(
    cluster: Cluster, replica: Callable[[], psutil.Process]
) -> None:
    one = replica()
    processes = engine_of(one)
    shared = shared_memory_of([one, *processes])
    assert shared, "workers and engine talk over shared memory"
    cluster.remove(SLUG)
    psutil.wait_procs([one], timeout=60)
    wait_until(lambda: not living([one, *processes]), what="every process of the replica ended", seconds=AFTER_S)
    assert [path for path in shared if Path(path).exists()] == []
