"""One queue for all replicas of a model: it waits at the gateway, not behind another stream at a replica."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import requests

from modelfleet.infra.planning.plan import Route
from modelfleet.serving.scaling import waiting_at
from tests.gateway.backend import Backend
from tests.gateway.conftest import ALICE, Gateway, Make
from tests.gateway.test_replicas import up
from tests.ports import free_port
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
#: Not used by the other tests.
FIRST, LAST = 8715, 8717
BODY: dict[str, Any] = {"model": "small"}


@pytest.fixture
def replicas() -> Iterator[list[Backend]]:
    """Two replicas, of which the first one runs; both end with the test."""
    made = [Backend(port, replica_of="small") for port in (FIRST, FIRST + 1)]
    made[0].start()
    yield made
    for one in made:
        if one.server:
            one.stop()


@pytest.fixture
def pool(replicas: list[Backend]) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool
        for one in replicas:
            one.answers.set()  # or a test that failed would wait for its requests


@pytest.fixture
def gateway(make_gateway: Make, replicas: list[Backend]) -> Gateway:
    """Its model's replicas have one place each, two may wait for each, and conversations come home."""
    route = Route("small", "small", ("small",), places=1, queue=2, hash_balance_factor=125)
    gateway = make_gateway(replica_ports=(FIRST, LAST), routes=(route,))
    wait_until(lambda: up(gateway, "small") == {FIRST}, what="the gateway has found the first replica")
    return gateway


def ask(
    gateway: Gateway, pool: ThreadPoolExecutor, count: int = 1, body: dict[str, Any] = BODY
) -> list[Future[requests.Response]]:
    return [pool.submit(gateway.post, CHAT, body) for _ in range(count)]


def waiting(gateway: Gateway) -> float:
    """As the scaling policy asks it."""
    host, _, port = gateway.runtime.metrics_bind.rpartition(":")
    return waiting_at([(host, int(port))], "small")


def waited_at_a_replica(gateway: Gateway) -> int:
    """The most requests that ever waited for one replica alone."""
    text = requests.get(f"http://{gateway.runtime.metrics_bind}/metrics", timeout=5).text
    found = re.findall(r'haproxy_server_max_queue\{proxy="model\.small",server="replica-\d+"\} (\d+)', text)
    assert found
    return max(map(int, found))


def turn(number: int) -> dict[str, Any]:
    said = [{"role": role, "content": f"{role} {number}"} for role in ("user", "assistant", "user")]
    return {**BODY, "messages": said}


def both(gateway: Gateway, replicas: list[Backend], body: dict[str, Any]) -> tuple[Backend, Backend]:
    """Starts the second replica too; the home of a conversation, and the other one."""
    replicas[1].start()
    wait_until(lambda: up(gateway, "small") == {FIRST, FIRST + 1}, what="the gateway has found both")
    gateway.post(CHAT, body)
    (home,) = (one for one in replicas if one.seen)
    return home, next(one for one in replicas if one is not home)


def test_what_waits_goes_to_the_replica_that_is_free_next(
    gateway: Gateway, replicas: list[Backend], pool: ThreadPoolExecutor
) -> None:
    slow, quick = replicas
    slow.answers.clear()
    (first,) = ask(gateway, pool)
    wait_until(lambda: slow.seen, what="the slow request")
    rest = ask(gateway, pool, 2)
    wait_until(lambda: waiting(gateway) == 2, what="two requests that wait at the gateway")
    assert len(slow.seen) == 1, "nothing waits behind the open request"
    quick.start()
    assert [one.result().status_code for one in rest] == [200, 200]
    assert len(quick.seen) == 2 and waiting(gateway) == 0
    assert not first.done(), "the next replica took what waited, while the first one still works"
    slow.answers.set()
    assert first.result().status_code == 200


def test_a_conversation_does_not_wait_for_a_full_home(
    gateway: Gateway, replicas: list[Backend], pool: ThreadPoolExecutor
) -> None:
    """HAProxy lets what `use-server` sends to a full server wait for that one alone, behind its streams."""
    home, other = both(gateway, replicas, turn(0))
    home.answers.clear()
    (long,) = ask(gateway, pool, body=turn(0))
    wait_until(lambda: len(home.seen) == 2, what="a long answer at home")
    assert gateway.post(CHAT, turn(0)).status_code == 200 and len(other.seen) == 1, "the other one has a place"
    other.answers.clear()
    (elsewhere,) = ask(gateway, pool)
    wait_until(lambda: len(other.seen) == 2, what="a long answer at the other one")
    (late,) = ask(gateway, pool, body=turn(0))
    wait_until(lambda: waiting(gateway) == 1, what="a turn that waits")
    other.answers.set()
    assert late.result().status_code == elsewhere.result().status_code == 200
    assert not long.done() and waited_at_a_replica(gateway) == 0
    home.answers.set()
    assert long.result().status_code == 200


