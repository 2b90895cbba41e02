"""What a week costs under the schedules of models and stack, hour by hour: by the functions that decide at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

from modelfleet.infra.planning.candidates import PoolChoice
from modelfleet.infra.planning.cost import fixed_cost_range, pool_cost, total
from modelfleet.infra.planning.demand import nodes_for
from modelfleet.infra.planning.plan import CostRange, FixedCost, PoolPlan, WeekPlan
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.scaling import Schedule

HOURS = 7 * 24
#: Minutes between two looks at a week's bounds.
STEP = 5
#: A week without a change of clocks anywhere. In summer, hours of models in other zones may be others.
MONDAY = (2026, 1, 5)
Limits = tuple[int, int]


def week_plan(
    stack: LoadedStack,
    choices: Sequence[PoolChoice],
    pools: Sequence[PoolPlan],
    schedules: Mapping[str, Schedule | None],
    fixed: Sequence[FixedCost],
) -> WeekPlan | None:
    """What a week costs hour by hour, with the schedules and without; None where there are none, or no prices."""
    active = {name: one for name, one in schedules.items() if one is not None}
    if not active or not stack.config.target.priced:
        return None
    zone = zone_of(stack, active)
    known: dict[tuple[tuple[str, Limits], ...], CostRange] = {}

    def cost(limits: Mapping[str, Limits]) -> CostRange:
        key = tuple(sorted(limits.items()))
        if key not in known:
            parts = [
                pool_cost(stack.config.target, _at(choice, limits), pool.returns)
                for choice, pool in zip(choices, pools, strict=True)
            ]
            known[key] = total([*parts, fixed_cost_range(fixed)])
        return known[key]

    start = datetime(*MONDAY, tzinfo=ZoneInfo(zone)).timestamp()
    steps = 60 // STEP
    hours = tuple(
        _mean(
            [cost({name: one.at(start + 3600 * hour + 60 * STEP * step) for name, one in active.items()})
             for step in range(steps)]
        )
        for hour in range(HOURS)
    )  # fmt: skip
    always = cost({name: (one.fewest, one.most) for name, one in active.items()})
    return WeekPlan(zone, hours, total(hours), _times(always, HOURS))


def zone_of(stack: LoadedStack, schedules: Mapping[str, Schedule]) -> str:
    """Whose clock the week is shown by: the stack's, or that of the first model."""
    if stack.config.schedule is not None:
        return stack.config.schedule.time_zone
    return next(one.own.zone for _, one in sorted(schedules.items()) if one.own is not None)


def _at(choice: PoolChoice, limits: Mapping[str, Limits]) -> PoolChoice:
    """The pool with as many nodes as these bounds take; a model without any keeps its own."""
    both = {one.model_id: limits.get(one.model_id, (one.min, max(one.max, one.min))) for one in choice.demands}
    room = choice.candidate.room
    least = nodes_for(choice.demands, {name: fewest for name, (fewest, _) in both.items()}, room)
    most = nodes_for(choice.demands, {name: most for name, (_, most) in both.items()}, room)
    return replace(choice, need_at_min=least, need_at_max=most)


def _mean(costs: Sequence[CostRange]) -> CostRange:
    return _times(total(costs), 1 / len(costs))


def _times(cost: CostRange, factor: float) -> CostRange:
    low, high = cost.min_usd_per_hour, cost.max_usd_per_hour
    return CostRange(None if low is None else low * factor, None if high is None else high * factor)
