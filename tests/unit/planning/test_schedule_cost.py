"""What schedules make of a plan: bounds, nodes, arguments of the application, and a week's price hour by hour."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console

from modelfleet.cli.plan_diff import changes
from modelfleet.cli.plan_html import plan_page, week_bars
from modelfleet.cli.plan_table import plan_table
from modelfleet.infra.planning import Plan
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import replica_bounds
from modelfleet.serving.scaling import Schedule
from tests.unit.planning.builders import model, planned, pool, stack

OFFICE = {
    "time_zone": "Europe/Berlin",
    "entries": [
        {"cron": "0 8 * * mon-fri", "min_replicas": 2, "max_replicas": 4},
        {"cron": "0 18 * * mon-fri", "min_replicas": 0, "max_replicas": 1},
    ],
}
NIGHTS = {
    "timeZone": "Europe/Berlin",
    "entries": [{"cron": "0 8 * * mon-fri"}, {"cron": "0 18 * * mon-fri", "minReplicas": 0, "maxReplicas": 1}],
}
L4 = pool(instanceTypes=["g6.2xlarge"])


def scheduled(own: Any = OFFICE, replicas: tuple[int, int] = (1, 4), **keys: Any) -> Plan:
    scaling = {"min_replicas": replicas[0], "max_replicas": replicas[1], **({"schedule": own} if own else {})}
    return planned([model(deployment={"autoscaling_config": scaling})], stack(L4, **keys))


def test_nodes_and_serve_allow_the_whole_week_and_the_table_travels_beside_the_model_file() -> None:
    made = scheduled()
    (only,) = made.models
    assert (only.replicas.min, only.replicas.max) == (0, 4)
    assert (made.pools[0].min_nodes, made.pools[0].needed_nodes) == (0, 4)
    arguments = only.application.args
    assert "schedule" not in arguments["model"]["deployment_config"]["autoscaling_config"]
    assert replica_bounds(ModelConfig.model_validate(arguments["model"])) == (0, 0, 4)
    assert Schedule.of(arguments["schedule"]) == only.schedule
    assert made.gateway.routes[0].scales_to_zero, "readiness must not wake what sleeps at night"


def test_an_initial_number_of_replicas_stays_within_the_week_s_bounds() -> None:
    scaling = {"min_replicas": 3, "initial_replicas": 5, "max_replicas": 8}
    capped = {"timeZone": "UTC", "entries": [{"cron": "0 0 * * 1", "minReplicas": 1, "maxReplicas": 2}]}
    made = planned([model(deployment={"autoscaling_config": scaling})], stack(L4, schedule=capped))
    assert (made.models[0].replicas.min, made.models[0].replicas.initial, made.models[0].replicas.max) == (1, 2, 2)


def test_a_week_costs_what_its_hours_cost() -> None:
    made = scheduled()
    price, fixed = made.pools[0].usd_per_node_hour, sum(part.usd_per_hour or 0 for part in made.fixed)
    assert price and made.week is not None and made.week.zone == "Europe/Berlin"
    day, night = made.week.hours[8], made.week.hours[18]
    assert (day.min_usd_per_hour, day.max_usd_per_hour) == pytest.approx((2 * price + fixed, 4 * price + fixed))
    assert (night.min_usd_per_hour, night.max_usd_per_hour) == pytest.approx((fixed, price + fixed))
    assert [made.week.hours[hour] for hour in (7, 17, 5 * 24 + 12)] == [night, day, night]
    assert made.week.scheduled.max_usd_per_hour == pytest.approx(168 * fixed + (50 * 4 + 118 * 1) * price)
    assert made.week.scheduled.min_usd_per_hour == pytest.approx(168 * fixed + 50 * 2 * price)
    assert made.week.always.min_usd_per_hour == pytest.approx(168 * (fixed + price))
    assert made.week.always.max_usd_per_hour == pytest.approx(168 * (fixed + 4 * price))


def test_an_entry_within_an_hour_costs_its_part_of_it() -> None:
    half = {
        "time_zone": "UTC",
        "entries": [{"cron": "30 8 * * *", "max_replicas": 4}, {"cron": "0 9 * * *", "max_replicas": 2}],
    }
    made = scheduled(half)
    price, fixed = made.pools[0].usd_per_node_hour or 0, sum(part.usd_per_hour or 0 for part in made.fixed)
    assert made.week is not None
    assert made.week.hours[8].max_usd_per_hour == pytest.approx(fixed + 3 * price)


def test_the_stack_s_schedule_reaches_models_without_one_and_is_priced_by_its_own_clock() -> None:
    made = scheduled(None, (1, 4), schedule={**NIGHTS, "timeZone": "America/New_York"})
    assert made.week is not None and made.week.zone == "America/New_York"
    assert made.week.hours[18].min_usd_per_hour == made.week.hours[5 * 24].min_usd_per_hour
    assert made.models[0].replicas.min == 0


def test_models_of_different_zones_are_priced_at_the_same_moment() -> None:
    tokyo = {**OFFICE, "time_zone": "Asia/Tokyo"}
    made = planned(
        [
            model("org/a", deployment={"autoscaling_config": {"max_replicas": 4, "schedule": OFFICE}}),
            model("org/b", deployment={"autoscaling_config": {"max_replicas": 4, "schedule": tokyo}}),
        ],
        stack(pool(instanceTypes=["g6.2xlarge"], maxNodes=20)),
    )
    price, fixed = made.pools[0].usd_per_node_hour or 0, sum(part.usd_per_hour or 0 for part in made.fixed)
    assert made.week is not None
    nodes = [round(((hour.max_usd_per_hour or 0) - fixed) / price) for hour in made.week.hours[:24]]
    # In January Tokyo's 08:00 to 18:00 is 00:00 to 10:00 in Berlin.
    assert nodes == [5] * 8 + [8] * 2 + [5] * 8 + [2] * 6


def test_without_a_schedule_nothing_is_said_and_nothing_changes() -> None:
    made = scheduled(None)
    assert made.week is None and made.models[0].schedule is None
    assert "schedule" not in made.models[0].application.args
    assert "Hours of a week" not in plan_page(made)


def test_a_fixed_model_is_told_that_the_stack_s_schedule_does_not_reach_it() -> None:
    made = planned(
        [model(deployment={"autoscaling_config": None, "num_replicas": 2})],
        stack({"name": "l4", "accelerator": "L4", "maxNodes": 8}, target="local", region=None, schedule=NIGHTS),
    )
    assert any("a fixed number of replicas" in one.message for one in made.notices)
    assert not any("cluster" in one.message for one in made.notices)


def test_in_a_cluster_it_acts_too() -> None:
    made = scheduled(OFFICE, (1, 4), schedule=NIGHTS)
    assert made.models[0].application.args["schedule"]["stack"]["zone"] == "Europe/Berlin"
    assert not [one for one in made.notices if "schedule" in one.message]


def test_plan_diff_and_page_show_it() -> None:
    made = scheduled()
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(plan_table(made))
    text = console.export_text()
    assert "mon-fri 08:00: 2–4; mon-fri 18:00: 0–1 (Europe/Berlin)" in text
    assert "USD with the schedules" in text
    page = plan_page(made)
    assert page.count('class="high"') == 168 and "fri 17:00" in page
    (change,) = [one for one in changes(scheduled(None), made) if one.what == "model"]
    assert "schedule unset → mon-fri 08:00: 2–4" in change.detail


def test_the_picture_is_in_proportion() -> None:
    made = scheduled()
    assert made.week is not None
    bars = week_bars(made.week)
    day, night = bars[8], bars[3]
    assert len(bars) == 168 and day.high == 100 and 0 < night.low < night.high < day.low < 100
    assert night.high / day.high == pytest.approx(
        (made.week.hours[3].max_usd_per_hour or 0) / (made.week.hours[8].max_usd_per_hour or 1)
    )
    assert ZoneInfo(made.week.zone)
