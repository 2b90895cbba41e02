"""One replica over two nodes of a real Ray: vLLM's CPU build with a stage of the pipeline on each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from modelfleet.infra.local.processes import end_all, members
from tests.serving.cluster import READY_S, Cluster
from tests.serving.conftest import application, model
from tests.waiting import wait_until

STAGED = "test/staged"
PROMPT = "The capital of France is"
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


def expected(tiny: Path, prompt: str, tokens: int) -> str:
    """What the model says without vLLM."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    said = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    text: str = tokenizer.decode(said[0, ids.shape[1] :])
    return text


@pytest.mark.long(why="two starts of vLLM on two nodes of Ray")
def test_a_replica_over_two_nodes_answers_as_the_model_does_and_comes_again_whole(
    cluster: Cluster, second: None, tiny: Path
) -> None:
    slug = STAGED.replace("/", "--")
    body = {"model": STAGED, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}

    def ask() -> str:
        answer = requests.post(f"{cluster.url(slug)}/v1/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    cluster.serve(staged(tiny))
    try:
        cluster.wait(slug)
        assert ask() == expected(tiny, PROMPT, 12)
        before = {one["pid"] for one in cluster.replicas(slug)}
        stage = next(one for one in psutil.process_iter() if one.name().startswith("ray::Stage"))
        stage.kill()

        def again() -> bool:
            running = {one["pid"] for one in cluster.replicas(slug) if one["state"] == "RUNNING"}
            return len(running) == 1 and not running & before

        wait_until(again, seconds=READY_S, what="a whole replica again", every_s=0.5)
        assert ask() == expected(tiny, PROMPT, 12)
    finally:
        cluster.remove(slug)
