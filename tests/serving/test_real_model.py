"""The real small model, from its mirror through Ray Serve: it answers, streams and refuses wrong requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
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
    as_deployed = {"runtime_env": {"env_vars": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}}}  # see cluster.py
    cluster.serve(application(model(REAL, engine=as_deployed), mirror))
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


def test_the_replica_runs_the_code_that_ray_unpacked(cluster: Cluster, url: str) -> None:
    """Python puts compiled modules next to their source; only a replica imports `modelfleet.serving.engine`."""
    (replica,) = cluster.replicas(SLUG)
    folder = Path(f"/proc/{replica['pid']}/cwd").readlink()
    assert folder.parent.parts[-2:] == ("runtime_resources", "working_dir_files")
    assert list((folder / "modelfleet" / "serving" / "__pycache__").glob("engine.*.pyc"))


def test_the_replicas_log_says_where_its_start_went(cluster: Cluster, url: str) -> None:
    """Regression: vLLM reconfigures logging when it starts, which ended Serve's log of the replica."""
    logs = "".join(log.read_text() for log in cluster.logs.glob(f"serve/replica_{SLUG}_*.log"))
    for step in ("Ray's worker", "weights", "import of vLLM", "vLLM's configuration", "engine", "application"):
        assert re.search(rf"after the start of its process: .*{step} \d+\.\d s", logs), logs


def test_a_server_survived_all_that(client: openai.OpenAI) -> None:
    assert client.completions.create(model=REAL, prompt="a", max_tokens=1).choices
