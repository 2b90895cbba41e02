"""Budgets and limits that settle: real HAProxy before a real meter, whose engine alone is played."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from modelfleet.infra.planning.plan import AllowancePlan, BudgetPlan, KeyPlan
from modelfleet.infra.planning.plan import Route as Routed
from modelfleet.serving import usage
from modelfleet.serving.settling import MILLION, Settling
from modelfleet.serving.usage import CURRENT, Counts, UsageMeter
from tests.gateway.conftest import ALICE, BOB, Gateway, Make
from tests.ports import free_port
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
PROMPT = 5
ROUTES = (Routed("small", "small", ("small",), answer_tokens=100, usd_per_million_tokens=2.0),)


@dataclass
class Shared:
    """What `RayStore` does, for replicas of one process."""

    texts: dict[str, str] = field(default_factory=dict)

    def put(self, replica: str, text: str, *, new: bool = False) -> None:
        if not new or replica not in self.texts:
            self.texts[replica] = text

    def all(self) -> Mapping[str, str]:
        return dict(self.texts)

    def remove(self, replica: str) -> None:
        del self.texts[replica]


@dataclass
class Answer:
    """A sequence of an engine."""

    completion: int = 0
    ended: bool = False
    aborted: bool = False

    @property
    def counts(self) -> Counts:
        return Counts("small", None, "one", PROMPT, 0, self.completion)


async def chat(request: Request) -> Response:
    """Answers with the body's `really` tokens, at once or in a stream of a token each 20 ms."""
    body = await request.json()
    found = CURRENT.get()
    assert found is not None
    answer = Answer()
    found.sequences.append(answer)
    really = body.get("really", 1)
    if not body.get("stream"):
        answer.completion, answer.ended = really, True
        return JSONResponse({})

    async def events() -> Any:
        for _ in range(really):
            await asyncio.sleep(0.02)
            answer.completion += 1
            yield f"data: {answer.completion}\n\n"
        answer.ended = True

    return StreamingResponse(events(), media_type="text/event-stream")


@dataclass
class Replica:
    """A meter with its settling, on a port of its own."""

    port: int
    meter: UsageMeter
    server: uvicorn.Server


@pytest.fixture
def store() -> Shared:
    return Shared()


@pytest.fixture
def replicas(store: Shared, tmp_path: Path) -> Iterator[Any]:
    """Starts replicas that share `store`; all end with the test."""
    usage_period, usage.PERIOD_S = usage.PERIOD_S, 0.1
    running: list[Replica] = []
    threads: list[threading.Thread] = []

    def start(name: str = "one", port: int | None = None) -> Replica:
        app = Starlette(routes=[Mount("/small", Starlette(routes=[Route(CHAT, chat, methods=["POST"])]))])
        meter = UsageMeter(app, tmp_path / name, replica=name, settling=Settling(name, store))
        at = port or free_port()
        server = uvicorn.Server(uvicorn.Config(meter, host="127.0.0.1", port=at, log_level="error", lifespan="off"))

        async def run() -> None:
            beside = [asyncio.create_task(one) for one in (meter.run(), meter.tell())]
            await server.serve()
            for task in beside:
                task.cancel()

        threads.append(threading.Thread(target=lambda: asyncio.run(run()), daemon=True))
        threads[-1].start()
        wait_until(lambda: server.started, what="the replica listens")
        running.append(Replica(at, meter, server))
        return running[-1]

    yield start
    for one in running:
        one.server.should_exit = True
    for thread in threads:
        thread.join(10)
    usage.PERIOD_S = usage_period


def before(make_gateway: Make, replica: Replica, **changes: Any) -> Gateway:
    """A gateway whose only backend is the replica."""
    gateway = make_gateway(routes=ROUTES, **changes)
    gateway.backend.stop()
    gateway.backend.port = replica.port
    gateway.up()
    gateway.backend.start = lambda: gateway.backend  # type: ignore[method-assign]
    gateway.backend.stop = lambda: None  # type: ignore[method-assign]
    return gateway


def ask(gateway: Gateway, really: int, key: str = ALICE, **body: Any) -> requests.Response:
    headers = body.pop("headers", {})
    whole = {"model": "small", "max_tokens": 50, "really": really, **body}
    return gateway.post(CHAT, whole, key=key, headers=headers, stream=bool(body.get("stream")))


def refused(gateway: Gateway, key: str = ALICE) -> requests.Response:
    """The first 429; what is asked until then is one prompt at a time."""

    def found() -> list[requests.Response]:
        answer = ask(gateway, 0, key=key)
        return [answer] if answer.status_code == 429 else []

    return wait_until(found, what="the budget is used", seconds=10)[0]


def day_budget(tokens: int) -> BudgetPlan:
    return BudgetPlan(tokens, "tokens", "day")


