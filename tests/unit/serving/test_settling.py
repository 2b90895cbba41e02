"""What replicas tell gateways of used budgets: sums over replicas, periods, clocks, and what a new Ray does not know."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from modelfleet.serving import settling
from modelfleet.serving.settling import LESS, MILLION, MORE, Asker, Gateway, Settle, Settling, period_ends, periods
from modelfleet.serving.usage import last_records

NOON = datetime(2026, 12, 31, 12, tzinfo=UTC).timestamp()
ALICE, DAY, MONTH = Asker("alice", "web"), "day-tokens", "month-tokens"
GATEWAY = Gateway("127.0.0.1:1", "secret")


@dataclass
class Shared:
    """What `RayStore` does, here."""

    texts: dict[str, str] = field(default_factory=dict)
    fails: bool = False

    def put(self, replica: str, text: str, *, new: bool = False) -> None:
        if not new or replica not in self.texts:
            self.texts[replica] = text

    def all(self) -> Mapping[str, str]:
        if self.fails:
            raise ConnectionError("no head")
        return dict(self.texts)

    def remove(self, replica: str) -> None:
        del self.texts[replica]


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = NOON

    def __call__(self) -> float:
        return self.now


def settle(*budgets: str | None, charge: int | None = None, price: float = 0.0, gateway: Gateway = GATEWAY) -> Settle:
    own, team = (*budgets, None, None)[:2]
    return Settle(gateway, (own, team), charge, price)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What gateways would hear."""
    heard: list[dict[str, str]] = []

    def send(messages: Any) -> Any:
        sent = list(messages)
        heard.extend(message.headers for message in sent)
        return sent, set(), set()

    monkeypatch.setattr(settling, "_send", send)
    return heard


def round_of(one: Settling) -> None:
    """What a replica does once a second; two of them, as the second has what the first one read."""
    for _ in range(2):
        one._next_look = one._next_write = 0.0
        one.told(one.exchange(one.messages(), one.own_text))


def used(heard: dict[str, str], name: str = "key") -> int:
    return int(heard[f"x-modelfleet-{name}-millions"]) * MILLION + int(heard[f"x-modelfleet-{name}-rest"])


@pytest.mark.parametrize(
    ("moment", "day_ends", "month_ends"),
    [
        ("2026-12-31T23:59:59", "2027-01-01", "2027-01-01"),
        ("2028-02-28T00:00:00", "2028-02-29", "2028-03-01"),
        ("2026-03-29T01:30:00", "2026-03-30", "2026-04-01"),
    ],
)
def test_days_and_months_are_those_of_the_calendar_in_utc(moment: str, day_ends: str, month_ends: str) -> None:
    now = datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()
    assert periods(now) == {"day": moment[:10], "month": moment[:7]}
    for period, ends in (("day", day_ends), ("month", month_ends)):
        assert datetime.fromtimestamp(period_ends(period, now), UTC).isoformat() == f"{ends}T00:00:00+00:00"


