"""Sizes of a pool's node groups, one per zone."""

from __future__ import annotations

from modelfleet.infra.planning.zone_sizes import GroupSize, zone_sizes

ZONES = ("a", "b", "c")


def test_the_minimum_is_spread_over_the_zones_and_each_may_hold_the_whole_pool() -> None:
    sizes = zone_sizes(ZONES, least=4, most=8)
    assert sizes == {"a": GroupSize(2, 2, 8), "b": GroupSize(1, 1, 8), "c": GroupSize(1, 1, 8)}


def test_a_new_group_without_a_minimum_starts_empty() -> None:
    assert set(zone_sizes(ZONES, least=0, most=8).values()) == {GroupSize(0, 0, 8)}


def test_a_live_size_within_the_limits_stays_the_autoscalers() -> None:
    sizes = zone_sizes(ZONES, least=3, most=8, live={"a": 1, "b": 8, "c": 5})
    assert [size.takes_over for size in sizes.values()] == [False, False, False]
    assert [size.desired for size in sizes.values()] == [1, 8, 5]


def test_a_live_size_outside_the_limits_moves_to_the_nearest_one() -> None:
    """EKS refuses a minimum above the desired size and a maximum below it."""
    sizes = zone_sizes(("a", "b"), least=4, most=6, live={"a": 0, "b": 7})
    assert sizes == {"a": GroupSize(2, 2, 6, takes_over=True), "b": GroupSize(2, 6, 6, takes_over=True)}


def test_a_zone_more_starts_at_its_share_of_the_minimum() -> None:
    sizes = zone_sizes(ZONES, least=3, most=8, live={"a": 2, "b": 1})
    assert sizes["c"] == GroupSize(1, 1, 8)
    assert not sizes["a"].takes_over, "a smaller minimum takes no node away"


def test_a_pool_that_no_zone_offers_has_no_group() -> None:
    assert zone_sizes((), least=1, most=2) == {}