def test_a_used_budget_is_429_until_the_next_day_begins(make_gateway: Make, replicas: Any) -> None:
    gateway = before(make_gateway, replicas(), who=(KeyPlan("alice", budget=day_budget(1000)), KeyPlan("bob")))
    assert ask(gateway, 990).status_code == 200
    time.sleep(1)
    assert ask(gateway, 5).status_code == 200, "995 tokens of 1000"
    answer = refused(gateway)
    error, now = answer.json()["error"], datetime.now(UTC)
    assert error["type"] == error["code"] == "insufficient_quota"
    assert error["message"].startswith("This API key has used its budget of 1,000 tokens for this day; ")
    assert error["message"].endswith("T00:00:00Z.")
    left = 86400 - (now.hour * 3600 + now.minute * 60 + now.second)
    assert abs(int(answer.headers["retry-after"]) - left) <= 2
    assert ask(gateway, 5, key=BOB).status_code == 200
    assert gateway.get("/v1/models").status_code == 200, "only what costs is refused"


def test_a_team_shares_its_budget_in_usd_over_all_replicas(make_gateway: Make, replicas: Any, store: Shared) -> None:
    """Half a million output tokens at 2 USD per million are 1 USD; another replica has counted the rest."""
    month = f"{datetime.now(UTC):%Y-%m}"
    store.put("other", json.dumps({month: {"team:web": [10, 0.5 * MILLION], "key:alice": [10, 0.5 * MILLION]}}))
    budget = BudgetPlan(round(1.25 * MILLION), "usd", "month")
    both = (KeyPlan("alice", team="web"), KeyPlan("bob", team="web"))
    gateway = before(make_gateway, replicas(), who=both, teams=(AllowancePlan("web", budget=budget),))
    assert ask(gateway, 250_000).status_code == 200
    time.sleep(1)
    assert ask(gateway, 125_000, key=BOB).status_code == 200, "1.00 USD of 1.25"
    refused(gateway, BOB)
    answer = refused(gateway)
    assert answer.json()["error"]["message"].startswith(
        "This API key's team has used its budget of 1.25 USD for this month; the next one begins at "
    )
    first = datetime.now(UTC).timestamp() + int(answer.headers["retry-after"])
    assert datetime.fromtimestamp(first + 1, UTC).day == 1


def test_a_stream_beyond_the_budget_ends_and_the_next_is_refused_meanwhile(make_gateway: Make, replicas: Any) -> None:
    """What is open is not cut, and its tokens count as they come."""
    gateway = before(make_gateway, replicas(), who=(KeyPlan("alice", budget=day_budget(40)),))
    stream = ask(gateway, 150, stream=True)  # takes 3 s
    events = 0
    began = time.monotonic()
    refused_after = None
    for line in stream.iter_lines():
        events += line.startswith(b"data:")
        if events == 90 and refused_after is None:
            refused_after = time.monotonic() - began
            assert ask(gateway, 0).status_code == 429
    assert events == 150 and refused_after is not None


def test_after_a_restart_the_gateway_hears_what_was_used_within_two_rounds(make_gateway: Make, replicas: Any) -> None:
    """The bound: what is asked for within two rounds of a replica (0.1 s here) after a key's first request."""
    gateway = before(make_gateway, replicas(), who=(KeyPlan("alice", budget=day_budget(100)),))
    ask(gateway, 200)
    refused(gateway)
    gateway.down()
    gateway.processes = None
    gateway.old.clear()
    gateway.up()
    assert ask(gateway, 1).status_code == 200, "it knows nobody yet"
    time.sleep(1)
    assert ask(gateway, 1).status_code == 429


def test_a_gateway_that_ended_is_forgotten_when_another_process_answers_in_its_place(
    make_gateway: Make, replicas: Any
) -> None:
    replica = replicas()
    gateway = before(make_gateway, replica, who=(KeyPlan("alice", budget=day_budget(1000)),))
    ask(gateway, 1)
    gateway.up()
    ask(gateway, 1)
    known = replica.meter._settling._gateways
    wait_until(lambda: len(known) == 1, what="the first is forgotten", seconds=5)


def test_what_is_used_at_another_gateway_and_replica_counts_here_within_three_rounds(
    make_gateway: Make, replicas: Any
) -> None:
    """The bound that docs/keys.md states: a round to count, one to read what others wrote, one to tell."""
    who = (KeyPlan("alice", budget=day_budget(1000)),)
    here, there = (before(make_gateway, replicas(name), who=who) for name in ("here", "there"))
    assert ask(here, 1).status_code == 200
    assert ask(there, 2000).status_code == 200
    began = time.monotonic()
    refused(here)
    assert time.monotonic() - began < 3 * usage.PERIOD_S + 1, "a second for a machine that is busy"


def test_a_new_replica_knows_what_an_ended_one_has_counted(make_gateway: Make, replicas: Any) -> None:
    first = replicas("first")
    gateway = before(make_gateway, first, who=(KeyPlan("alice", budget=day_budget(100)),))
    ask(gateway, 60)
    time.sleep(0.6)
    first.server.should_exit = True
    wait_until(lambda: not first.server.servers or not first.server.started or _closed(first.port), what="it ends")
    replicas("second", first.port)
    ask(gateway, 60)
    refused(gateway)


def _closed(port: int) -> bool:
    try:
        requests.get(f"http://127.0.0.1:{port}/", timeout=1)
    except requests.ConnectionError:
        return True
    return False


