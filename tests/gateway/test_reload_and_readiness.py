"""Changed models without a dropped stream, readiness of models, and clients that leave."""

from __future__ import annotations

import http.client
import threading
from dataclasses import replace

import pytest
import requests

from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import Route
from modelfleet.serving.config.errors import SetupError
from tests.gateway.conftest import ALICE, PLAN, Gateway, Make
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
NEW = Route("brand-new", "brand-new", ("brand-new",))


def test_an_open_stream_outlives_a_change_of_models_and_no_request_fails(make_gateway: Make) -> None:
    gateway = make_gateway()
    gateway.backend.events = 60
    first = gateway.processes
    assert first
    client = http.client.HTTPConnection(gateway.runtime.bind, timeout=10)
    client.request("POST", CHAT, b'{"model":"small","stream":true}', {"authorization": f"Bearer {ALICE}"})
    lines = iter(client.getresponse())
    next(lines)
    codes: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            codes.append(gateway.post(CHAT, {"model": "small"}).status_code)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    gateway.change(routes=(*PLAN.routes, NEW))
    assert gateway.post(CHAT, {"model": "brand-new"}).status_code == 200
    gateway.change(routes=(PLAN.routes[1],))
    assert gateway.post(CHAT, {"model": "org/large"}).status_code == 404
    assert [card["id"] for card in gateway.get("/v1/models").json()["data"]] == ["small"]
    assert haproxy.is_running(first.gateway), "the first process still serves its stream"
    rest = [line.strip() for line in lines if line.strip()]
    client.close()
    done.set()
    for thread in asking:
        thread.join()
    assert len(rest) == 60 and rest[-1] == b"data: [DONE]"
    assert set(codes) == {200} and len(codes) > 10
    wait_until(lambda: not haproxy.is_running(first.gateway), what="the first process ends after its last stream")
    wait_until(lambda: not haproxy.is_running(first.bodies), what="its bodies' process ends too")


def test_a_large_stream_outlives_a_reload_too(make_gateway: Make) -> None:
    gateway = make_gateway()
    body = {"messages": ["A" * 400_000], "model": "small", "stream": True}
    stream = gateway.post(CHAT, body, stream=True)
    lines = stream.iter_lines()
    next(lines)
    gateway.change(routes=(*PLAN.routes, NEW))
    assert gateway.post(CHAT, {**body, "stream": False}).status_code == 200
    assert [line for line in lines if line][-1] == b"data: [DONE]"


def test_a_refused_configuration_leaves_the_running_gateway_alone(make_gateway: Make) -> None:
    gateway = make_gateway()
    running = gateway.processes
    with pytest.raises(SetupError, match="haproxy refuses"):
        gateway.change(timeout_s=-1)
    assert running and haproxy.is_running(running.gateway)
    assert gateway.post(CHAT, {"model": "small"}).status_code == 200


def test_a_port_in_use_is_told_with_haproxys_words(make_gateway: Make, shared: Gateway) -> None:
    with pytest.raises(SetupError, match=shared.runtime.bind):
        other = make_gateway()
        other.runtime = replace(other.runtime, bind=shared.runtime.bind)
        other.processes, old = None, other.processes
        other.old.append(old)  # type: ignore[arg-type]
        other.up()


def test_health_is_the_gateways_and_ready_is_every_models(make_gateway: Make) -> None:
    gateway = make_gateway()
    assert requests.get(f"{gateway.url}/health", timeout=5).json() == {"status": "ok"}
    wait_until(lambda: gateway.get("/ready", key=None).status_code == 200, what="/ready answers 200")
    gateway.backend.down.add("small")
    wait_until(lambda: gateway.get("/ready", key=None).status_code == 503, what="/ready answers 503")
    answer = gateway.get("/ready", key=None).json()
    assert answer == {"ready": False, "models": [{"id": "org/large", "ready": True}, {"id": "small", "ready": False}]}
    assert gateway.post(CHAT, {"model": "small"}).status_code == 200, (
        "Serve decides whether a request waits, not the gateway"
    )
    assert requests.get(f"{gateway.url}/health", timeout=5).status_code == 200
    gateway.backend.down.clear()
    wait_until(lambda: gateway.get("/ready", key=None).status_code == 200, what="/ready answers 200")


def test_a_gateway_that_has_just_started_is_not_ready_before_it_asked(make_gateway: Make) -> None:
    gateway = make_gateway(routes=(Route("gone", "gone", ("gone",)),), down=["gone"])
    codes = set()

    def asked_twice() -> bool:
        codes.add(gateway.get("/ready", key=None).status_code)
        return gateway.backend.checks >= 2

    wait_until(asked_twice, what="two health checks", every_s=0.02)
    assert codes | {gateway.get("/ready", key=None).status_code} == {503}


def test_readiness_does_not_wake_a_model_that_may_sleep(make_gateway: Make) -> None:
    gateway = make_gateway(routes=(Route("sleepy", "sleepy", ("sleepy",), scales_to_zero=True),), down=["sleepy"])
    wait_until(lambda: gateway.get("/ready", key=None).status_code == 200, what="/ready answers 200")


def test_a_backend_that_is_gone_is_503_in_json_with_retry_after(make_gateway: Make) -> None:
    gateway = make_gateway()
    gateway.backend.stop()
    try:
        answer = gateway.post(CHAT, {"model": "small"})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == 503
        assert int(answer.headers["retry-after"]) > 0 and answer.headers["x-request-id"]
    finally:
        gateway.backend.start()


#: Serve's status and text, our status, and a word of the message.
REFUSALS = {
    (503, "Request dropped due to backpressure"): (503, "overloaded"),
    (404, "Path '/small/v1/chat/completions' not found."): (503, "being deployed"),
    (500, "Internal Server Error"): (500, "failed"),
    (408, "Request x timed out after 5s."): (504, "in time"),
}


def test_what_serve_says_in_plain_text_comes_as_the_engines_error(make_gateway: Make) -> None:
    """An OpenAI client reads `error.message`, and retries if there is a Retry-After."""
    gateway = make_gateway()
    for refusal, (status, word) in REFUSALS.items():
        gateway.backend.refuses = refusal
        for body in ({"model": "small"}, {"messages": ["A" * 400_000], "model": "small"}):
            answer = gateway.post(CHAT, body)
            assert answer.status_code == status and answer.headers["content-type"] == "application/json"
            assert answer.json()["error"]["code"] == status and word in answer.json()["error"]["message"]
            assert ("retry-after" in answer.headers) == (status == 503) and answer.headers["x-request-id"]


def test_a_client_that_leaves_ends_its_request_at_the_backend(make_gateway: Make) -> None:
    gateway = make_gateway()
    gateway.backend.events = 200
    for body in ({"model": "small", "stream": True}, {"messages": ["A" * 400_000], "model": "small", "stream": True}):
        gateway.backend.aborted.clear()
        with requests.Session() as session:
            answer = session.post(
                gateway.url + CHAT, json=body, headers={"authorization": f"Bearer {ALICE}"}, stream=True, timeout=5
            )
            next(answer.iter_lines())
            answer.close()
        assert gateway.backend.aborted.wait(3), "the engine would go on generating for nobody"


def test_stop_ends_both_processes(make_gateway: Make) -> None:
    gateway = make_gateway()
    assert gateway.processes
    haproxy.stop(gateway.processes)
    for one in (gateway.processes.gateway, gateway.processes.bodies):  # type: ignore[union-attr]
        wait_until(lambda one=one: not haproxy.is_running(one), what="the end of the process")  # type: ignore[misc]
