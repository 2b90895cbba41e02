"""A replica whose data parallel ranks share a model's experts: vLLM's CPU build with what it lacks for that.

Real are the replica, vLLM's front end, its coordinator and engines. `ranks_on_cpu` is in place of two collectives.
"""

from __future__ import annotations

import io
import json
import re
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.bare_python import code_with
from tests.serving import ranks_on_cpu
from tests.serving.cluster import READY_S, Cluster
from tests.serving.conftest import BUCKET, application, model
from tests.serving.test_stages import expected, title
from tests.serving.tiny import make_expert_model
from tests.waiting import wait_until

RANKED = "test/ranked"
SLUG = RANKED.replace("/", "--")
PROMPTS = ("The capital of France is", "One two three", "Once upon a time", "Water is")


@pytest.fixture(scope="module")
def experts(scratch: Path, smollm2: Path) -> Path:
    return make_expert_model(scratch / "experts", smollm2)


def code_with_plugin() -> bytes:
    """The code zip, with the plugin as an installed package."""
    buffer = io.BytesIO(code_with(Path(ranks_on_cpu.__file__)))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("ranks_on_cpu-1.dist-info/METADATA", ranks_on_cpu.METADATA)
        archive.writestr("ranks_on_cpu-1.dist-info/entry_points.txt", ranks_on_cpu.ENTRY_POINTS)
    return buffer.getvalue()


@pytest.fixture
def replica(cluster: Cluster, bucket: Any, experts: Path) -> Iterator[Cluster]:
    bucket.put_object(Bucket=BUCKET, Key="code/ranked.zip", Body=code_with_plugin())
    kwargs = {"dtype": "float32", "max_num_seqs": 8, "enforce_eager": True, "kv_cache_memory_bytes": 2**26}
    kwargs |= {"data_parallel_size": 2}
    scaling = {"num_workers": 2, "num_cpus_per_worker": 0.5}
    ranked = application(model(RANKED, experts, engine={"engine_kwargs": kwargs}, scaling=scaling))
    cluster.serve(ranked | {"runtime_env": {"working_dir": f"s3://{BUCKET}/code/ranked.zip"}})
    try:
        cluster.wait(SLUG)
        yield cluster
    finally:
        cluster.remove(SLUG)


def ask(cluster: Cluster, prompt: str, expect: int = 200, **keys: Any) -> requests.Response:
    body = {"model": RANKED, "prompt": prompt, "temperature": 0, "ignore_eos": True, "return_token_ids": True, **keys}
    answer = requests.post(f"{cluster.url(SLUG)}/v1/completions", json=body, timeout=120, stream="stream" in keys)
    assert answer.status_code == expect, answer.text
    return answer


def engines(cluster: Cluster) -> list[psutil.Process]:
    """vLLM's engines below the one replica, a process for each rank."""
    (pid,) = [one["pid"] for one in cluster.replicas(SLUG) if one["state"] == "RUNNING"]
    return [one for one in psutil.Process(pid).children(recursive=True) if "EngineCore" in title(one)]


def written(cluster: Cluster) -> dict[str, float]:
    """Tokens that each rank has written, as Ray's scrape has them."""
    found = {}
    for line in cluster.metrics().splitlines():
        if line.startswith("ray_vllm_generation_tokens_total{") and f'application="{SLUG}"' in line:
            (rank,) = re.findall(r'engine="(\d+)"', line)
            found[rank] = float(line.rpartition(" ")[2])
    return found


@pytest.mark.long(why="two starts of vLLM with two engines each")
def test_ranks_share_the_requests_and_the_experts_and_end_together(replica: Cluster, experts: Path) -> None:
    right = {prompt: expected(experts, prompt, 24) for prompt in PROMPTS}
    with ThreadPoolExecutor(len(PROMPTS)) as clients:
        said = dict(
            zip(PROMPTS, clients.map(lambda one: ask(replica, one, max_tokens=24).json(), PROMPTS), strict=True)
        )
    assert {prompt: one["choices"][0]["token_ids"] for prompt, one in said.items()} == right

    running = engines(replica)
    assert len(running) == 2
    wait_until(lambda: sum(written(replica).values()) >= 96, what="the tokens of both on a scrape", seconds=30)
    assert set(written(replica)) == {"0", "1"} and min(written(replica).values()) > 0, written(replica)

    stream = ask(replica, PROMPTS[0], max_tokens=400, stream=True).iter_lines()
    next(stream)
    with ThreadPoolExecutor(1) as client:
        plain = client.submit(ask, replica, PROMPTS[1], max_tokens=480, expect=500)
        time.sleep(1)
        running[1].kill()
        begun = time.monotonic()
        assert "EngineCore encountered an issue" in plain.result().json()["error"]["message"]
    lines = [line for line in stream if line]
    assert lines.pop() == b"data: [DONE]" and "error" in json.loads(lines[-1].removeprefix(b"data: ")), lines[-2:]
    wait_until(
        lambda: not [one for one in running if one.is_running() and one.status() != psutil.STATUS_ZOMBIE],
        what="no rank goes on without the other",
        seconds=60,
    )

    def again() -> bool:
        states = {one["state"] for one in replica.replicas(SLUG)}
        return states == {"RUNNING"} and len(engines(replica)) == 2

    wait_until(again, what="a whole replica again", seconds=READY_S, every_s=0.5, retry=psutil.Error)
    print(f"a killed rank: whole again after {time.monotonic() - begun:.0f} s")
    assert ask(replica, PROMPTS[0], max_tokens=24).json()["choices"][0]["token_ids"] == right[PROMPTS[0]]
