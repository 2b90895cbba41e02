"""What an attacker or a broken client sends. Nothing closed may open; nothing may reach the backend twice."""

from __future__ import annotations

import socket
import time

import pytest

from tests.gateway.conftest import ALICE, Gateway, Make

CHAT = "/v1/chat/completions"
AUTH = f"authorization: Bearer {ALICE}\r\n"
BODY = '{"model":"small"}'


def request(path: str, body: str = BODY, headers: str = "", version: str = "1.1", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/{version}\r\nhost: x\r\n{AUTH}{headers}content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return (head + body).encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


@pytest.mark.parametrize(
    "path",
    [
        "/sleep", "/metrics", "/docs", "/openapi.json", "/redoc", "/ping", "/load", "/server_info", "/derender",
        "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/-/healthz", "/-/routes", "/api/serve/applications/", "/",
        "/small", "/small/", "/small/sleep", "/small/metrics", "/small/docs", "/small/load",
        "/small/v1/load_lora_adapter", "/none/v1/chat/completions", "/v1", "/v1/", "/v1/chat", "/V1/chat/completions",
        "/v1/../sleep", "/v1/chat/completions/../../../sleep", "/v1/%2e%2e/sleep", "/v1/..%2fsleep",
        "//v1/chat/completions", "/v1//chat/completions", "/v1/chat/completions/", "/v1/chat/completions;x", "/./sleep",
        "/small/../sleep", "/small/v1/../sleep", "/small%2fv1/completions", "/small//v1/completions",
        "/v1/chat/completions%00", "/v1/chat/completions%0d%0ax:y", "/%73leep", "http://x/sleep", "/v1\\sleep",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "OPTIONS"])
def test_every_other_path_is_shut(shared: Gateway, path: str, method: str) -> None:
    before = len(shared.backend.seen)
    answer = shared.raw(request(path, method=method))
    assert status(answer) in (400, 404), answer[:200]
    assert b'{"error":' in answer
    assert len(shared.backend.seen) == before, "the request must not reach the backend"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"])
def test_another_method_on_an_open_path_is_405_with_the_one_that_works(shared: Gateway, method: str) -> None:
    answer = shared.raw(request(CHAT, method=method))
    assert status(answer) == 405 and b"allow: POST" in answer
    assert status(shared.raw(request("/v1/models"))) == 405


def test_connect_is_refused(shared: Gateway) -> None:
    assert status(shared.raw(f"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n{AUTH}\r\n".encode())) in (400, 404, 405)


SMUGGLED = "POST /small/sleep HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("content-length: 17\r\ntransfer-encoding: chunked\r\n", f"0\r\n\r\n{SMUGGLED}"),
        ("content-length: 17\r\ncontent-length: 100\r\n", BODY + SMUGGLED),
        ("content-length: 17, 100\r\n", BODY + SMUGGLED),
        ("content-length: +17\r\n", BODY + SMUGGLED),
        ("content-length: -1\r\n", SMUGGLED),
        ("content-length: 0x11\r\n", BODY + SMUGGLED),
        ("content-length : 17\r\n", BODY + SMUGGLED),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", f"0\r\n\r\n{SMUGGLED}"),
        ("transfer-encoding: xchunked\r\n", f"0\r\n\r\n{SMUGGLED}"),
        ("transfer-encoding : chunked\r\n", f"0\r\n\r\n{SMUGGLED}"),
        ("transfer-encoding:\x0bchunked\r\n", f"0\r\n\r\n{SMUGGLED}"),
        ("transfer-encoding: chunked\r\n", f"11\r\n{BODY}\r\n0\r\nx: y\r\n\r\n{SMUGGLED}"),
        ("transfer-encoding: chunked\r\n", f"ffffffffffffffff\r\n{BODY}"),
        ("transfer-encoding: chunked\r\n", f"zz\r\n{BODY}\r\n0\r\n\r\n"),
        ("content_length: 100\r\ncontent-length: 17\r\n", BODY + SMUGGLED),
        ("x: y\r\n z\r\ncontent-length: 17\r\n", BODY + SMUGGLED),
        ("x: y\ncontent-length: 17\r\n", BODY + SMUGGLED),
    ],
)
def test_no_second_request_is_smuggled_in(make_gateway: Make, shared: Gateway, framing: str, body: str) -> None:
    before = len(shared.backend.seen)
    answer = shared.raw(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{AUTH}{framing}\r\n{body}".encode(), wait_s=0.7)
    reached = shared.backend.seen[before:]
    assert [seen.path for seen in reached] in ([], [f"/small{CHAT}"]), answer[:300]
    if reached:
        assert reached[0].body == BODY.encode() and "content_length" not in reached[0].headers
    if answer.count(b"HTTP/1.1 ") > 1:
        second = answer.split(b"HTTP/1.1 ")[2]
        assert second[:3] in (b"400", b"401"), "what follows is its own request, without a key"


def test_a_client_cannot_speak_for_the_gateway(shared: Gateway) -> None:
    forged = "x-modelfleet-model: evil\r\nX_Modelfleet_Model: evil\r\nx_api_key: evil\r\nx-modelfleet-key: evil\r\n"
    shared.raw(request(CHAT, headers=forged))
    passed_on = shared.backend.last.headers
    assert [name for name in passed_on if "modelfleet" in name or "_" in name] == ["x-modelfleet-key"], (
        "the gateway's own"
    )
    assert "evil" not in passed_on.values()


def test_line_breaks_in_a_model_id_stay_text(shared: Gateway) -> None:
    answer = shared.raw(
        request(CHAT, '{"model":"a\\r\\nset-cookie: x=1\\r\\n\\r\\nHTTP/1.1 200 OK"}', "x-request-id: crlf-1\r\n")
    )
    assert status(answer) == 404 and b"set-cookie" not in answer.split(b"\r\n\r\n")[0]
    logged = shared.logged("crlf-1")
    assert logged["model"].startswith("a\r\nset-cookie")
    assert (logged["level"], logged["key"]) == ("INFO", "alice")


@pytest.mark.parametrize("size", [10_000, 50_000, 200_000, 3_000_000])
def test_huge_headers_are_refused_or_passed_whole_and_harm_nothing(shared: Gateway, size: int) -> None:
    answer = shared.raw(request(CHAT, headers=f"x-big: {'a' * size}\r\n"))
    allowed = {10_000: 200, 50_000: 200, 200_000: 431, 3_000_000: 400}
    assert status(answer) == allowed[size], "at 200,000 the backend refuses"
    assert shared.post(CHAT, {"model": "small"}).status_code == 200


def test_too_many_headers_are_refused(shared: Gateway) -> None:
    assert status(shared.raw(request(CHAT, headers="".join(f"x-{n}: y\r\n" for n in range(500))))) == 400


@pytest.mark.parametrize(
    "line", [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"POST /v1 HTTP/x\r\n\r\n", b"\0\0\0\r\n\r\n"]
)
def test_what_is_not_http_is_400(shared: Gateway, line: bytes) -> None:
    assert status(shared.raw(line)) == 400


def test_http_1_0_is_answered_and_closed(shared: Gateway) -> None:
    answer = shared.raw(
        request(CHAT, version="1.0", headers="x: y\r\n").replace(b"connection: close\r\n", b""), wait_s=5
    )
    assert status(answer) == 200 and answer.endswith(b"}") and b"content-length" in answer.lower()


def test_a_chunked_body_is_routed_by_its_model(shared: Gateway) -> None:
    def pieces():  # type: ignore[no-untyped-def]
        for byte in BODY.encode():
            yield bytes([byte])

    answer = shared.post(CHAT, data=pieces())
    assert answer.json()["path"] == f"/small{CHAT}" and shared.backend.last.body == BODY.encode()


def test_expect_100_continue_is_served(shared: Gateway) -> None:
    host, port = shared.runtime.bind.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request(CHAT, headers="expect: 100-continue\r\n").removesuffix(BODY.encode()))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(BODY.encode())
        assert b" 200 " in connection.recv(1000)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_slow_head_is_cut_while_others_are_served(shared: Gateway) -> None:
    host, port = shared.runtime.bind.split(":")
    begun = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\n".encode())
        while time.monotonic() - begun < 25:
            time.sleep(1)
            try:
                connection.sendall(b"x: y\r\n")
            except OSError:
                break
            assert shared.post(CHAT, {"model": "small"}).status_code == 200
        assert b" 408 " in connection.recv(1000)
    assert 13 < time.monotonic() - begun < 20


def test_a_slow_body_holds_nothing_but_its_own_connection(shared: Gateway) -> None:
    host, port = shared.runtime.bind.split(":")
    before = len(shared.backend.seen)
    waiting = []
    for _ in range(200):
        connection = socket.create_connection((host, int(port)), timeout=5)
        connection.sendall(request(CHAT)[:-5])
        waiting.append(connection)
    begun = time.monotonic()
    assert shared.post(CHAT, {"model": "small"}).status_code == 200
    assert time.monotonic() - begun < 2
    assert len(shared.backend.seen) == before + 1, "an unfinished body must not reach a model"
    for connection in waiting:
        connection.close()


def test_query_strings_change_nothing_about_the_route(shared: Gateway) -> None:
    assert shared.post(f"{CHAT}?model=org/large", {"model": "small"}).json()["path"] == f"/small{CHAT}?model=org/large"
    assert shared.post("/sleep?/v1/chat/completions", {"model": "small"}).status_code == 404
