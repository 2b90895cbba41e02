"""One replica over two nodes of a real Ray: vLLM's CPU build with a stage of the pipeline on each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from modelfleet.infra.local.processes import ProcessId, end_all, members
from tests.serving.cluster import READY_S, Cluster
from tests.serving.conftest import application, model
from tests.waiting import wait_until

STAGED = "test/staged"
SLUG = STAGED.replace("/", "--")
PROMPT = "The capital of France is"


def staged(tiny: Path) -> dict[str, Any]:
    engine = {"engine_kwargs": {"dtype": "float32", "max_num_seqs": 8, "enforce_eager": True}}
    engine["engine_kwargs"] |= {"pipeline_parallel_size": 2, "kv_cache_memory_bytes": 2**26}
    scaling = {"num_workers": 2, "resources_per_worker": {"accelerator_type:CPU": 0.001}}
    actor = {"num_cpus": 1, "resources": {"accelerator_type:CPU": 0.001}}
    return application(model(STAGED, tiny, engine=engine, scaling=scaling, deployment={"ray_actor_options": actor}))


class Second:
    """A second node, with a CPU for a further stage's worker and none for the replica's own."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self.join()

    def join(self) -> None:
        self.process = self._cluster.join(self._folder, 1, {"accelerator_type:CPU": 1})

    def end(self) -> None:
        end_all(lambda: members(self.process), 0.0)

    def end_stage(self) -> None:
        """Ends the actor, and none of vLLM's processes below it."""
        (stage,) = [one for one in members(self.process) if title(one).startswith("ray::Stage")]
        stage.kill()

    def end_worker(self) -> None:
        """Ends vLLM's worker, and not the actor that it is of."""
        (worker,) = workers(self.process).values()
        psutil.Process(worker.pid).kill()


@pytest.fixture
def second(cluster: Cluster, scratch: Path) -> Iterator[Second]:
    made = Second(cluster, scratch / "second")
    try:
        yield made
    finally:
        made.end()


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def workers(*nodes: ProcessId) -> dict[str, ProcessId]:
    """vLLM's workers of a pipeline on these nodes, by their titles."""
    found = [one for node in nodes for one in members(node) if "VLLM::Worker_PP" in title(one)]
    return {title(one).strip(): ProcessId(one.pid, one.create_time()) for one in found}


def expected(tiny: Path, prompt: str, tokens: int) -> list[int]:
    """What the model says without vLLM."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(tiny)(prompt, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    said = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    return [int(one) for one in said[0, ids.shape[1] :]]


def ask(cluster: Cluster, **keys: Any) -> requests.Response:
    body = {"model": STAGED, "prompt": PROMPT, "temperature": 0, "ignore_eos": True, "return_token_ids": True, **keys}
    answer = requests.post(f"{cluster.url(SLUG)}/v1/completions", json=body, timeout=120, stream="stream" in keys)
    assert answer.status_code == 200, answer.text
    return answer


def cut(cluster: Cluster, fault: Callable[[], None]) -> list[dict[str, Any]]:
    """The events of a stream in which the fault happens after the first one."""
    lines = ask(cluster, max_tokens=480, stream=True).iter_lines()
    events = [next(lines)]
    fault()
    events += [line for line in lines if line]
    assert events.pop() == b"data: [DONE]", events[-2:]
    return [json.loads(line.removeprefix(b"data: ")) for line in events]


@pytest.mark.long(why="four starts of vLLM on two nodes of Ray")
def test_a_replica_over_two_nodes_answers_as_the_model_does_and_comes_again_whole(
    cluster: Cluster, second: Second, tiny: Path
) -> None:
    right = expected(tiny, PROMPT, 12)

    def end_node() -> None:
        second.end()
        second.join()

    cluster.serve(staged(tiny))
    try:
        cluster.wait(SLUG)
        for fault in (second.end_stage, second.end_worker, end_node):
            assert ask(cluster, max_tokens=12).json()["choices"][0]["token_ids"] == right
            before, running = cluster.replicas(SLUG), workers(cluster.process, second.process)
            assert sorted(running) == ["VLLM::Worker_PP0", "VLLM::Worker_PP1"]
            assert list(workers(second.process)) == ["VLLM::Worker_PP1"]
            events, begun = cut(cluster, fault), time.monotonic()
            assert "error" in events[-1] and len(events) < 480, "a stream that is cut says so"

            def again(before: list[dict[str, Any]] = before) -> bool:
                pids = {one["pid"] for one in cluster.replicas(SLUG) if one["state"] == "RUNNING"}
                return len(pids) == 1 and not pids & {one["pid"] for one in before}

            wait_until(again, seconds=READY_S, what="a whole replica again", every_s=0.5)
            print(
                f"{fault.__name__}: {events[-1]} after {len(events)} events, whole after {time.monotonic() - begun:.0f} s"
            )
            assert not [name for name, one in running.items() if one.find()], "none outlives its replica"
        assert ask(cluster, max_tokens=12).json()["choices"][0]["token_ids"] == right
    finally:
        cluster.remove(SLUG)
    wait_until(lambda: not workers(cluster.process, second.process), seconds=READY_S, what="the replica is gone")
