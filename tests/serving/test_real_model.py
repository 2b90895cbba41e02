"""The real small model, from its mirror through Ray Serve: answers, streams, refuses what is wrong."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests

from tests.serving.cluster import Cluster
from tests.serving.conftest import REAL, application, model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SLUG = REAL.replace("/", "--")


@pytest.fixture(scope="module")
def url(cluster: Cluster, mirror: str) -> str:
    cluster.serve(application(model(REAL), mirror))
    cluster.wait(SLUG)
    return cluster.url(SLUG)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_it_knows_the_capital_of_france(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=REAL, messages=QUESTION, temperature=0, max_tokens=20)  # type: ignore[arg-type]
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_it_streams_the_same_answer_token_by_token(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=REAL,
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 3, "it came in one piece"
    assert chunks[-1].usage is not None


def test_a_stream_ends_with_done(url: str) -> None:
    body = {"model": REAL, "prompt": "Once upon a time", "max_tokens": 3, "stream": True}
    lines = [line for line in requests.post(f"{url}/v1/completions", json=body, timeout=120).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"


def test_it_is_listed_under_its_public_id_with_its_length(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    assert (listed.id, getattr(listed, "max_model_len", None)) == (REAL, 512)


def test_the_answer_carries_one_request_id(url: str) -> None:
    body = {"model": REAL, "prompt": "a", "max_tokens": 1}
    answer = requests.post(f"{url}/v1/completions", json=body, headers={"X-Request-Id": "my-id"}, timeout=120)
    assert answer.headers["X-Request-Id"] == "my-id"
    assert "my-id" in answer.json()["id"]


CHAT = {"model": REAL, "messages": QUESTION, "max_tokens": 4}
BAD: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b"{", 400, "JSON"),
    "broken UTF-8": (b'{"model": "\xff\xfe"}', 400, ""),
    "an unknown model": (json.dumps(CHAT | {"model": "nobody/nothing"}).encode(), 404, "does not exist"),
    "a context too long": (
        json.dumps(CHAT | {"messages": [{"role": "user", "content": "word " * 2000}]}).encode(), 400, "context length",
    ),
    "a thousand answers": (json.dumps(CHAT | {"n": 1000}).encode(), 400, "n must be at most 128"),
    "nine stop strings": (json.dumps(CHAT | {"stop": list("abcdefghi")}).encode(), 400, "stop"),
    "a negative length": (json.dumps(CHAT | {"max_tokens": -1}).encode(), 400, "max_tokens"),
    "no messages": (json.dumps({"model": REAL}).encode(), 400, "messages"),
    "a list": (b"[]", 400, ""),
}  # fmt: skip


@pytest.mark.parametrize(("body", "code", "text"), BAD.values(), ids=BAD)
def test_a_bad_request_gets_its_4xx_with_an_openai_error_body(url: str, body: bytes, code: int, text: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{url}/v1/chat/completions", data=body, headers=headers, timeout=60)
    assert answer.status_code == code, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    assert text in error["message"]


def test_an_unknown_path_has_an_openai_error_body_too(url: str) -> None:
    answer = requests.get(f"{url}/v1/nothing", timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, 404)


def test_vllms_and_serves_metrics_are_on_one_scrape(cluster: Cluster, client: openai.OpenAI) -> None:
    client.completions.create(model=REAL, prompt="a", max_tokens=3)
    wanted = (
        "ray_vllm_time_to_first_token_seconds_bucket",
        "ray_vllm_inter_token_latency_seconds_bucket",
        "ray_serve_http_request_latency_ms_bucket",
    )
    deadline = time.monotonic() + 90
    while missing := [name for name in wanted if f"{name}{{" not in (text := cluster.metrics())]:
        assert time.monotonic() < deadline, f"{missing} of {len(text.splitlines())} lines"
        time.sleep(2)
    (line, *_) = [line for line in text.splitlines() if line.startswith(wanted[0])]
    assert f'application="{SLUG}"' in line and f'model_name="{REAL}"' in line


def test_the_replicas_log_says_where_its_start_went(cluster: Cluster, url: str) -> None:
    """vLLM configures logging anew when it starts, which ended Serve's log of the replica."""
    logs = "".join(log.read_text() for log in cluster.logs.glob(f"serve/replica_{SLUG}_*.log"))
    for step in ("Ray's worker", "weights", "import of vLLM", "vLLM's configuration", "engine", "application"):
        assert re.search(rf"after the start of its process: .*{step} \d+\.\d s", logs), logs


def test_a_server_survived_all_that(client: openai.OpenAI) -> None:
    assert client.completions.create(model=REAL, prompt="a", max_tokens=1).choices
