"""`up` ends for every kind of model: the request that each one gets, and the printed command to paste."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from modelfleet.cli import endpoint, pulumi_run, up
from modelfleet.cli.endpoint import curl_example, first_exchange, openai_example, wait_for_first_answer, why_no_way_to
from modelfleet.infra.planning.gateway_paths import BY_MODEL
from modelfleet.infra.planning.plan import ModelKind, ModelPlan
from modelfleet.serving.config.errors import SetupError
from tests.unit.listener import listening
from tests.unit.planning.builders import model, planned, pool, stack

#: Per kind of model: the POST paths that vLLM 0.32 has and the gateway passes, and the key in the answer.
VLLM: dict[ModelKind, dict[str, str]] = {
    "text": {"/v1/completions": "choices", "/v1/chat/completions": "choices"},
    "embedding": {"/v1/embeddings": "data", "/v1/rerank": "results", "/v1/score": "data", "/pooling": "data"},
    "reranker": {"/v1/rerank": "results", "/v1/score": "data", "/classify": "data", "/pooling": "data"},
    "classifier": {"/classify": "data", "/pooling": "data"},
    "pooling": {"/pooling": "data"},
    "other": {"/v1/audio/transcriptions": "text"},
}


class Served:
    """A gateway with one model, which has some of vLLM's paths; `early` are the statuses before it answers."""

    def __init__(self, paths: dict[str, str], early: list[int]) -> None:
        self.asked: list[str] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                assert body["model"] == "org/model"
                self._answer(paths.get(self.path))

            def do_GET(self) -> None:
                self._answer({"/org--model/v1/models": "data"}.get(self.path))

            def _answer(self, key: str | None) -> None:
                served.asked.append(self.path)
                status = early.pop(0) if early else 200 if key else 404
                text = json.dumps(
                    {key: [1]} if status == 200 else {"error": {"message": "no", "code": status}}
                ).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Logs nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    made: list[Served] = []

    def start(kind: ModelKind, *early: int) -> Served:
        made.append(Served(VLLM[kind], list(early)))
        return made[-1]

    yield start
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def plan_of(**engine: Any) -> ModelPlan:
    return planned(
        [model("org/model", "CPU", **engine)], stack(pool("cpu", "CPU"), target="local", region=None)
    ).models[0]


@pytest.mark.parametrize("kind", VLLM)
def test_without_a_kind_in_the_file_paths_are_tried_until_one_answers(serve: Serve, kind: ModelKind) -> None:
    """The checkpoint decides the kind in vLLM; `up` once waited five minutes for a token of an embedding model."""
    served = serve(kind)
    assert wait_for_first_answer(served.url, plan_of(), None)[1] == kind
    assert served.asked[0] == "/v1/completions"


@pytest.mark.parametrize(
    ("engine", "kind", "path"),
    [
        ({}, "text", "/v1/completions"),
        ({"model_type": "embedding"}, "embedding", "/v1/embeddings"),
        ({"engine_kwargs": {"runner": "pooling"}}, "embedding", "/v1/embeddings"),
        ({"engine_kwargs": {"convert": "embed"}}, "embedding", "/v1/embeddings"),
        ({"engine_kwargs": {"runner": "pooling", "convert": "classify"}}, "classifier", "/classify"),
        ({"engine_kwargs": {"convert": "classify", "hf_overrides": {"num_labels": 1}}}, "reranker", "/v1/rerank"),
        (
            {
                "engine_kwargs": {
                    "hf_overrides": {
                        "architectures": ["Qwen3ForSequenceClassification"],
                        "classifier_from_token": ["no", "yes"],
                    }
                }
            },
            "reranker",
            "/v1/rerank",
        ),
        ({"engine_kwargs": {"hf_overrides": '{"num_labels": 1}'}}, "text", "/v1/completions"),
    ],
)
def test_the_path_for_the_files_kind_is_tried_first(
    serve: Serve, engine: dict[str, Any], kind: ModelKind, path: str
) -> None:
    plan = plan_of(**engine)
    assert plan.kind == kind
    served = serve(kind)
    assert wait_for_first_answer(served.url, plan, None)[1] == kind
    assert served.asked == [path]


def test_a_model_that_is_starting_is_waited_for(serve: Serve) -> None:
    """The gateway says so with 503; a 404 in between only means that the gateway does not know the model yet."""
    served = serve("embedding", 503, 503, *[404] * 6, 502)
    assert wait_for_first_answer(served.url, plan_of(), None)[1] == "embedding"
    assert served.asked[:3] == ["/v1/completions"] * 3, "only a 404 means that another path must be tried"


def test_a_model_that_never_answers_is_an_error(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "READY_TIMEOUT_S", 0.3)
    with pytest.raises(SetupError, match=r"org/model does not answer at http://127.0.0.1:\d+: 503 .*modelfleet status"):
        wait_for_first_answer(serve("text", *[503] * 99).url, plan_of(), None)


def test_a_refusal_that_waiting_does_not_change_ends_at_once(serve: Serve) -> None:
    with pytest.raises(SetupError, match=r"refuses a plain request \(401\)"):
        wait_for_first_answer(serve("text", 401).url, plan_of(), "wrong")


