"""The books close: what keys, idle models, cold starts and free machines cost is the pools' bill, to the cent."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.infra.planning.books import HOUR_US, Books, Holding, MachineTime, Use, close, in_cents

H = HOUR_US


def cents(books: Books) -> dict[tuple[str, str, str], int | None]:
    return {(line.kind, line.model, line.name): line.cents for line in books.lines}


def test_the_rule_by_hand() -> None:
    """A node of 8 USD an hour for four hours; a replica with half of its cards, ready after the first hour."""
    machine = MachineTime("n", "gpu", 0, 4 * H)
    half = Holding("r", "m", "n", 0.5, 0, H, 4 * H)
    uses = [Use("r", "alice", H, 3 * H), Use("r", "bob", 2 * H, 3 * H)]
    books = close([machine], [half], uses, {"gpu": 8.0})
    assert cents(books) == {
        ("free", "", ""): 1600,
        ("cold-start", "m", ""): 400,
        ("used", "m", "alice"): 400 + 200,
        ("used", "m", "bob"): 200,
        ("idle", "m", ""): 400,
    }
    assert books.cents == 3200 and books.pools[0].node_hours == 4


def test_a_replica_over_two_machines_pays_for_both() -> None:
    machines = [MachineTime(name, "gpu", 0, H) for name in "ab"]
    holdings = [Holding("r", "m", name, 1.0, 0, 0, H) for name in "ab"]
    books = close(machines, holdings, [Use("r", "alice", H // 2, H)], {"gpu": 10.0})
    assert cents(books) == {("idle", "m", ""): 1000, ("used", "m", "alice"): 1000}


def test_shares_above_a_machine_shrink_alike() -> None:
    holdings = [Holding(name, name, "n", 0.75, 0, 0, H) for name in "ab"]
    books = close([MachineTime("n", "cpu", 0, H)], holdings, [], {"cpu": 1.0})
    assert cents(books) == {("idle", "a", ""): 50, ("idle", "b", ""): 50}


def test_what_is_outside_the_machines_time_costs_nothing() -> None:
    """As where a clock jumped, or the books begin later."""
    machine = MachineTime("n", "gpu", 10 * H, 11 * H)
    holdings = [Holding("r", "m", "n", 1.0, 0, H, 20 * H), Holding("s", "m", "other", 1.0, 0, 0, 20 * H)]
    uses = [Use("r", "late", 12 * H, 13 * H), Use("r", "back", 11 * H, 10 * H), Use("none", "x", 10 * H, 11 * H)]
    books = close([machine], holdings, [*uses, Use("r", "alice", 0, 30 * H)], {"gpu": 1.0})
    assert {key: value for key, value in cents(books).items() if value} == {("used", "m", "alice"): 100}


def test_a_replica_that_never_was_ready_is_a_cold_start() -> None:
    holding = Holding("r", "m", "n", 1.0, 0, None, H)
    books = close([MachineTime("n", "gpu", 0, 2 * H)], [holding], [], {"gpu": 1.0})
    assert cents(books) == {("cold-start", "m", ""): 100, ("free", "", ""): 100}


def test_an_unknown_price_is_none_and_never_nothing() -> None:
    books = close([MachineTime("n", "gpu", 0, H), MachineTime("o", "cpu", 0, H)], [], [], {"cpu": 1.0})
    assert [(bill.pool, bill.cents) for bill in books.pools] == [("cpu", 100), ("gpu", None)]
    assert books.cents is None and cents(books) == {("free", "", ""): None}


times = st.integers(0, 30 * 24 * H)
machine_times = st.builds(MachineTime, st.sampled_from("abcd"), st.sampled_from(["gpu", "cpu"]), times, times)
shares = st.floats(0, 2, allow_nan=False)
names = st.sampled_from(["alice", "bob", "a|b", "–"])
held = st.builds(
    Holding, st.sampled_from("rst"), st.sampled_from("mn"), st.sampled_from("abcdx"), shares, times, times | st.none(), times
)  # fmt: skip
used = st.builds(Use, st.sampled_from("rstz"), names, times, times)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(machine_times, max_size=5, unique_by=lambda one: one.machine),
    st.lists(held, max_size=8),
    st.lists(used, max_size=30),
    st.floats(0, 200, allow_nan=False),
)
def test_keys_and_idle_are_the_bill_to_one_cent(
    machines: list[MachineTime], holdings: list[Holding], uses: list[Use], price: float
) -> None:
    books = close(machines, holdings, uses, {"gpu": price, "cpu": 0.37})
    lived = [one for one in machines if one.ended > one.began]
    for bill in books.pools:
        usd = Fraction(price if bill.pool == "gpu" else 0.37)
        exact = sum((one.ended - one.began) for one in lived if one.pool == bill.pool) * usd * 100 / H
        lines = [line for line in books.lines if line.pool == bill.pool]
        assert bill.cents is not None and abs(bill.cents - exact) <= Fraction(51, 100)
        assert sum(line.cents or 0 for line in lines) == bill.cents
        assert math.fsum(line.node_hours for line in lines) == pytest.approx(bill.node_hours, rel=1e-9, abs=1e-9)
        for line in lines:
            assert line.cents is not None and line.cents >= 0
            assert abs(line.cents - line.node_hours * float(usd) * 100) <= 1.001
    assert {bill.pool for bill in books.pools} == {one.pool for one in lived}


@given(st.lists(st.floats(0, 1e6), max_size=40))
def test_rounded_parts_are_the_whole(amounts: list[float]) -> None:
    whole = round(math.fsum(amounts))
    parts = in_cents(amounts, whole)
    assert sum(parts) == whole
    assert all(abs(part - amount) <= 1 and part >= 0 for part, amount in zip(parts, amounts, strict=True))


def test_many_requests_take_seconds() -> None:
    """Each moment is looked at once: 200,000 requests, a thousand of them open at a time."""
    uses = [Use("r", f"k{number % 10_000}", number, number + 1000) for number in range(200_000)]
    books = close([MachineTime("n", "gpu", 0, H)], [Holding("r", "m", "n", 1.0, 0, 0, H)], uses, {"gpu": 10.0})
    assert books.cents == 1000 == sum(line.cents or 0 for line in books.lines)
