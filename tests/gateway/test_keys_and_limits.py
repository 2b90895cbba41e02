"""API keys, limits per key, and what the log and the metrics show of them."""

from __future__ import annotations

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from modelfleet.infra.gateway.files import BODIES_CFG, HAPROXY_CFG
from modelfleet.infra.local import haproxy
from tests.gateway.conftest import ALICE, BOB, KEYS, Gateway, Make
from tests.gateway.test_large_bodies import body_of
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
ASK = {"model": "small"}


@pytest.mark.parametrize("key", [None, "", "wrong", ALICE + "x", ALICE[:-1], ALICE.upper(), "*", "alice"])
@pytest.mark.parametrize("path", [CHAT, "/small/v1/completions", "/invocations", "/generative_scoring", "/nothing"])
def test_without_a_known_key_everything_is_401(shared: Gateway, key: str | None, path: str) -> None:
    answer = shared.post(path, ASK, key=key)
    assert answer.status_code == 401 and answer.json()["error"]["code"] == 401
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/small", "/version", "/metrics", "/docs", "/"])
def test_reading_needs_a_key_too(shared: Gateway, path: str) -> None:
    assert shared.get(path, key=None).status_code == 401


def test_every_key_opens_by_either_header(shared: Gateway) -> None:
    for key in KEYS.values():
        assert shared.post(CHAT, ASK, key=key).status_code == 200
        assert shared.post("/v1/messages", ASK, key=None, headers={"x-api-key": key}).status_code == 200
    assert shared.post(CHAT, ASK, key=None, headers={"authorization": f"bearer {BOB}"}).status_code == 200
    assert shared.post(CHAT, ASK, key=None, headers={"authorization": f"Basic {BOB}"}).status_code == 401


def test_two_authorization_headers_are_refused(shared: Gateway) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\nauthorization: Bearer x\r\n"
    assert b" 400 " in shared.raw(head.encode() + b"content-length: 2\r\n\r\n{}").splitlines()[0]


def test_the_key_goes_no_further_than_the_gateway(shared: Gateway) -> None:
    shared.post(CHAT, ASK, headers={"x-api-key": ALICE})
    seen = shared.backend.last
    assert "authorization" not in seen.headers and "x-api-key" not in seen.headers
    everything = [shared.log, *Path(shared.runtime.folder).iterdir(), Path(shared.runtime.key_map)]
    for file in everything:
        assert ALICE.encode() not in file.read_bytes(), file
    assert ALICE.encode() not in Path(f"/proc/{shared.processes and shared.processes.gateway}/cmdline").read_bytes()


def test_the_log_names_the_key_and_the_request(shared: Gateway) -> None:
    answer = shared.post(f"{CHAT}?secret=query", {"model": "org/large"}, headers={"x-request-id": "my-id-1"})
    assert answer.headers["x-request-id"] == "my-id-1" == shared.backend.last.headers["x-request-id"]
    entry = shared.logged("my-id-1")
    assert {name: entry[name] for name in ("key", "model", "path", "status", "backend")} == {
        "key": "alice", "model": "org/large", "path": CHAT, "status": 200, "backend": "model.org--large",
    }  # fmt: skip
    assert "secret" not in shared.log.read_text()


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 129, 'a"b', "é"])
def test_a_request_without_a_usable_id_gets_one(shared: Gateway, sent: str | None) -> None:
    headers = {} if sent is None else {"x-request-id": sent.encode()}
    answer = shared.post(CHAT, ASK, headers=headers)
    assert len(answer.headers["x-request-id"]) == 36 and answer.headers["x-request-id"] != sent
    assert shared.backend.last.headers["x-request-id"] == answer.headers["x-request-id"]


def test_refused_requests_have_an_id_and_a_log_entry_without_the_key(shared: Gateway) -> None:
    answer = shared.post(CHAT, ASK, key="not-a-key-at-all")
    entry = shared.logged(answer.headers["x-request-id"])
    assert (entry["status"], entry["key"], entry["end"]) == (401, "-", "LR")
    assert "not-a-key-at-all" not in shared.log.read_text()


