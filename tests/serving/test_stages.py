"""One replica over two nodes of a real Ray: vLLM's CPU build with a stage of the pipeline on each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from modelfleet.infra.local.processes import end_all, members
from tests.serving.cluster import Cluster
from tests.serving.conftest import application, model
from tests.waiting import wait_until

WHOLE, STAGED = "test/whole", "test/staged"
NODE = '{"accelerator_type:CPU": 1}'


def staged(tiny: Path) -> dict[str, Any]:
    engine = {"engine_kwargs": {"dtype": "float32", "max_num_seqs": 8, "enforce_eager": True}}
    engine["engine_kwargs"] |= {"pipeline_parallel_size": 2, "kv_cache_memory_bytes": 2**26}
    scaling = {"num_workers": 2, "resources_per_worker": {"accelerator_type:CPU": 0.001}}
    data = model(STAGED, tiny, engine=engine, scaling=scaling)
    return application(data)


@pytest.fixture
def second(cluster: Cluster, scratch: Path) -> Iterator[None]:
    process = cluster.join(scratch / "second", 4, NODE)
    try:
        yield
    finally:
        end_all(lambda: members(process), 10.0)


def workers() -> dict[int, psutil.Process]:
    """vLLM's workers on this machine that belong to a pipeline, by pid."""
    return {one.pid: one for one in psutil.process_iter() if "Worker_PP" in " ".join(one.cmdline() or [one.name()])}


@pytest.mark.long(why="two starts of vLLM on two nodes of Ray")
def test_a_replica_over_two_nodes_answers_as_one_on_one_node_does_and_comes_again_whole(
    cluster: Cluster, second: None, tiny: Path
) -> None:
    slug = STAGED.replace("/", "--")
    cluster.serve(application(model(WHOLE, tiny)))
    cluster.wait(WHOLE.replace("/", "--"))
    body = {"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}

    def ask(name: str) -> str:
        answer = requests.post(
            f"{cluster.url(name.replace('/', '--'))}/v1/completions", json={**body, "model": name}, timeout=120
        )
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    expected = ask(WHOLE)
    cluster.remove(WHOLE.replace("/", "--"))
    cluster.serve(staged(tiny))
    cluster.wait(slug)
    try:
        assert ask(STAGED) == expected
        before = {one["pid"] for one in cluster.replicas(slug)}
        stage = next(one for one in psutil.process_iter() if one.name().startswith("ray::Stage"))
        stage.kill()

        def again() -> bool:
            running = {one["pid"] for one in cluster.replicas(slug) if one["state"] == "RUNNING"}
            return len(running) == 1 and not running & before

        wait_until(again, seconds=200, what="a whole replica again", every_s=0.5)
        assert ask(STAGED) == expected
    finally:
        cluster.remove(slug)