@pytest.mark.parametrize("kind", VLLM)
def test_the_printed_request_goes_to_a_path_that_the_model_has(kind: ModelKind) -> None:
    command = curl_example("http://here", plan_of(), kind, with_key=True)
    path = command.split()[1].removeprefix("http://here")
    assert path in VLLM[kind] or path == "/org--model/v1/models"
    assert path in BY_MODEL or path == "/org--model/v1/models", "the gateway must pass it"
    assert '"authorization: Bearer $MODELFLEET_API_KEY"' in command


def test_openais_client_is_shown_for_the_kinds_that_it_supports() -> None:
    shown = {kind: openai_example("http://here", plan_of(), kind, with_key=False, root=Path("/")) for kind in VLLM}
    assert [kind for kind, text in shown.items() if text] == ["text", "embedding"]
    assert 'client.chat.completions.create(model="org/model"' in str(shown["text"])
    assert 'client.embeddings.create(model="org/model", input="What is the capital of France?")' in str(
        shown["embedding"]
    )


def test_an_address_that_nobody_answers_at_has_a_reason_and_one_that_answers_has_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert why_no_way_to(f"http://127.0.0.1:{port}", seconds=0) == ""
    assert "refused" in why_no_way_to(f"http://127.0.0.1:{port}", seconds=0).lower()
    assert why_no_way_to("https://nowhere.invalid", seconds=0)


def through_the_door(
    replicas: tuple[int, int], why: str, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, list[str]]]:
    """Whom `up` asks after it made a stack on EKS with a front door: addresses with their models."""
    made = stack(pool(), gateway={"expose": "internal"}, auth="none")
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(pulumi_run, "outputs", lambda root, name: {"base_url": "http://door.example/v1"})
    monkeypatch.setattr(up, "why_no_way_to", lambda base, *, seconds: why)
    monkeypatch.setattr(
        up, "_first_answers", lambda root, plan, base, models: asked.append((base, [one.model_id for one in models]))
    )
    up._show_endpoint(Path(), planned([model("org/model", "L4", replicas=replicas)], made))
    return asked


def test_up_on_eks_ends_with_a_first_answer_through_the_front_door(monkeypatch: pytest.MonkeyPatch) -> None:
    assert through_the_door((1, 1), "", monkeypatch) == [("http://door.example", ["org/model"])]


def test_up_does_not_wake_a_model_that_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first request buys a GPU node."""
    assert through_the_door((0, 1), "", monkeypatch) == []


def test_up_says_when_the_front_door_cannot_be_reached_from_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert through_the_door((1, 1), "timed out", monkeypatch) == []
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be reached from here, timed out; ask from a network in gateway.allowCidrs" in said


def test_up_asks_each_model_with_a_key_that_may_use_it_and_skips_those_that_none_may(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first key was taken, whatever it may, and `up` failed on a stack that served."""
    keys = {"a-ended": {"expires": "2020-01-01"}, "b": {"models": ["small"]}, "c": {"models": ["large"]}}
    made = stack(pool(), auth="keys", secrets=["apiKeys"], keys=keys)
    plan = planned([model("hidden"), model("large"), model("small")], made)
    secrets = {name: f"sk-{name}-0123456789" for name in keys}
    asked: dict[str, str | None] = {}

    def wait(base: str, model: ModelPlan, key: str | None) -> tuple[float, ModelKind]:
        asked[model.model_id] = key
        return 1.0, "embedding"

    monkeypatch.setattr(up, "wait_for_first_answer", wait)
    monkeypatch.setattr(pulumi_run, "ask", lambda *_: json.dumps(secrets))
    up._first_answers(Path(), plan, "http://door.example", plan.models)
    assert asked == {"large": secrets["c"], "small": secrets["b"]}
    said = capsys.readouterr()
    assert said.err.count("hidden: not asked") == 1 and '"model": "large"' in said.out
    secrets = {"a-ended": secrets["a-ended"]}
    up._first_answers(Path(), plan, "http://door.example", plan.models)
    said = capsys.readouterr()
    assert said.err.count("not asked, because no key that lives may use it") == 3
    assert "http://door.example/v1" in said.out + said.err and "curl" not in said.out


CHAT_ANSWER = {"choices": [{"message": {"content": "The capital of France\n is Paris."}}]}


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (200, CHAT_ANSWER, "Model: The capital of France is Paris.   ("),
        (200, {"choices": [{"message": {"content": None}}]}, None),
        (200, {"choices": []}, None),
        (400, {"error": {"message": "no chat template"}}, None),
    ],
    ids=["a chat model", "one that still thinks", "no answer", "a base model"],
)
def test_up_ends_with_a_question_and_the_models_own_answer(status: int, answer: Any, said: str | None) -> None:
    with listening(answer, status=status) as gateway:
        shown = first_exchange(gateway.url(), plan_of(), None)
    assert (said is None) == (shown is None)
    if said and shown:
        assert shown.splitlines()[0] == "You:   What is the capital of France?" and said in shown
