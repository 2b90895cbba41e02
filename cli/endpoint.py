"""The stack's endpoint: waiting for a first real answer of each model, and examples that work when pasted."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelfleet.cli import output
from modelfleet.infra.planning.plan import ModelKind, ModelPlan
from modelfleet.serving.config.errors import SetupError

READY_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0
SAY_EVERY_S = 4.0
CONNECT_TIMEOUT_S, CONNECT_EVERY_S = 5.0, 2.0
QUESTION = "What is the capital of France?"
#: Enough for a sentence or two on CPUs.
FIRST_TOKENS = 64
DOCUMENTS = ["Paris is the capital of France.", "Berlin has 3.7 million inhabitants."]


@dataclass(frozen=True)
class Request:
    """One way to query a model: `body` without `model` for a POST, None for a GET; `holds` is a key of the answer."""

    path: str
    body: Mapping[str, Any] | None
    holds: str


#: The smallest request of each kind. A model whose file does not say its kind is tried in this order: a reranker also
#: classifies, and every model that pools has `/pooling`.
SMALLEST: Mapping[ModelKind, Request] = {
    "text": Request("/v1/completions", {"prompt": "Hello", "max_tokens": 1}, "choices"),
    "embedding": Request("/v1/embeddings", {"input": QUESTION}, "data"),
    "reranker": Request("/v1/rerank", {"query": QUESTION, "documents": DOCUMENTS}, "results"),
    "classifier": Request("/classify", {"input": QUESTION}, "data"),
    "pooling": Request("/pooling", {"input": QUESTION}, "data"),
    "other": Request("/{slug}/v1/models", None, "data"),
}
CHAT = Request(
    "/v1/chat/completions", {"temperature": 0, "messages": [{"role": "user", "content": QUESTION}]}, "choices"
)
#: The same question with OpenAI's client, which does not support the other kinds.
OPENAI: Mapping[ModelKind, list[str]] = {
    "text": [
        f'messages = [{{"role": "user", "content": "{QUESTION}"}}]',
        'answer = client.chat.completions.create(model="MODEL", messages=messages, temperature=0)',
        "print(answer.choices[0].message.content)",
    ],
    "embedding": [
        f'answer = client.embeddings.create(model="MODEL", input="{QUESTION}")',
        "print(answer.data[0].embedding)",
    ],
}


def wait_for_first_answer(base_url: str, model: ModelPlan, api_key: str | None) -> tuple[float, ModelKind]:
    """Seconds until the model answered through the gateway, and to which kind of request.

    Raises `SetupError` when it never does, or refuses the request in a way that waiting will not change.
    """
    kinds: list[ModelKind] = [model.kind, *(kind for kind in SMALLEST if kind != model.kind)]
    began, said = time.monotonic(), 0.0
    while True:
        kind, problem = _answers_to(base_url, model, kinds, api_key)
        waited = time.monotonic() - began
        if kind is not None:
            return waited, kind
        if waited > READY_TIMEOUT_S:
            raise SetupError(f"{model.model_id} does not answer at {base_url}: {problem}; see `modelfleet status`")
        if time.monotonic() - said >= SAY_EVERY_S:
            output.say(f"waiting for {model.model_id} at {base_url}: {problem} ({waited:.0f} s)")
            said = time.monotonic()
        time.sleep(0.25)


def first_exchange(base_url: str, model: ModelPlan, api_key: str | None) -> str | None:
    """A question, the model's own answer and its seconds, as two lines; None for a model that does not chat.

    It has the sampling that a client without any gets, so it shows what they will see.
    """
    began = time.monotonic()
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": FIRST_TOKENS}
    status, answer = _ask(base_url + CHAT.path, model.model_id, body, api_key)
    try:
        said = answer["choices"][0]["message"]["content"] if status == 200 else None
    except (KeyError, IndexError, TypeError):
        return None
    if not isinstance(said, str) or not said.strip():
        return None  # one that is still thinking has not said anything
    return f"You:   {QUESTION}\nModel: {' '.join(said.split())}   ({time.monotonic() - began:.1f} s)"


def why_no_way_to(base_url: str, *, seconds: float) -> str:
    """Why nothing answers at an address, after `seconds`; empty once it does. A new name is not known at once."""
    place = urlsplit(base_url)
    port = place.port or {"http": 80, "https": 443}[place.scheme]
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((place.hostname or "", port), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            if time.monotonic() >= until:
                return str(error.strerror or error)
            time.sleep(CONNECT_EVERY_S)
        else:
            return ""


def curl_example(base_url: str, model: ModelPlan, kind: ModelKind, *, with_key: bool) -> str:
    """A shell command that asks the model a question of its kind."""
    request = CHAT if kind == "text" else SMALLEST[kind]
    url = base_url + request.path.format(slug=model.slug)
    header = ' -H "authorization: Bearer $MODELFLEET_API_KEY"' if with_key else ""
    if request.body is None:
        return f"curl {url}{header}"
    body = json.dumps({"model": model.model_id, **request.body})
    return f"curl {url} -H 'content-type: application/json'{header} \\\n  -d '{body}'"


def openai_example(base_url: str, model: ModelPlan, kind: ModelKind, *, with_key: bool, root: Path) -> str | None:
    """The same question by OpenAI's client, as a shell command; None for a kind that the client does not support."""
    if kind not in OPENAI:
        return None
    python = ".venv/bin/python" if (root / ".venv/bin/python").exists() else "python"
    key = 'os.environ["MODELFLEET_API_KEY"]' if with_key else '"none"'
    lines = ["import os"] if with_key else []
    lines += ["from openai import OpenAI", f'client = OpenAI(base_url="{base_url}/v1", api_key={key})']
    lines += [line.replace("MODEL", model.model_id) for line in OPENAI[kind]]
    return "\n".join([f"{python} - <<'EOF'", *lines, "EOF"])


def _answers_to(
    base_url: str, model: ModelPlan, kinds: list[ModelKind], api_key: str | None
) -> tuple[ModelKind | None, str]:
    """The first kind of request that the model answers, otherwise the problem.

    vLLM has only the paths of its model's tasks and returns 404 for the others. While a model starts, the gateway
    returns 503.
    """
    problem = ""
    for kind in kinds:
        request = SMALLEST[kind]
        status, answer = _ask(base_url + request.path.format(slug=model.slug), model.model_id, request.body, api_key)
        if status == 200 and isinstance(answer, dict) and answer.get(request.holds):
            return kind, ""
        problem = f"{status} {answer}" if status else str(answer)
        if status in (400, 401, 403, 422):
            raise SetupError(f"{model.model_id} at {base_url} refuses a plain request ({status}): {answer}")
        if status != 404:
            break
    return None, problem


def _ask(url: str, model_id: str, body: Mapping[str, Any] | None, api_key: str | None) -> tuple[int, Any]:
    """Status and parsed answer, or the refusal's text on one line; status 0 without an answer."""
    headers = {"content-type": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    data = None if body is None else json.dumps({"model": model_id, **body}).encode()
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - our own address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is never behind a proxy
    try:
        with opener.open(request, timeout=ANSWER_TIMEOUT_S) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, " ".join(error.read().decode(errors="replace").split())[:300]
    except (OSError, ValueError) as error:
        return 0, getattr(error, "reason", error)
