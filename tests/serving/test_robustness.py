"""What happens to vLLM's requests when things break: a client leaves, an engine is killed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.serving.cluster import Cluster
from tests.serving.conftest import application, model
from tests.serving.front import Front, front
from tests.waiting import wait_until

FRAGILE = "test/fragile"
SLUG = FRAGILE.replace("/", "--")
PATH = "/v1/completions"
LONG = {"model": FRAGILE, "prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, tiny: Path, scratch: Path) -> Iterator[Front]:
    deployment = {"max_ongoing_requests": 8, "graceful_shutdown_timeout_s": 20}
    cluster.serve(application(model(FRAGILE, tiny, deployment=deployment)))
    cluster.wait(SLUG)
    with front(cluster, scratch / "robust", {FRAGILE: ()}) as running:
        running.wait_ready()
        yield running
    cluster.remove(SLUG)


def sequences(cluster: Cluster) -> float:
    """Sequences that vLLM's engine works on, from its own metrics (which the gateway does not expose)."""
    text = requests.get(f"{cluster.url(SLUG)}/metrics", timeout=30).text
    values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
    return sum(map(float, values))


def test_a_client_that_leaves_mid_stream_frees_its_sequence(cluster: Cluster, gateway: Front) -> None:
    with gateway.post(PATH, LONG, stream=True) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert sequences(cluster) == 1
    wait_until(lambda: sequences(cluster) == 0, seconds=20, what="the sequence of a client that left was freed")


def events(answer: requests.Response) -> Iterator[str]:
    for line in answer.iter_lines(decode_unicode=True):
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def engine_of(cluster: Cluster) -> psutil.Process:
    (replica,) = [one for one in cluster.replicas(SLUG) if one["state"] == "RUNNING"]
    found = [one for one in psutil.Process(replica["pid"]).children() if "EngineCore" in " ".join(one.cmdline())]
    assert found, "the replica has no engine process"
    return found[0]


def test_a_killed_engine_ends_streams_with_an_error_and_serve_heals_itself(cluster: Cluster, gateway: Front) -> None:
    ended: list[list[str]] = []
    streaming = threading.Barrier(3)

    def stream() -> None:
        with gateway.post(PATH, LONG, stream=True) as answer:
            all_events = events(answer)
            first = next(all_events)
            streaming.wait(60)
            ended.append([first, *all_events])

    clients = [threading.Thread(target=stream) for _ in range(2)]
    for client in clients:
        client.start()
    streaming.wait(60)
    engine_of(cluster).kill()
    killed = time.monotonic()
    failures: list[float] = []
    body = {"model": FRAGILE, "prompt": "a", "max_tokens": 2}
    while True:
        try:
            answer = gateway.post(PATH, body, timeout=400)
        except requests.ConnectionError:
            failures.append(time.monotonic() - killed)
            continue
        if answer.status_code == 200:
            break
        assert answer.status_code in (500, 502, 503), answer.text
        failures.append(time.monotonic() - killed)
        time.sleep(0.05)
    print(f"errors for {max(failures, default=0):.1f} s, served again after {time.monotonic() - killed:.1f} s")
    for client in clients:
        client.join(30)
    assert len(ended) == 2
    for seen in ended:
        assert seen[-1] == "[DONE]" and "error" in json.loads(seen[-2]), (
            f"a stream ended without an error message: {seen[-3:]}"
        )
    assert max(failures, default=0) < 15, "the dead replica stayed in the way of new requests"
