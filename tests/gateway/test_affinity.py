"""A conversation goes on where its KV blocks are, within a load bound; every other request goes as without it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from modelfleet.infra.planning.plan import Route
from tests.gateway.backend import Backend
from tests.gateway.conftest import PLAN, Gateway, Make
from tests.gateway.test_replicas import up
from tests.waiting import wait_until
from tools.bench.affinity import FACTOR, LEASTCONN, replay
from tools.bench.conversations import Shape, trace

CHAT = "/v1/chat/completions"
#: Not used by the other tests.
FIRST, LAST = 8720, 8726
ROUTES = (
    *(route for route in PLAN.routes if route.slug != "small"),
    Route("small", "small", ("small", "small-lora"), hash_balance_factor=FACTOR),
)


@pytest.fixture(scope="module")
def replicas() -> Iterator[dict[int, Backend]]:
    """Five replicas of `small`; those that a test takes out are `draining`."""
    started = {port: Backend(port, replica_of="small").start() for port in range(FIRST, FIRST + 5)}
    yield started
    for one in started.values():
        one.stop()


@pytest.fixture(scope="module")
def gateway(make_gateway: Make, replicas: dict[int, Backend]) -> Gateway:
    made = make_gateway(replica_ports=(FIRST, LAST), routes=ROUTES)
    wait_until(lambda: up(made, "small") == set(replicas), what="the gateway has found the replicas")
    return made


Ask = Callable[..., int]


@pytest.fixture
def ask(gateway: Gateway, replicas: dict[int, Backend]) -> Ask:
    """Sends one request and says which replica got it."""

    def send(body: dict[str, object], path: str = CHAT, **headers: str) -> int:
        before = {port: len(one.seen) for port, one in replicas.items()}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = gateway.post(path, {**body, "model": body.get("model", "small")}, headers=named)
        assert answer.status_code == 200, answer.text
        (port,) = [port for port, one in replicas.items() if len(one.seen) > before[port]]
        return port

    return send


def turn(text: str, turns: int = 2, system: str = "You are kind.") -> dict[str, object]:
    """The body of a conversation's n-th turn."""
    said: list[dict[str, str]] = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    for n in range(1, turns):
        said += [{"role": "assistant", "content": f"answer {n}"}, {"role": "user", "content": f"more {n}"}]
    return {"messages": said}


def homes(ask: Ask, count: int) -> list[int]:
    return [ask(turn(f"question {n}")) for n in range(count)]


def test_every_turn_goes_to_the_same_replica_and_conversations_to_all(ask: Ask, replicas: dict[int, Backend]) -> None:
    first = homes(ask, 25)
    assert set(first) == set(replicas)
    again = [ask(turn(f"question {n}", turns=5)) for n in reversed(range(25))]
    assert again == first[::-1], "whatever was asked in between"


def test_a_session_a_cache_key_an_adapter_and_a_salt_are_part_of_the_key(ask: Ask) -> None:
    def places(**parts: object) -> list[int]:
        return [ask({**turn(f"question {n}"), **parts}) for n in range(12)]

    plain = places()
    assert len({ask(turn(f"other {n}"), x_session_id="one") for n in range(6)}) == 1
    assert len({ask({**turn(f"other {n}"), "prompt_cache_key": "one"}) for n in range(6)}) == 1
    assert plain == places()
    assert plain != places(model="small-lora") and plain != places(cache_salt="mine")


@pytest.mark.parametrize("key", ["messages", "input"])
def test_a_conversation_is_known_in_every_form(ask: Ask, key: str) -> None:
    path, system = ("/v1/responses", "instructions") if key == "input" else ("/v1/messages", "system")
    said = turn("question")["messages"]
    assert isinstance(said, list)
    places = {ask({system: f"tenant {n % 2}", key: said[1:]}, path) for n in range(6)}
    assert len(places) <= 2
    assert {ask({system: "tenant 0", key: said[1:], "stream": False}, f"/small{path}") for _ in range(3)} <= places


def test_a_body_for_the_second_process_goes_to_the_same_replica(ask: Ask) -> None:
    """Its model comes behind 400 KB, so the first process does not know it; or before, and only the rest is missing."""
    image = {"role": "user", "content": "A" * 400_000}
    for n in range(4):
        said = turn(f"question {n}")["messages"]
        assert isinstance(said, list)
        home = ask(turn(f"question {n}"))
        assert ask({"messages": [*said, image]}) == home
        assert ask({"model": "small", "messages": [*said, image]}) == home


@pytest.mark.parametrize("body", [turn("question", turns=1), {"messages": []}, {"messages": None}, {"prompt": "a"}])
def test_what_has_no_answer_before_it_goes_to_the_replica_with_the_fewest(ask: Ask, body: dict[str, object]) -> None:
    assert len({ask(body, x_session_id="one") for _ in range(10)}) == 5


def test_a_replica_with_its_share_of_the_open_requests_passes_a_turn_on_to_the_same_next_one(
    ask: Ask, gateway: Gateway, replicas: dict[int, Backend]
) -> None:
    body = {**turn("a long answer"), "model": "small"}
    home = ask(body)

    def three_at_a_time() -> list[int]:
        places = []
        streams = []
        for _ in range(3):
            before = {port: len(one.seen) for port, one in replicas.items()}
            streams.append(gateway.post(CHAT, {**body, "stream": True}, stream=True))
            places += [port for port, one in replicas.items() if len(one.seen) > before[port]]
        for stream in streams:
            assert stream.content.endswith(b"[DONE]\n\n")
        return places

    first = three_at_a_time()
    assert first[0] == home and len(set(first)) == 3
    assert three_at_a_time() == first and ask(body) == home


def test_a_replica_that_comes_or_goes_moves_its_own_share(
    ask: Ask, gateway: Gateway, replicas: dict[int, Backend]
) -> None:
    count = 30
    five = homes(ask, count)
    leaving = FIRST + 2
    replicas[leaving].draining = True
    wait_until(lambda: leaving not in up(gateway, "small"), what="the gateway has noticed")
    four = homes(ask, count)
    assert all(now == before for now, before in zip(four, five, strict=True) if before != leaving)
    moved = {now for now, before in zip(four, five, strict=True) if before == leaving}
    assert len(moved) > 1 and leaving not in moved, "they go to several others"
    replicas[leaving].draining = False
    wait_until(lambda: leaving in up(gateway, "small"), what="the gateway has noticed")
    assert homes(ask, count) == five
    assert five.count(leaving) <= count / 5 + 3 * (count * 0.2 * 0.8) ** 0.5


def test_the_trace_reaches_nine_tenths_of_one_replicas_hit_rate_on_four() -> None:
    """Seeded conversations, light replicas that model a prefix cache; `tools.bench.affinity` has the whole table."""
    shape = replace(Shape(), conversations=40, over_s=2.0, systems=4, turns=(3, 5), think_s=(0.02, 0.1))
    made = trace(shape, seed=3)
    one, most, home = (
        asyncio.run(replay("short", made, replicas, factor))
        for replicas, factor in ((1, LEASTCONN), (4, LEASTCONN), (4, FACTOR))
    )
    assert not (one.failed or most.failed or home.failed)
    assert home.hit_rate >= 0.9 * one.hit_rate
    assert home.hit_rate > most.hit_rate + 0.02, "and leastconn does not"
    assert home.load <= 1.25
