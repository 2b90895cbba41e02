"""Bodies beyond the first process's buffer: images inlined as base64, `model` last, chunked, multipart, too large."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelfleet.infra.gateway.render import bodies_at_once
from tests.gateway.conftest import Gateway, Make

CHAT = "/v1/chat/completions"
MIB = 1 << 20


def body_of(size: int, *, model_first: bool = False, **more: object) -> bytes:
    """A chat request of about `size` bytes, in the order in which the `openai` client sends it."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * size}}
    messages = [{"role": "user", "content": [image]}]
    request = {"model": "small", "messages": messages} if model_first else {"messages": messages, "model": "small"}
    return json.dumps(request | more).encode()


def pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 60_000):
        yield body[start : start + 60_000]


@pytest.mark.parametrize("model_first", [True, False], ids=["model first", "model last"])
@pytest.mark.parametrize("size", [100_000, 250_000, 262_144, 300_000, MIB, 7 * MIB])
def test_a_body_of_any_size_arrives_whole_at_the_right_model(shared: Gateway, size: int, model_first: bool) -> None:
    body = body_of(size, model_first=model_first)
    for data in (body, pieces(body)):
        answer = shared.post(CHAT, data=data, headers={"content-type": "application/json"})
        assert answer.json() == {"path": f"/small{CHAT}", "bytes": len(body)}, answer.status_code
        assert shared.backend.last.body == body
    answer = shared.post("/small/v1/completions", data=pieces(body))
    assert answer.json() == {"path": "/small/v1/completions", "bytes": len(body)}


def test_a_large_request_is_logged_with_key_id_and_model_and_never_sends_the_key_on(shared: Gateway) -> None:
    answer = shared.post(
        CHAT, data=body_of(MIB), headers={"x-request-id": "large-1", "content-type": "application/json"}
    )
    assert answer.headers["x-request-id"] == "large-1" == shared.backend.last.headers["x-request-id"]
    assert not [name for name in answer.headers if "modelfleet" in name.lower()]
    entry = shared.logged("large-1")
    assert (entry["key"], entry["model"], entry["backend"]) == ("alice", "small", "bodies")
    assert "authorization" not in shared.backend.last.headers


def test_a_large_body_with_an_unknown_model_or_none_gets_the_same_answers(shared: Gateway) -> None:
    unknown = body_of(MIB).replace(b'"small"', b'"nosuch"')
    assert shared.post(CHAT, data=unknown).json()["error"]["message"].startswith("The model `nosuch` does not exist.")
    assert shared.post(CHAT, data=body_of(MIB).replace(b'"model"', b'"other"')).status_code == 400
    assert shared.post(CHAT, data=body_of(MIB)[:-1] + b"]").status_code in (200, 400)


def test_a_body_above_the_limit_is_413_before_it_is_read(shared: Gateway) -> None:
    before = len(shared.backend.seen)
    answer = shared.raw(
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-alice-0123456789\r\ncontent-length: {8 * MIB + 1}\r\n\r\n".encode()
    )
    assert b" 413 " in answer.splitlines()[0] and b"allowed are 8 MiB" in answer
    for path in (CHAT, "/small/v1/completions"):
        try:
            assert shared.post(path, data=pieces(body_of(9 * MIB))).status_code == 413
        except ConnectionError:
            pytest.fail("the connection was cut without an answer")
    assert len(shared.backend.seen) == before


def test_a_large_request_streams_its_answer(shared: Gateway) -> None:
    answer = shared.post(CHAT, data=body_of(MIB, stream=True), stream=True)
    assert [line for line in answer.iter_lines() if line][-1] == b"data: [DONE]"


def test_large_bodies_wait_for_a_slot_and_small_ones_do_not(make_gateway: Make) -> None:
    gateway = make_gateway(max_body_mib=32)
    slots = bodies_at_once(gateway.plan, gateway.runtime)
    assert slots == 4
    gateway.backend.hold_s = 0.5
    body = body_of(MIB)
    with ThreadPoolExecutor(12) as pool:
        large = [pool.submit(lambda: gateway.post(CHAT, data=body).status_code) for _ in range(12)]
        gateway.backend.hold_s = 0.5
        assert gateway.post(CHAT, {"model": "small"}).status_code == 200
        assert {one.result() for one in large} == {200}


@pytest.mark.slow
def test_memory_for_large_bodies_is_bounded_and_given_back(make_gateway: Make) -> None:
    gateway = make_gateway(max_body_mib=32)
    assert gateway.processes
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, resident_mib(gateway.processes.bodies))  # type: ignore[union-attr]

    watcher = threading.Thread(target=watch)
    watcher.start()
    body = body_of(30 * MIB)
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: gateway.post(CHAT, data=body).status_code, range(16)))
    done.set()
    watcher.join()
    assert set(codes) == {200}
    assert peak < 256 + 64, f"{peak} MiB for at most 4 bodies of 32 MiB in two buffers each"
    assert resident_mib(gateway.processes.gateway) < 60


def resident_mib(pid: int) -> int:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) >> 10