def test_tokens_per_minute_settle_with_the_truth(make_gateway: Make, replicas: Any) -> None:
    """Each is charged 100 at entry and takes 6: without the truth, the third would be refused for a minute."""
    gateway = before(make_gateway, replicas(), who=(KeyPlan("alice", tokens_per_minute=200),))
    for number in range(8):
        stream = ask(gateway, 1, max_tokens=100, stream=bool(number % 2))
        assert stream.status_code == 200, number
        stream.content  # noqa: B018 - reads the stream to its end
        time.sleep(0.5)
    assert ask(gateway, 200, max_tokens=1).status_code == 200
    time.sleep(0.6)
    assert ask(gateway, 1, max_tokens=1).status_code == 429, "it took more than it was charged"


def test_until_the_truth_is_told_the_estimate_stands(make_gateway: Make, replicas: Any) -> None:
    gateway = before(make_gateway, replicas(), who=(KeyPlan("alice", tokens_per_minute=200),))
    many = [ask(gateway, 60, max_tokens=100, stream=True) for _ in range(4)]
    assert [one.status_code for one in many] == [200, 200, 429, 429]


def test_nobody_without_the_secret_tells_the_gateway_anything(make_gateway: Make, replicas: Any) -> None:
    gateway = before(make_gateway, replicas(), who=(KeyPlan("alice", tokens_per_minute=200),))
    at = f"http://{gateway.runtime.metrics_bind}/settle"
    for said in ({}, {"x-modelfleet-secret": ""}, {"x-modelfleet-secret": "0" * 32}):
        answer = requests.post(
            at, headers={**said, "x-modelfleet-key": "alice", "x-modelfleet-less": "9999"}, timeout=5
        )
        assert answer.status_code == 403
    assert ask(gateway, 1, max_tokens=300).status_code == 200
    assert ask(gateway, 1, headers={"x-modelfleet-charge": "999999"}).status_code == 429


def test_a_client_says_neither_charge_nor_price_nor_where_to_settle(make_gateway: Make) -> None:
    gateway = make_gateway(routes=ROUTES, who=(KeyPlan("alice", budget=BudgetPlan(MILLION, "usd", "day")),))
    forged = dict.fromkeys(
        ("x-modelfleet-settle", "x-modelfleet-charge", "x-modelfleet-price", "x-modelfleet-asked"), "9"
    )
    ask(gateway, 1, headers=forged)
    seen = gateway.backend.last.headers
    address, secret, own, team = seen["x-modelfleet-settle"].split(" ")
    assert (address, own, team) == (gateway.runtime.metrics_bind, "day-usd", "-") and len(secret) == 32
    assert seen["x-modelfleet-price"] == "2.000000"
    assert "x-modelfleet-charge" not in seen and "x-modelfleet-asked" not in seen


def test_in_a_pod_the_gateway_names_the_pods_own_address(make_gateway: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_IP", "10.1.2.3")
    gateway = make_gateway(routes=ROUTES, who=(KeyPlan("alice", budget=day_budget(100)),))
    gateway.runtime = replace(gateway.runtime, told_at="%[env(POD_IP)]:8405")
    gateway.up()
    ask(gateway, 1)
    assert gateway.backend.last.headers["x-modelfleet-settle"].startswith("10.1.2.3:8405 ")


def test_a_large_bodys_charge_is_whole_when_it_is_settled(make_gateway: Make) -> None:
    """The second process reads `max_tokens` behind the first buffer, and says so to the replica."""
    gateway = make_gateway(routes=ROUTES, who=(KeyPlan("alice", tokens_per_minute=10_000_000),))
    body = {"model": "small", "messages": [{"role": "user", "content": "x" * 400_000}], "max_tokens": 900_000}
    gateway.post(CHAT, body)
    charge = int(gateway.backend.last.headers["x-modelfleet-charge"])
    assert 900_000 + 32_768 <= charge <= 900_000 + 100_100
    assert "x-modelfleet-asked" not in gateway.backend.last.headers


def test_ten_thousand_keys_with_budgets_start_in_seconds_and_cost_a_request_nothing(make_gateway: Make) -> None:
    """Maps are trees: a hash and two names are looked up among 10,000 as among two."""
    names = [f"key-{number}" for number in range(10_000)]
    secrets = {name: f"sk-number-{name:>24}".replace(" ", "0") for name in names}
    who = tuple(KeyPlan(name, 5000, 10_000_000, 8, budget=day_budget(10**9)) for name in names)
    began = time.monotonic()
    gateway = make_gateway(keys=secrets, routes=ROUTES, who=who, requests_per_minute=5000)
    started = time.monotonic() - began
    took = []
    for name in (names[0], names[5000], names[-1]) * 10:
        before = time.monotonic()
        assert ask(gateway, 1, key=secrets[name]).status_code == 200
        took.append(time.monotonic() - before)
    assert gateway.backend.last.headers["x-modelfleet-key"] == names[-1]
    assert started < 8 and sorted(took)[len(took) // 2] < 0.05, (started, took)
