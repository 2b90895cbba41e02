"""Bounds by the time of the week: lines of cron, the table that travels to Serve's controller, and the change of clocks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelfleet.infra.planning.schedule import as_argument, schedule_of
from modelfleet.infra.stack import StackSchedule
from modelfleet.serving.config.cron import DAY, begins_with_another, minutes_of_week
from modelfleet.serving.config.schema import AutoscalingConfig
from modelfleet.serving.config.serve_options import autoscaling_options
from modelfleet.serving.scaling import ScalingPolicy, Schedule, WeekTable
from tests.unit.planning.builders import model

BERLIN, NEW_YORK, TOKYO = "Europe/Berlin", "America/New_York", "Asia/Tokyo"


def at(zone: str, *moment: int, fold: int = 0) -> float:
    return datetime(*moment, tzinfo=ZoneInfo(zone), fold=fold).timestamp()  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("line", "minutes"),
    [
        ("0 8 * * mon", [480]),
        ("30 8,20 * * 1-2", [510, 1230, DAY + 510, DAY + 1230]),
        ("0 0 * * sat-sun", [5 * DAY, 6 * DAY]),
        ("0 0 * * 0", [6 * DAY]),
        ("0 0 * * 7", [6 * DAY]),
        ("*/30 23 * * FRI", [4 * DAY + 1380, 4 * DAY + 1410]),
        ("0 6-18/6 * * 3", [2 * DAY + 360, 2 * DAY + 720, 2 * DAY + 1080]),
        ("50/5 0 * * 1", [50, 55]),
    ],
)
def test_a_line_of_cron_is_the_minutes_of_a_week(line: str, minutes: list[int]) -> None:
    assert list(minutes_of_week(line)) == minutes


def test_every_day_has_as_many_minutes_as_the_week_has_days() -> None:
    assert len(minutes_of_week("0 12 * * *")) == 7
    assert minutes_of_week("* * * * *") == tuple(range(7 * DAY))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 8 * *", "4 fields"),
        ("@daily", "1 fields"),
        ("60 8 * * *", "60"),
        ("0 24 * * *", "24"),
        ("0 8 * * 8", "8"),
        ("0 8 1 * *", "every week"),
        ("0 8 * jan *", "every week"),
        ("0 8 * * fri-mon", "fri-mon"),
        ("0 8 * * mo", "mo"),
        ("*/0 8 * * *", "*/0"),
        ("0 8- * * *", "8-"),
        ("0/ 8 * * *", "0/"),
        ("-1 8 * * *", "-1"),
        ("0 ٨ * * *", "allowed are 0 to 23"),
    ],
)
def test_what_is_no_week_of_cron_is_refused(line: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("*", r"\*")):
        minutes_of_week(line)


@given(st.text("0123456789*/-, monfri", max_size=20))
def test_any_text_gives_minutes_or_one_sentence(line: str) -> None:
    try:
        found = minutes_of_week(line)
    except ValueError as error:
        assert "found" in str(error)
    else:
        assert found and all(0 <= minute < 7 * DAY for minute in found)


def test_two_entries_that_begin_together_are_named_with_the_minute() -> None:
    assert begins_with_another(["0 8 * * *", "0 9 * * *"]) is None
    assert begins_with_another(["0 8 * * *", "0 9 * * *", "0 8-9 * * wed"]) is not None
    assert "entries 1 and 2 both begin mon 08:00" in str(begins_with_another(["0 8 * * *", "0 8 * * mon"]))


def office(zone: str) -> WeekTable:
    """Two to eight in the daytime of weekdays, otherwise none to one."""
    rows = [(minute, 2, 8) for minute in minutes_of_week("0 8 * * mon-fri")]
    rows += [(minute, 0, 1) for minute in minutes_of_week("0 20 * * mon-fri")]
    return WeekTable(zone, tuple(sorted(rows)))


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, TOKYO])
def test_the_entry_that_began_last_counts_also_over_the_weekend_and_the_week_s_end(zone: str) -> None:
    table = office(zone)
    for day in (16, 23):
        start = at(zone, 2026, 11, day)
        assert table.at(start) == (0, 1), "Monday 00:00 goes on from Friday evening"
        assert table.at(at(zone, 2026, 11, day, 7, 59)) == (0, 1)
        assert table.at(at(zone, 2026, 11, day, 8)) == (2, 8)
        assert table.at(at(zone, 2026, 11, day, 19, 59)) == (2, 8)
        assert table.at(at(zone, 2026, 11, day + 5, 12)) == (0, 1), "Saturday"


@pytest.mark.parametrize(
    ("zone", "before", "after"),
    [
        (BERLIN, (2026, 3, 27), (2026, 3, 30)),
        (BERLIN, (2026, 10, 23), (2026, 10, 26)),
        (NEW_YORK, (2026, 3, 6), (2026, 3, 9)),
        (NEW_YORK, (2026, 10, 30), (2026, 11, 2)),
        (TOKYO, (2026, 3, 27), (2026, 3, 30)),
    ],
)
def test_eight_o_clock_stays_eight_o_clock_when_clocks_change(
    zone: str, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    table = office(zone)
    for day in (before, after):
        eight = at(zone, *day, 8)
        assert (table.at(eight - 1), table.at(eight)) == ((0, 1), (2, 8))
    hours = (at(zone, *after, 8) - at(zone, *before, 8)) / 3600
    assert (hours != 72) == (zone != TOKYO), "the clocks did change between the two"


#: (zone, the first second of the hour that is left out or comes twice, as UTC)
SPRINGS = [(BERLIN, datetime(2026, 3, 29, 1, tzinfo=UTC)), (NEW_YORK, datetime(2026, 3, 8, 7, tzinfo=UTC))]
AUTUMNS = [(BERLIN, datetime(2026, 10, 25, 0, tzinfo=UTC)), (NEW_YORK, datetime(2026, 11, 1, 5, tzinfo=UTC))]


@pytest.mark.parametrize(("zone", "change"), SPRINGS)
def test_what_begins_in_the_hour_that_spring_leaves_out_begins_at_its_end(zone: str, change: datetime) -> None:
    table = WeekTable(zone, ((0, 1, 1), (6 * DAY + 150, 5, 5)))  # Sunday 02:30, which is no time on that day
    assert table.at(change.timestamp() - 1) == (1, 1)
    assert table.at(change.timestamp()) == (5, 5)
    usual = change - timedelta(days=7)
    assert [table.at((usual + timedelta(minutes=add)).timestamp()) for add in (29, 30)] == [(1, 1), (5, 5)]


@pytest.mark.parametrize(("zone", "first"), AUTUMNS)
def test_what_begins_in_the_hour_that_autumn_has_twice_begins_once(zone: str, first: datetime) -> None:
    """It must not go back for half an hour: replicas would come and go."""
    hour = first.astimezone(ZoneInfo(zone)).hour
    table = WeekTable(zone, ((0, 1, 1), (6 * DAY + hour * 60 + 30, 5, 5), (6 * DAY + hour * 60 + 90, 7, 7)))
    seen = [table.at((first + timedelta(minutes=minute)).timestamp()) for minute in range(180)]
    assert seen[:30] == [(1, 1)] * 30, "the first time"
    assert seen[30:150] == [(5, 5)] * 120, "through the second time, until 30 minutes after it"
    assert seen[150:] == [(7, 7)] * 30


@given(st.integers(0, 366 * 24 * 60 - 1), st.sampled_from([BERLIN, NEW_YORK, TOKYO, "Australia/Lord_Howe"]))
def test_a_week_s_bounds_are_one_of_its_rows_at_every_minute_of_a_year(minute: int, zone: str) -> None:
    assert office(zone).at(at("UTC", 2026, 1, 1) + 60 * minute) in {(2, 8), (0, 1)}


NIGHTS = StackSchedule.model_validate(
    {
        "timeZone": BERLIN,
        "entries": [{"cron": "0 7 * * mon-fri"}, {"cron": "0 19 * * mon-fri", "minReplicas": 0, "maxReplicas": 3}],
    }
)
OFFICE = {
    "time_zone": BERLIN,
    "entries": [
        {"cron": "0 8 * * mon-fri", "min_replicas": 2},
        {"cron": "0 20 * * mon-fri", "min_replicas": 1, "max_replicas": 4},
    ],
}


def autoscaled(**scaling: Any) -> Any:
    return model(deployment={"autoscaling_config": {"min_replicas": 1, "max_replicas": 6, **scaling}}).config


def test_the_stack_caps_what_the_model_s_own_schedule_says() -> None:
    both = schedule_of(autoscaled(schedule=OFFICE), NIGHTS)
    assert both is not None and both.span == (0, 6)
    hours = {hour: both.at(at(BERLIN, 2026, 11, 17, hour)) for hour in (6, 7, 8, 18, 19, 20)}
    assert hours == {6: (0, 3), 7: (1, 4), 8: (2, 6), 18: (2, 6), 19: (0, 3), 20: (0, 3)}


def test_without_a_schedule_of_its_own_a_model_keeps_its_bounds_by_day() -> None:
    only = schedule_of(autoscaled(), NIGHTS)
    assert only is not None
    assert [only.at(at(BERLIN, 2026, 11, 17, hour)) for hour in (6, 12)] == [(0, 3), (1, 6)]
    assert schedule_of(autoscaled(), None) is None
    assert schedule_of(model(deployment={"autoscaling_config": None, "num_replicas": 2}).config, NIGHTS) is None


def test_a_cap_below_the_fewest_takes_the_fewest_down() -> None:
    assert Schedule(4, 8, None, WeekTable("UTC", ((0, None, 2),))).at(0.0) == (2, 2)


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ({"time_zone": "Europe/Berln", "entries": OFFICE["entries"]}, "Europe/Berlin"),
        ({"time_zone": "../etc/passwd", "entries": OFFICE["entries"]}, "no time zone"),
        ({"time_zone": BERLIN, "entries": []}, "at least 1"),
        ({"time_zone": BERLIN, "entries": [{"cron": "0 8 1 * *"}]}, "every week"),
        ({"time_zone": BERLIN, "entries": [{"cron": "0 8 * * *", "min_replicas": 7}]}, "entry 1 has min_replicas 7"),
        ({"time_zone": BERLIN, "entries": [{"cron": "0 8 * * *"}, {"cron": "0 8 * * 2"}]}, "both begin tue 08:00"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(schedule: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AutoscalingConfig.model_validate({"min_replicas": 1, "max_replicas": 6, "schedule": schedule})


def test_serve_s_own_policy_cannot_follow_a_schedule() -> None:
    with pytest.raises(ValidationError, match="ray_serve"):
        AutoscalingConfig.model_validate({"policy": "ray_serve", "schedule": OFFICE})


def context(now: float, replicas: int, running: float = 0.0) -> Any:
    series = {"replica": [SimpleNamespace(value=running)]}
    return SimpleNamespace(
        current_time=now,
        app_name="org--model",
        current_num_replicas=replicas,
        target_num_replicas=replicas,
        total_queued_requests=0.0,
        raw_metrics={"running_requests": series},
    )


def policy() -> ScalingPolicy:
    """As Serve's controller makes it: from the JSON of the kwargs."""
    schedule = schedule_of(autoscaled(schedule=OFFICE), NIGHTS)
    assert schedule is not None
    options = autoscaling_options(AutoscalingConfig(max_replicas=6), 10, schedule=as_argument(schedule))
    return ScalingPolicy(**json.loads(json.dumps(options["policy"]["policy_kwargs"])))


