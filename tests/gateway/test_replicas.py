"""Straight to the replicas' own ports, with Ray Serve's HTTP server as the fallback."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import requests

from tests.gateway.backend import Backend
from tests.gateway.conftest import Gateway, Make
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
#: Not used by the other tests.
FIRST, LAST = 8705, 8710
Replica = Callable[[int, str], Backend]


@pytest.fixture
def replica() -> Iterator[Replica]:
    """Start replicas on ports of the range; all end with the test."""
    started: list[Backend] = []

    def start(port: int, slug: str) -> Backend:
        started.append(Backend(port, replica_of=slug).start())
        return started[-1]

    yield start
    for one in started:
        one.stop()


def ask(gateway: Gateway, model: str = "small", times: int = 1) -> None:
    for _ in range(times):
        assert gateway.post(CHAT, {"model": model}).status_code == 200


def up(gateway: Gateway, slug: str) -> set[int]:
    """Ports of the replicas that the gateway sends a model's requests to, as its metrics report them."""
    text = requests.get(f"http://{gateway.runtime.metrics_bind}/metrics", timeout=5).text
    status = rf'haproxy_server_status{{proxy="model\.{slug}",server="replica-(\d+)",state="UP"}} 1'
    return {int(port) for port in re.findall(status, text)}


def test_requests_go_to_the_replicas_of_their_own_model(make_gateway: Make, replica: Replica) -> None:
    small, large = replica(FIRST, "small"), replica(FIRST + 2, "org--large")
    gateway = make_gateway(replica_ports=(FIRST, LAST))
    ask(gateway, "small", 5)
    ask(gateway, "org/large", 3)
    assert (len(small.seen), len(large.seen), len(gateway.backend.seen)) == (5, 3, 0)
    assert small.last.path == f"/small{CHAT}"
    body = {"messages": ["A" * 400_000], "model": "small"}
    assert gateway.post(CHAT, body).status_code == 200
    assert len(small.seen) == 6, "large bodies also go straight to the replica"


def test_a_new_replica_is_found_and_shares_the_load(make_gateway: Make, replica: Replica) -> None:
    first = replica(FIRST, "small")
    gateway = make_gateway(replica_ports=(FIRST, LAST))
    second = replica(LAST, "small")

    def found() -> bool:
        ask(gateway, times=4)
        return len(second.seen) > 0

    wait_until(found, what="a request at the new replica")
    assert first.seen and not gateway.backend.seen


def test_without_a_replica_requests_wait_in_serve(make_gateway: Make, replica: Replica) -> None:
    gateway = make_gateway(replica_ports=(FIRST, LAST))
    ask(gateway, times=3)
    assert len(gateway.backend.seen) == 3
    one = replica(FIRST + 1, "small")
    wait_until(lambda: not ask(gateway) and one.seen, what="a request at the replica")


def test_no_request_is_lost_when_a_replica_dies(make_gateway: Make, replica: Replica) -> None:
    dying, other = replica(FIRST, "small"), replica(FIRST + 1, "small")
    gateway = make_gateway(replica_ports=(FIRST, LAST))
    ask(gateway, times=4)
    dying.stop()
    ask(gateway, times=20)
    assert len(other.seen) >= 20 - 1
    other.stop()
    ask(gateway, times=5)
    assert gateway.backend.seen, "the last replica is gone: Serve keeps requests until there is one again"
    dying.start()
    other.start()


def test_a_draining_replica_ends_its_streams_and_gets_no_new_requests(make_gateway: Make, replica: Replica) -> None:
    leaving = replica(FIRST, "small")
    leaving.events = 60
    gateway = make_gateway(replica_ports=(FIRST, LAST))
    stream = gateway.post(CHAT, {"model": "small", "stream": True}, stream=True)
    lines = stream.iter_lines()
    next(lines)
    leaving.draining = True
    staying = replica(FIRST + 1, "small")
    wait_until(lambda: not ask(gateway) and staying.seen, what="a request at the other replica")
    wait_until(lambda: up(gateway, "small") == {FIRST + 1}, what="the gateway has noticed")
    before = len(leaving.seen)
    ask(gateway, times=6)
    assert len(leaving.seen) == before
    assert [line for line in lines if line][-1] == b"data: [DONE]"


def test_readiness_follows_the_replicas(make_gateway: Make, replica: Replica) -> None:
    gateway = make_gateway(replica_ports=(FIRST, LAST))
    small = replica(FIRST, "small")
    wait_until(lambda: up(gateway, "small") == {FIRST}, what="the gateway has found the replica")
    assert {"id": "small", "ready": True} in gateway.get("/ready", key=None).json()["models"]
    assert gateway.get("/ready", key=None).status_code == 503, "org/large has no replica"
    replica(FIRST + 1, "org--large")
    wait_until(lambda: gateway.get("/ready", key=None).status_code == 200, what="/ready answers 200")
    small.draining = True
    wait_until(lambda: gateway.get("/ready", key=None).status_code == 503, what="/ready answers 503")


def test_a_reload_keeps_what_is_known_of_the_replicas(make_gateway: Make, replica: Replica) -> None:
    """A new process assumes that every server is up. Asked for a model on another's port, it would return a 404."""
    replica(FIRST, "org--large")
    small = replica(FIRST + 1, "small")
    gateway = make_gateway(replica_ports=(FIRST, LAST))
    known = {"small": {FIRST + 1}, "org--large": {FIRST}}
    wait_until(lambda: {slug: up(gateway, slug) for slug in known} == known, what="the gateway has found both")
    for _ in range(3):
        gateway.up()
        ask(gateway, times=5)
    assert len(small.seen) == 15 and not gateway.backend.seen
