"""One queue for all replicas of a model: it waits at the gateway, not behind another stream at a replica."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import requests

from modelfleet.infra.planning.plan import Route
from modelfleet.serving.scaling import waiting_at
from tests.gateway.backend import Backend
from tests.gateway.conftest import Gateway, Make
from tests.gateway.test_replicas import up
from tests.ports import free_port
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
#: Not used by the other tests.
FIRST, LAST = 8715, 8717


@pytest.fixture
def queue(make_gateway: Make) -> Iterator[tuple[Gateway, list[Backend], ThreadPoolExecutor]]:
    """A gateway of a model whose replicas have one place each and two may wait for each."""
    replicas = [Backend(port, replica_of="small") for port in (FIRST, FIRST + 1)]
    replicas[0].start()
    route = Route("small", "small", ("small",), places=1, queue=2)
    gateway = make_gateway(replica_ports=(FIRST, LAST), routes=(route,))
    wait_until(lambda: up(gateway, "small") == {FIRST}, what="the gateway has found the first replica")
    with ThreadPoolExecutor(8) as pool:
        yield gateway, replicas, pool
    for one in replicas:
        if one.server:
            one.stop()


def ask(gateway: Gateway, pool: ThreadPoolExecutor, count: int) -> list[Future[requests.Response]]:
    return [pool.submit(gateway.post, CHAT, {"model": "small"}) for _ in range(count)]


def waiting(gateway: Gateway) -> float:
    """As the scaling policy asks it."""
    host, _, port = gateway.runtime.metrics_bind.rpartition(":")
    return waiting_at([(host, int(port))], "small")


def test_what_waits_goes_to_the_replica_that_is_free_next(
    queue: tuple[Gateway, list[Backend], ThreadPoolExecutor],
) -> None:
    gateway, (slow, quick), pool = queue
    slow.hold_s = 6.0
    first = ask(gateway, pool, 1)[0]
    wait_until(lambda: slow.seen, what="the slow request")
    rest = ask(gateway, pool, 2)
    wait_until(lambda: waiting(gateway) == 2, what="two requests that wait at the gateway")
    assert len(slow.seen) == 1, "nothing waits behind the open request"
    quick.start()
    assert [one.result().status_code for one in rest] == [200, 200]
    assert not first.done(), "the next replica took what waited, while the first one still works"
    assert len(quick.seen) == 2 and first.result().status_code == 200
    assert waiting(gateway) == 0


def test_a_full_queue_refuses_and_says_when_to_come_again(
    queue: tuple[Gateway, list[Backend], ThreadPoolExecutor],
) -> None:
    gateway, (slow, _), pool = queue
    slow.hold_s = 1.0
    answers = [one.result() for one in ask(gateway, pool, 6)]
    assert Counter(one.status_code for one in answers) == {200: 3, 503: 3}, "one place, and two that wait"
    refused = next(one for one in answers if one.status_code == 503)
    assert int(refused.headers["retry-after"]) > 0 and "overloaded" in refused.json()["error"]["message"]
    assert all("backend" in gateway.logged(one.headers["x-request-id"]) for one in answers)


def test_two_gateways_share_a_replicas_places(make_gateway: Make) -> None:
    """Each alone has half of them, rounded up."""
    replica = Backend(FIRST, replica_of="small").start()
    replica.hold_s = 2.0
    route = Route("small", "small", ("small",), places=4, queue=8)
    gateways = [make_gateway(replica_ports=(FIRST, LAST), routes=(route,), side_by_side=2) for _ in range(2)]
    for gateway in gateways:
        wait_until(lambda gateway=gateway: up(gateway, "small") == {FIRST}, what="the gateway has found it")  # type: ignore[misc]
    with ThreadPoolExecutor(8) as pool:
        answers = [one for gateway in gateways for one in ask(gateway, pool, 4)]
        wait_until(lambda: len(replica.seen) == 4, what="four that have a place", every_s=0.02)
        assert [waiting(gateway) for gateway in gateways] == [2, 2]
        assert {one.result().status_code for one in answers} == {200}
    replica.stop()


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