def test_a_model_that_sleeps_wakes_when_its_hour_begins() -> None:
    asleep, morning = policy(), at(BERLIN, 2026, 11, 17, 8)
    assert asleep(context(morning - 7200, 0))[0] == 0
    assert asleep(context(morning, 0))[0] == 2


def test_a_policy_that_starts_anew_knows_the_bounds_of_the_moment() -> None:
    """The head was restarted: nothing was kept, and nothing has to be."""
    assert policy()(context(at(BERLIN, 2026, 11, 17, 12), 0))[0] == 2
    assert policy()(context(at(BERLIN, 2026, 11, 17, 22), 0))[0] == 0


def test_load_moves_replicas_only_within_the_bounds_of_the_moment() -> None:
    evening = at(BERLIN, 2026, 11, 17, 19)
    crowded = policy()
    answers = [crowded(context(evening - 100 + second, 6, running=500.0))[0] for second in range(200)]
    assert set(answers[:100]) == {6} and set(answers[100:]) == {3}
    calm = policy()
    answers = [calm(context(evening - 8 * 3600 + second, 2))[0] for second in range(0, 2000, 5)]
    assert set(answers) == {2}, "without load it would be 1"


def test_without_time_zones_on_the_machine_the_policy_still_scales(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from modelfleet.serving import scaling

    def unknown(name: str) -> Any:
        raise ZoneInfoNotFoundError(name)

    monkeypatch.setattr(scaling, "ZoneInfo", unknown)
    scaling.logger.addHandler(caplog.handler)
    try:
        bare = policy()
    finally:
        scaling.logger.removeHandler(caplog.handler)
    assert "tzdata" in caplog.text
    assert bare(context(at(BERLIN, 2026, 11, 17, 12), 0))[0] == 0