def test_a_place_whose_next_request_is_on_its_way_from_the_queue_is_not_free(
    gateway: Gateway, replicas: list[Backend], pool: ThreadPoolExecutor
) -> None:
    """An answer that ends and a turn that comes meet in one round of HAProxy's loop, with a request in the queue."""
    home, other = both(gateway, replicas, turn(0))
    assert gateway.processes
    for one in replicas:
        one.answers.clear()
    (ended,) = ask(gateway, pool, body=turn(0))
    wait_until(lambda: len(home.seen) == 2, what="a turn at home")
    ask(gateway, pool)
    wait_until(lambda: len(other.seen) == 1, what="both are full")
    ask(gateway, pool)
    wait_until(lambda: waiting(gateway) == 1, what="a request that waits")
    body = json.dumps(turn(0)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\ncontent-length: {len(body)}\r\n\r\n"
    host, _, port = gateway.runtime.bind.rpartition(":")
    with socket.create_connection((host, int(port))) as late:
        os.kill(gateway.processes.gateway, signal.SIGSTOP)
        try:
            written = home.answered
            home.answers.set()
            wait_until(lambda: home.answered > written, what="the end of an answer at home")
            home.answers.clear()
            late.sendall(head.encode() + body)
        finally:
            os.kill(gateway.processes.gateway, signal.SIGCONT)
        assert ended.result().status_code == 200
        wait_until(
            lambda: len(home.seen) == 3 and waiting(gateway) == 1, what="the next one at home, and the turn waits"
        )
        other.answers.set()
        assert late.recv(64).startswith(b"HTTP/1.1 200")
    assert waited_at_a_replica(gateway) == 0


def test_a_full_queue_refuses_and_says_when_to_come_again(
    gateway: Gateway, replicas: list[Backend], pool: ThreadPoolExecutor
) -> None:
    replicas[0].answers.clear()
    asked = ask(gateway, pool, 6)
    wait_until(lambda: sum(one.done() for one in asked) == 3, what="three that are refused")
    replicas[0].answers.set()
    answers = [one.result() for one in asked]
    assert Counter(one.status_code for one in answers) == {200: 3, 503: 3}, "one place, and two that wait"
    refused = next(one for one in answers if one.status_code == 503)
    assert int(refused.headers["retry-after"]) > 0 and "overloaded" in refused.json()["error"]["message"]
    assert all("backend" in gateway.logged(one.headers["x-request-id"]) for one in answers)


def test_streams_of_a_replica_that_leaves_fill_no_queue(
    make_gateway: Make, replicas: list[Backend], pool: ThreadPoolExecutor
) -> None:
    leaving, staying = replicas
    route = Route("small", "small", ("small",), places=2, queue=0)
    gateway = make_gateway(replica_ports=(FIRST, LAST), routes=(route,))
    wait_until(lambda: up(gateway, "small") == {FIRST}, what="the gateway has found the first replica")
    leaving.answers.clear()
    streams = ask(gateway, pool, 2)
    wait_until(lambda: len(leaving.seen) == 2, what="two long answers")
    staying.start()
    leaving.draining = True
    wait_until(lambda: up(gateway, "small") == {FIRST + 1}, what="one replica leaves, and another has come")
    assert gateway.post(CHAT, BODY).status_code == 200
    assert len(staying.seen) == 1 and not any(one.done() for one in streams)


def test_two_gateways_share_a_replicas_places(
    make_gateway: Make, replicas: list[Backend], pool: ThreadPoolExecutor
) -> None:
    """Each alone has half of them, rounded up."""
    replica = replicas[0]
    route = Route("small", "small", ("small",), places=4, queue=8)
    gateways = [make_gateway(replica_ports=(FIRST, LAST), routes=(route,), side_by_side=2) for _ in range(2)]
    for gateway in gateways:
        wait_until(lambda gateway=gateway: up(gateway, "small") == {FIRST}, what="the gateway has found it")  # type: ignore[misc]
    replica.answers.clear()
    asked = [one for gateway in gateways for one in ask(gateway, pool, 4)]
    wait_until(lambda: [waiting(gateway) for gateway in gateways] == [2, 2], what="two that wait at each")
    wait_until(lambda: len(replica.seen) == 4, what="four that have a place")
    replica.answers.set()
    assert {one.result().status_code for one in asked} == {200}


def test_a_gateway_that_does_not_answer_is_an_error_and_no_empty_queue() -> None:
    port = free_port()
    with pytest.raises(OSError):
        waiting_at([("127.0.0.1", port)], "small")


def test_looking_at_a_gateway_wakes_no_model(make_gateway: Make) -> None:
    """Whatever is not a request of a model stays here, or asks Serve only whether it lives."""
    sleepy = Route("small", "small", ("small",), scales_to_zero=True, places=1, queue=2)
    gateway = make_gateway(replica_ports=(FIRST, LAST), routes=(sleepy,))
    wait_until(lambda: gateway.get("/ready").status_code == 200, what="/ready answers 200")
    for path in ("/health", "/v1/models", "/v1/models/small"):
        assert gateway.get(path).status_code == 200
    for path in ("/metrics", "/metrics/keys", "/queues/small"):
        assert requests.get(f"http://{gateway.runtime.metrics_bind}{path}", timeout=10).status_code == 200
    assert gateway.backend.seen == []
    assert gateway.post(CHAT, {"model": "small"}).status_code == 200
    assert len(gateway.backend.seen) == 1, "a request does reach Serve"
