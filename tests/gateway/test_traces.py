"""One request is one trace: a client's goes on unchanged, and the gateway begins one where there is none."""

from __future__ import annotations

import re

import pytest

from tests.gateway.conftest import Gateway, Make
from tests.gateway.test_hostile_input import request

CHAT = "/v1/chat/completions"
BODY = {"model": "org/large", "messages": []}
GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
MADE = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-01")


@pytest.fixture(scope="module")
def traced(make_gateway: Make) -> Gateway:
    return make_gateway(traces=True)


@pytest.mark.parametrize("given", [GIVEN, GIVEN[:-2] + "01", "cc" + GIVEN[2:] + "-what-the-future-holds"])
def test_a_clients_trace_goes_on_unchanged_with_its_state(traced: Gateway, given: str) -> None:
    assert traced.post(CHAT, BODY, headers={"traceparent": given, "tracestate": "a=b"}).ok
    passed_on = traced.backend.last.headers
    assert (passed_on["traceparent"], passed_on["tracestate"]) == (given, "a=b")


def test_a_request_without_one_begins_its_own(traced: Gateway) -> None:
    seen = set()
    for _ in range(3):
        assert traced.post(CHAT, BODY).ok
        seen.add(traced.backend.last.headers["traceparent"])
    assert len(seen) == 3 and all(MADE.fullmatch(one) for one in seen), seen


@pytest.mark.parametrize(
    "broken",
    ["", "00-4bf9-00f067aa0ba902b7-01", f"00-{'0' * 32}-00f067aa0ba902b7-01", GIVEN.upper(), f"{GIVEN}, {GIVEN}"],
)
def test_a_broken_one_is_replaced_and_its_state_is_dropped(traced: Gateway, broken: str) -> None:
    assert traced.post(CHAT, BODY, headers={"traceparent": broken, "tracestate": "a=b"}).ok
    passed_on = traced.backend.last.headers
    assert MADE.fullmatch(passed_on["traceparent"]) and "tracestate" not in passed_on


def test_two_of_them_are_none(traced: Gateway) -> None:
    traced.raw(request(CHAT, headers=f"traceparent: {GIVEN}\r\n" * 2))
    assert MADE.fullmatch(traced.backend.last.headers["traceparent"])


def test_a_stack_without_traces_begins_none(shared: Gateway) -> None:
    assert shared.post(CHAT, BODY).ok
    assert "traceparent" not in shared.backend.last.headers