def test_requests_per_minute_are_counted_for_each_key(make_gateway: Make) -> None:
    gateway = make_gateway(requests_per_minute=3)
    assert [gateway.post(CHAT, ASK).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = gateway.post("/small/v1/completions", ASK)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["type"] == "RateLimitError"
    assert gateway.post(CHAT, ASK, key=BOB).status_code == 200, "one key's limit is not another's"
    assert gateway.get("/v1/models").status_code == 200, "reading is not limited"


def test_open_requests_are_counted_for_each_key_and_given_back(make_gateway: Make) -> None:
    gateway = make_gateway(concurrent_requests=2)
    gateway.backend.hold_s = 0.7
    with ThreadPoolExecutor(5) as pool:
        codes = sorted(pool.map(lambda _: gateway.post(CHAT, ASK).status_code, range(5)))
    assert codes == [200, 200, 429, 429, 429]
    gateway.backend.hold_s = 0
    assert [gateway.post(CHAT, ASK).status_code for _ in range(5)] == [200] * 5


#: Body, path, and what it is charged in addition to a quarter of its bytes.
CHARGES: dict[str, tuple[dict[str, object] | bytes, str, int]] = {
    "what the request asks for": (ASK | {"max_tokens": 40}, CHAT, 40),
    "the model's own length": (ASK, CHAT, 100),
    "null is nothing said": (ASK | {"max_tokens": None}, CHAT, 100),
    "other names": (ASK | {"max_completion_tokens": 7, "max_tokens": 3}, CHAT, 7),
    "responses": (ASK | {"max_output_tokens": 9}, "/v1/responses", 9),
    "the direct route": ({"max_tokens": 11}, "/small/v1/completions", 11),
    "several answers": (ASK | {"max_tokens": 10, "n": 3}, CHAT, 30),
    "several prompts": (ASK | {"max_tokens": 10, "prompt": ["a", "b]", "c"]}, "/v1/completions", 30),
    "one prompt of token ids": (ASK | {"max_tokens": 10, "prompt": [1, 2, 3]}, "/v1/completions", 10),
    "no answer": (ASK | {"input": "a", "max_tokens": 5}, "/v1/embeddings", 0),
    "twice the same key": (b'{"model":"small","max_tokens":1,"max_tokens":90}', CHAT, 90),
    "an escaped key": (b'{"model":"small","max\\u005ftokens":90}', CHAT, 90),
    "text for a number": (b'{"model":"small","max_tokens":"90"}', CHAT, 90),
    "a number of more than 40 characters": (b'{"model":"small","max_tokens":0.' + b"0" * 46 + b"64e48}", CHAT, 64),
    "escaped digits": (b'{"model":"small","max_tokens":10,"n":"\\u0034"}', CHAT, 40),
    "digits with an underscore": (b'{"model":"small","max_tokens":10,"n":"0_4"}', CHAT, 40),
    "true for one": (b'{"model":"small","max_tokens":10,"n":true}', CHAT, 10),
    "null for the default": (b'{"model":"small","max_tokens":null,"n":null}', CHAT, 100),
    "another type": (b'{"model":"small","max_tokens":90}', CHAT, 90),
    "below zero": (b'{"model":"small","max_tokens":-5000}', CHAT, 0),
    "several chats": (
        ASK | {"max_tokens": 10, "messages": [[{"a": "b]"}, {}], [{}]]},
        "/v1/chat/completions/batch",
        20,
    ),
    "one chat": (ASK | {"max_tokens": 10, "messages": [{}, {}]}, CHAT, 10),
    "the engine's own choice of an answer": (ASK | {"max_tokens": 10, "prompt": ["a", "b"]}, "/invocations", 20),
    # Each of the three is read with the query (102 bytes), and answered with one token.
    "items": (ASK | {"query": "q" * 100, "items": ["a", "]b", "c"]}, "/generative_scoring", 3 + 2 * 102 // 4),
    "items of token ids": (
        ASK | {"query": "q" * 100, "items": [[1, 2], [3], [4]]},
        "/small/generative_scoring",
        3 + 2 * 102 // 4,
    ),
    "questions": (
        ASK | {"state": "s" * 98, "instructions": "i" * 98, "questions": {"a": {"type": "}"}, "b": {}, "c": {}}},
        "/v1/systemone",
        3 + 2 * 200 // 4,
    ),
    "documents": (ASK | {"query": "q" * 98, "documents": ["a", "b"]}, "/v2/rerank", 2 + 100 // 4),
    "a render is not answered": (ASK | {"messages": [{}], "max_tokens": 50}, "/v1/chat/completions/render", 0),
    "a model that is still to be found": (b'{"mod\\u0065l":"small"}', CHAT, 500),
}


@pytest.mark.parametrize(("body", "path", "answers"), CHARGES.values(), ids=CHARGES)
def test_tokens_are_charged_when_a_request_comes(
    counting: Gateway, body: dict[str, object] | bytes, path: str, answers: int
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    before = charged(counting)
    answer = counting.post(path, data=data, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert charged(counting) - before == len(data) // 4 + answers


UNCOUNTABLE = {
    "text that is no number": b'{"model":"small","n":"four"}',
    "a list for a number": b'{"model":"small","n":[4]}',
    "NaN": b'{"model":"small","max_tokens":NaN}',
    "infinity": b'{"model":"small","max_tokens":Infinity}',
    "UTF-16": '{"model":"small","n":4}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"model":"small","n":4}',
    "no object": b'[{"model":"small"}]',
    "nothing": b"",
}


@pytest.mark.parametrize("body", UNCOUNTABLE.values(), ids=UNCOUNTABLE)
def test_what_the_engine_may_read_and_the_gateway_cannot_count_is_400(counting: Gateway, body: bytes) -> None:
    """4,096 tokens in 55 s were charged as 100."""
    before = len(counting.backend.seen)
    answer = counting.post("/small/v1/chat/completions", data=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text
    assert len(counting.backend.seen) == before


@pytest.mark.parametrize("path", [CHAT, "/small/v1/chat/completions"])
def test_a_form_is_charged_as_json_where_the_engine_reads_json(counting: Gateway, path: str) -> None:
    data = b'{"model":"small","max_tokens":90}'
    before = charged(counting)
    answer = counting.post(path, data=data, headers={"content-type": "multipart/x"})
    assert answer.status_code == 200 and charged(counting) - before == len(data) // 4 + 90


def test_two_content_types_are_refused(counting: Gateway) -> None:
    """The gateway took the last one, for a form without tokens, and the engine the first."""
    data = '{"model":"small","max_tokens":4096}'
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\ncontent-length: {len(data)}\r\n"
    types = "content-type: application/json\r\ncontent-type: multipart/x\r\nconnection: close\r\n\r\n"
    before = charged(counting)
    answer = counting.raw((head + types + data).encode())
    assert b" 400 " in answer.splitlines()[0] and b"Content-Type was given more than once" in answer
    assert charged(counting) == before


@pytest.mark.parametrize(
    ("path", "key", "keeps"),
    [("/health", "", False), ("/ready", "", False), (f"{CHAT}", "", False), ("/v1/models", "sk-no", False),
     ("/v1/models", ALICE, True)],
)  # fmt: skip
def test_only_who_has_a_key_keeps_a_connection(shared: Gateway, path: str, key: str, keeps: bool) -> None:
    """44 idle connections of strangers made a request with a key wait for 74 seconds, at 40 connections in all."""
    host, port = shared.runtime.bind.split(":")
    with socket.create_connection((host, int(port)), timeout=3) as connection:
        sent = f"authorization: Bearer {key}\r\n" if key else ""
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{sent}\r\n".encode())
        answer = b""
        with suppress(TimeoutError):
            while part := connection.recv(65536):
                answer += part
            assert not keeps, answer
            return
    assert keeps, f"the connection stays open after {answer[:200]!r}"


@pytest.mark.parametrize("length", [700, 900, 4000])
def test_a_strangers_long_path_is_logged_as_json_with_its_status(shared: Gateway, length: int) -> None:
    """Lines ended after 1,023 bytes, so a stranger could hide the status of a request."""
    name = f"long-{length}"
    answer = requests.get(f"{shared.url}/{'é' * length}", headers={"x-request-id": name}, timeout=20)
    assert answer.status_code == 401
    entry = shared.logged(name)
    assert entry["status"] == 401 and len(entry["path"]) <= 200 and entry["path"].startswith("/%C3%A9")


def test_a_replica_cannot_say_which_model_the_log_names(make_gateway: Make) -> None:
    gateway = make_gateway()
    gateway.backend.says = {"x-modelfleet-model": "org/forged"}
    answer = gateway.post(CHAT, ASK, headers={"x-request-id": "forged"})
    assert answer.status_code == 200 and "x-modelfleet-model" not in answer.headers
    assert gateway.logged("forged")["model"] == "small"


@pytest.fixture(scope="module")
def counting(make_gateway: Make) -> Gateway:
    return make_gateway(tokens_per_minute=10**9)


def charged(gateway: Gateway) -> int:
    """Tokens charged to alice's requests so far, from HAProxy's own table."""
    table = haproxy.admin(gateway.runtime, "show table limits key alice")
    found = re.search(r"gpc1=(\d+)|gpc\[1\]=(\d+)", table)
    return int(found[1] or found[2]) if found else 0


def test_tokens_per_minute_are_limited_for_each_key(make_gateway: Make) -> None:
    gateway = make_gateway(tokens_per_minute=1000)
    asked = ASK | {"max_tokens": 600, "stream": True}
    assert [gateway.post(CHAT, asked).status_code for _ in range(4)] == [200, 200, 429, 429]
    refused = gateway.post("/v1/embeddings", ASK)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert "1000 per minute" in refused.json()["error"]["message"]
    assert gateway.post(CHAT, asked, key=BOB).status_code == 200, "one key's limit is not another's"
    large = {"messages": ["A" * 400_000], "model": "small", "max_tokens": 1}
    assert [gateway.post(CHAT, large, key=BOB).status_code for _ in range(2)] == [200, 429], "large bodies count too"


@pytest.mark.parametrize("direct", [False, True], ids=["by model", "direct"])
@pytest.mark.parametrize("model_first", [True, False], ids=["model first", "model last"])
def test_what_a_large_body_asks_for_behind_the_first_buffer_is_charged(
    counting: Gateway, model_first: bool, direct: bool
) -> None:
    """128 answers of 4,096 tokens were charged as one of the model's usual length."""
    path = "/small/v1/chat/completions" if direct else CHAT
    charges = []
    for more in ({}, {"max_tokens": 4096, "n": 128}):
        before = charged(counting)
        data = body_of(400_000, model_first=model_first, **more)
        assert counting.post(path, data=data, headers={"content-type": "application/json"}).status_code == 200
        charges.append(charged(counting) - before)
    # While the model's name is not read yet, the longest answer of all models counts.
    usual = 100 if model_first or direct else 500
    assert charges[1] - charges[0] == 128 * 4096 - usual, charges
    assert charges[0] < 65_536 + usual, "bytes beyond the first buffer, such as those of an image, cost nothing"


def test_an_uncountable_number_behind_the_first_buffer_is_400(counting: Gateway) -> None:
    before = len(counting.backend.seen)
    for path in (CHAT, "/small/v1/chat/completions"):
        answer = counting.post(path, data=body_of(400_000, n="many"), headers={"content-type": "application/json"})
        assert answer.status_code == 400 and "are numbers" in answer.json()["error"]["message"]
    assert len(counting.backend.seen) == before


@pytest.mark.parametrize(("config", "texts"), [(HAPROXY_CFG, 60_000), (BODIES_CFG, 300_000)], ids=["first", "second"])
def test_a_body_that_takes_too_long_to_count_is_400(make_gateway: Make, config: str, texts: int) -> None:
    """HAProxy ends the count and goes on: ten million empty prompts passed uncharged, here some that take over 1 ms."""
    gateway = make_gateway(tokens_per_minute=10**9)
    file = Path(gateway.runtime.folder) / config
    file.write_text(file.read_text().replace("\nglobal\n", "\nglobal\n    tune.lua.session-timeout 1ms\n"))
    assert gateway.processes
    gateway.old.append(gateway.processes)
    gateway.processes = haproxy.start(gateway.runtime, haproxy.find_binary(), gateway.log, replaces=gateway.processes)
    body = b'{"prompt":[' + b'"",' * texts + b'""],"model":"small"}'
    answer = gateway.post("/v1/completions", data=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "takes too long" in answer.json()["error"]["message"]
    assert gateway.post(CHAT, ASK).status_code == 200
    assert [one.path for one in gateway.backend.seen] == [f"/small{CHAT}"]


def test_auth_none_opens_and_limits_by_address(make_gateway: Make) -> None:
    gateway = make_gateway(keys=None, auth="none", requests_per_minute=2)
    assert [gateway.post(CHAT, ASK, key=None).status_code for _ in range(3)] == [200, 200, 429]
    assert gateway.post(CHAT, ASK, key="anything").status_code == 429
    assert gateway.get("/v1/models", key=None).status_code == 200
    assert gateway.post("/derender", ASK, key=None).status_code == 404


def test_keys_rotate_without_a_restart_or_a_dropped_stream(make_gateway: Make) -> None:
    gateway = make_gateway()
    assert gateway.processes
    stream = gateway.post(CHAT, {**ASK, "stream": True}, stream=True)
    lines = stream.iter_lines()
    next(lines)
    new = "sk-alice-second-key-1"
    haproxy.set_keys(gateway.runtime, {"alice": new, "carol": "sk-carol-0123456789"})
    assert gateway.post(CHAT, ASK, key=new).status_code == 200
    assert gateway.post(CHAT, ASK, key=ALICE).status_code == 401, "the old key stops working at once"
    assert gateway.post(CHAT, ASK, key=BOB).status_code == 401
    assert [line for line in lines if line][-1] == b"data: [DONE]"
    assert haproxy.is_running(gateway.processes.gateway)
    gateway.keys = None  # the file holds the new ones already
    gateway.up()
    assert gateway.post(CHAT, ASK, key=new).status_code == 200, "rotated keys outlive a reload"


def test_no_request_is_refused_while_keys_rotate(make_gateway: Make) -> None:
    gateway = make_gateway()
    codes: list[int] = []
    done = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            while not done.is_set():
                answer = session.post(
                    gateway.url + CHAT, json=ASK, headers={"authorization": f"Bearer {ALICE}"}, timeout=5
                )
                codes.append(answer.status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    rotations = 0
    while rotations < 20 or len(codes) < 100:
        rotations += 1
        haproxy.set_keys(gateway.runtime, {"alice": ALICE, "other": f"sk-other-{rotations:012}"})
    done.set()
    asking.join()
    assert set(codes) == {200}


def test_metrics_are_on_loopback_only_and_show_models_and_key_names(make_gateway: Make) -> None:
    gateway = make_gateway()
    gateway.post(CHAT, {"model": "org/large"})
    gateway.post(CHAT, {"model": "org/large"}, key=BOB)
    base = f"http://{gateway.runtime.metrics_bind}"
    # HAProxy counts a request once it has sent the answer.
    counted = 'haproxy_backend_http_responses_total{proxy="model.org--large",code="2xx"} 2'
    wait_until(lambda: counted in requests.get(f"{base}/metrics", timeout=5).text, what="two answers are counted")
    keys = requests.get(f"{base}/metrics/keys", timeout=5).text
    assert 'modelfleet_gateway_key_requests_total{key="alice"} 1' in keys
    assert 'modelfleet_gateway_key_requests_total{key="bob"} 1' in keys
    assert requests.get(f"{base}/anything", timeout=5).status_code == 404
    assert gateway.runtime.metrics_bind.startswith("127.0.0.1:")


def test_the_admin_socket_is_for_its_owner_only(shared: Gateway) -> None:
    for path in (shared.runtime.admin_socket, shared.runtime.bodies_admin_socket, shared.runtime.bodies_socket):
        assert Path(path).stat().st_mode & 0o777 == 0o600
    assert Path(shared.runtime.key_map).stat().st_mode & 0o777 == 0o600