def test_all_replicas_add_up_whatever_the_order(told: list[dict[str, str]]) -> None:
    store, clock, chance = Shared(), Clock(), random.Random(7)
    replicas = [Settling(name, store, clock=clock) for name in "abc"]
    for one in replicas:
        one.heard(ALICE, settle(DAY, MONTH))
    whole = 0
    for _ in range(60):
        one, tokens = chance.choice(replicas), chance.randrange(100_000)
        one.count(ALICE, tokens // 3, tokens - tokens // 3, None)
        whole += tokens
        round_of(chance.choice(replicas))
    for one in replicas:
        round_of(one)
    for one in replicas:
        told.clear()
        one.heard(ALICE, settle(DAY, MONTH))
        one._gateways[GATEWAY].askers[ALICE].told = None
        round_of(one)
        assert used(told[-1]) == used(told[-1], "team") == whole
    assert whole > MILLION, "so that both parts of the number count"


def test_nothing_is_told_twice_and_a_new_process_of_the_gateway_hears_all(told: list[dict[str, str]]) -> None:
    one = Settling("a", Shared(), clock=Clock())
    one.heard(ALICE, settle(DAY))
    one.count(ALICE, 1, 2, None)
    round_of(one)
    one.heard(ALICE, settle(DAY))
    round_of(one)
    assert [used(heard) for heard in told] == [3]
    one.heard(ALICE, settle(DAY, gateway=Gateway(GATEWAY.address, "another")))
    round_of(one)
    assert [used(heard) for heard in told] == [3, 3] and told[1]["x-modelfleet-secret"] == "another"


def test_a_day_begins_anew_a_month_goes_on_and_a_clock_that_jumps_back_counts_in_its_own_day(
    told: list[dict[str, str]],
) -> None:
    clock, store = Clock(NOON - 86400), Shared()
    one = Settling("a", store, clock=clock)
    one.heard(ALICE, settle(DAY, MONTH))
    one.count(ALICE, 5, 5, None)
    round_of(one)
    clock.now = NOON
    one.count(ALICE, 1, 1, None)
    round_of(one)
    assert (used(told[-1]), used(told[-1], "team")) == (2, 12)
    clock.now = NOON - 86400
    one.count(ALICE, 1, 1, None)
    round_of(one)
    assert used(told[-1], "team") == 14 and int(told[-1]["x-modelfleet-key-ends"]) == NOON - 43200
    clock.now = NOON + 86400
    one.count(ALICE, 3, 3, None)
    round_of(one)
    assert (used(told[-1]), used(told[-1], "team")) == (6, 6)
    assert set(json.loads(one.own_text)) == {"2027-01-01", "2027-01"}, "what is over takes no room"


def test_texts_of_earlier_months_go_and_those_of_ended_replicas_stay(told: list[dict[str, str]]) -> None:
    """A clock that is a month ahead takes nobody's sums away."""
    texts = {"old": "2026-09", "last": "2026-11", "ended": "2026-12"}
    store = Shared({name: json.dumps({month: {"key:alice": [7, 0]}}) for name, month in texts.items()})
    one = Settling("a", store, clock=Clock())
    one.heard(ALICE, settle(MONTH))
    round_of(one)
    assert set(store.texts) == {"last", "ended"} and used(told[-1]) == 7


def test_what_a_new_ray_does_not_know_comes_from_the_records(told: list[dict[str, str]], tmp_path: Path) -> None:
    folder = tmp_path / "org--model" / "date=2026-12-31" / "hour=09"
    folder.mkdir(parents=True)
    line = {"version": 1, "replica": "before", "number": 1, "key": "alice", "team": None, "prompt_tokens": 4,
            "completion_tokens": 5, "written": "2026-12-31T09:00:00.000000Z"}  # fmt: skip
    open_line = {**line, "completion_tokens": 1}
    late = {**line, "number": 2, "written": "2026-12-30T09:00:00.000000Z"}
    nobody = {**line, "number": 3, "key": None}
    alive = {**line, "replica": "alive", "completion_tokens": 100}
    text = "\n".join(json.dumps(one) for one in (open_line, line, late, nobody, alive)) + "\n" + json.dumps(line)[:-9]
    (folder / "before.jsonl").write_text(text)
    november = tmp_path / "org--model" / "date=2026-11-30" / "hour=09"
    november.mkdir(parents=True)
    (november / "x.jsonl").write_text(json.dumps({**line, "number": 9}) + "\n")
    store = Shared({"alive": '{"2026-12":{"key:alice":[200,0]},"2026-12-31":{"key:alice":[200,0]}}'})
    one = Settling("a", store, records=lambda since: last_records(tmp_path, since), clock=Clock())
    one.heard(ALICE, settle(MONTH))
    round_of(one)
    assert used(told[-1]) == 200 + 9 + 9, "both days; what runs has its own sums"
    one.heard(ALICE, settle(DAY))
    round_of(one)
    assert used(told[-1]) == 200 + 9


def test_sums_go_to_the_store_where_somebody_has_a_budget_and_stay_there(told: list[dict[str, str]]) -> None:
    """Limits per minute settle without it."""
    store, clock = Shared(), Clock()
    one = Settling("a", store, clock=clock)
    one.heard(ALICE, settle(charge=100))
    one.count(ALICE, 3, 4, None)
    one.end(ALICE, settle(charge=100), 7, 0.0)
    round_of(one)
    assert told and not store.texts
    one.heard(ALICE, settle(DAY))
    round_of(one)
    assert used(told[-1]) == 7 and "7" in store.texts["a"], "what was counted before the budget counts"
    one.heard(ALICE, settle(charge=100))
    one.count(ALICE, 1, 1, None)
    round_of(one)
    assert "9" in store.texts["a"], "another replica may still be asked for the budget"


def test_a_store_that_fails_leaves_this_replicas_own_sums(
    told: list[dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    one = Settling("a", Shared(fails=True), clock=Clock())
    one.heard(ALICE, settle(DAY))
    one.count(ALICE, 3, 4, None)
    round_of(one)
    assert used(told[-1]) == 7 and "cannot be shared" in caplog.text


@pytest.mark.parametrize(
    ("charge", "tokens", "seconds", "more", "less"),
    [(100, 30, 0, 0, 70), (100, 30, 30, 0, 35), (100, 30, 61, 0, 0), (100, 130, 59, 30, 0), (100, 30, -5, 0, 70)],
)
def test_a_charge_is_given_back_by_what_is_left_of_it(
    told: list[dict[str, str]], charge: int, tokens: int, seconds: float, more: int, less: int
) -> None:
    one, said = Settling("a", Shared(), clock=Clock()), settle(charge=charge)
    one.heard(ALICE, said)
    one.end(ALICE, said, tokens, seconds)
    round_of(one)
    assert [(int(heard[MORE]), int(heard[LESS])) for heard in told] == ([(more, less)] if more or less else [])


@pytest.mark.parametrize(
    "text", ["", "x", "127.0.0.1:1 s day-tokens", "127.0.0.1:1 s day-tokens - -", "127.0.0.1:1  s - -"]
)
def test_a_request_without_a_gateways_words_settles_nothing(text: str) -> None:
    assert Settle.of({settling.SETTLE: text}) is None


def test_odd_words_are_no_budget_no_charge_and_no_price() -> None:
    said = {settling.SETTLE: "h:1 s year-tokens month-usd", settling.CHARGE: "-5", settling.PRICE: "nan?"}
    assert Settle.of(said) == Settle(Gateway("h:1", "s"), (None, "month-usd"), None, 0.0)


def test_a_gateway_that_is_gone_is_forgotten_after_some_rounds(caplog: pytest.LogCaptureFixture) -> None:
    """Really asked: nobody listens there."""
    one = Settling("a", Shared(), clock=Clock())
    one.heard(ALICE, settle(DAY))
    one.count(ALICE, 3, 4, None)
    for _ in range(settling.FAILURES):
        assert one._gateways
        one.told(one.exchange(one.messages(), one.own_text))
    assert not one._gateways and "does not hear" in caplog.text


def test_a_round_for_ten_thousand_keys_holds_the_event_loop_for_no_time_that_streams_notice() -> None:
    """Only `messages` and `own_text` run there; the best of five, as the machine may be busy."""
    one = Settling("a", Shared(), clock=Clock())
    for number in range(10_000):
        one.count(Asker(f"key-{number}", "web"), 3, 4, settle(DAY, MONTH))
    one.told((one.messages(), set(), set()))
    took = []
    for _ in range(5):
        began = time.thread_time()
        assert not one.messages()
        assert one.own_text
        took.append(time.thread_time() - began)
    assert min(took) < 0.1, took


def test_a_key_that_was_quiet_is_looked_at_no_more_until_it_asks_again(
    told: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Settling("a", Shared(), clock=Clock())
    one.count(ALICE, 3, 4, settle(DAY))
    round_of(one)
    later = time.monotonic() + settling.QUIET_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not one.messages() and not one._gateways[GATEWAY].askers
    one.heard(ALICE, settle(DAY))
    round_of(one)
    assert [used(heard) for heard in told] == [7, 7]


def test_many_keys_are_written_and_read_the_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store = Shared({"other": json.dumps({"2026-12": {f"key:{one}": [1, 0] for one in range(20_000)}})})
    one, asked = Settling("a", store, clock=Clock()), 0
    read = store.all

    def counted() -> Mapping[str, str]:
        nonlocal asked
        asked += 1
        return read()

    monkeypatch.setattr(store, "all", counted)
    one.heard(ALICE, settle(DAY))
    for now in range(1000, 1010):
        one.exchange([], "x" * 590_000 + str(now))
    assert asked == 4, "0.4 MB a look, so one each 3 s"
    assert store.texts["a"].endswith("1009"), "0.6 MB each 3 s: at 1000, 1003, 1006 and 1009"
