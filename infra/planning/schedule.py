"""Replicas by the time of the week: what model files and the stack say, as tables for Serve's controller.

`serving/scaling.py` reads them where replicas run. Nobody writes anything when the time comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from modelfleet.infra.stack import LoadedStack, StackSchedule
from modelfleet.serving.config.cron import DAY, DAYS, minutes_of_week
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.scaling import Schedule, WeekTable


def schedule_of(model: ModelConfig, stack: StackSchedule | None) -> Schedule | None:
    """A model's bounds by time; None where they are always the same. A fixed `num_replicas` has no schedule."""
    scaling = model.deployment_config.autoscaling_config
    if scaling is None or scaling.policy == "ray_serve" or (scaling.schedule is None and stack is None):
        return None
    fewest, most = scaling.min_replicas, scaling.max_replicas
    own = None
    if scaling.schedule is not None:
        rows = [
            (
                minute,
                fewest if one.min_replicas is None else one.min_replicas,
                most if one.max_replicas is None else one.max_replicas,
            )
            for one in scaling.schedule.entries
            for minute in minutes_of_week(one.cron)
        ]
        own = WeekTable(scaling.schedule.time_zone, tuple(sorted(rows)))
    return Schedule(fewest, most, own, _table(stack))


def _table(stack: StackSchedule | None) -> WeekTable | None:
    if stack is None:
        return None
    rows = [
        (minute, one.min_replicas, one.max_replicas) for one in stack.entries for minute in minutes_of_week(one.cron)
    ]
    return WeekTable(stack.time_zone, tuple(sorted(rows, key=lambda row: row[0])))


def with_span(model: ModelConfig, schedule: Schedule | None) -> ModelConfig:
    """The model with the bounds of its whole week, which Serve and the nodes have to allow, and without a schedule."""
    deployment = model.deployment_config
    scaling = deployment.autoscaling_config
    if schedule is None or scaling is None:
        return model
    fewest, most = schedule.span
    changed: dict[str, Any] = {"min_replicas": fewest, "max_replicas": most, "schedule": None}
    if scaling.initial_replicas is not None:
        changed["initial_replicas"] = min(max(scaling.initial_replicas, fewest), most)
    updated = deployment.model_copy(update={"autoscaling_config": scaling.model_copy(update=changed)})
    return model.model_copy(update={"deployment_config": updated})


def as_argument(schedule: Schedule) -> dict[str, Any]:
    """The schedule as JSON, for `Schedule.of`."""
    given = {key: value for key, value in asdict(schedule).items() if value is not None}
    return {
        key: {"zone": value["zone"], "rows": [list(row) for row in value["rows"]]} if isinstance(value, dict) else value
        for key, value in given.items()
    }


def schedule_findings(stack: LoadedStack, models: Sequence[LoadedModel]) -> Iterator[Finding]:
    """Notices of models that the stack's schedule does not reach."""
    if stack.config.schedule is None:
        return
    for model in models:
        scaling = model.config.deployment_config.autoscaling_config
        if scaling is None or scaling.policy == "ray_serve":
            why = "a fixed number of replicas" if scaling is None else "policy ray_serve"
            message = f"has {why}, which the stack's schedule leaves as it is; for one, give it another"
            yield model.document.finding(("deployment_config",), message, Severity.NOTICE)


def table_words(table: WeekTable) -> str:
    """`mon-fri 08:00: 2–8; mon-sun 20:00: 0–8 (Europe/Berlin)`; `own` for a bound that is left as it is."""
    days: dict[tuple[int, int | None, int | None], list[int]] = {}
    for minute, fewest, most in table.rows:
        days.setdefault((minute % DAY, fewest, most), []).append(minute // DAY)
    parts = [
        f"{_day_words(found)} {minute // 60:02}:{minute % 60:02}: {_bounds_words(fewest, most)}"
        for (minute, fewest, most), found in days.items()
    ]
    return f"{'; '.join(parts)} ({table.zone})"


def _bounds_words(fewest: int | None, most: int | None) -> str:
    low, high = ("own" if one is None else str(one) for one in (fewest, most))
    return low if low == high else f"{low}–{high}"


def _day_words(days: Sequence[int]) -> str:
    """`mon-fri`, or `mon,wed`."""
    if len(days) > 2 and days[-1] - days[0] == len(days) - 1:
        return f"{DAYS[days[0]]}-{DAYS[days[-1]]}"
    return ",".join(DAYS[day] for day in days)
